"""The text gem-tiny learns from: docstrings, Python's language reference, and documentation.

A module is held out, from everything that is trained, if the md5 of its dotted name is a
multiple of 25. Held-out docstrings are what gem-tiny is measured on: texts elsewhere that quote
them, and documentation pages about held-out modules, are left out too.

Knows nothing about models or training.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Literal

from gem_rag.documents.docstrings import Docstring, docstrings
from gem_rag.errors import InputError
from gem_tiny.documentation import sections
from gem_tiny.overlap import Novelty, Quotes

LONGEST_TEXT = 12_000  # characters; what follows in so long a text is mostly tables
_SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "vendor", "vendored", "site-packages",
                    "idlelib", "lib2to3", "turtledemo", "__pycache__", "_examples"}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A docstring cut in two: its summary line must find the rest."""

    module: str
    name: str
    signature: str
    summary: str
    rest: str


@dataclass(frozen=True)
class Text:
    """A docstring, or a section of documentation.

    source: "standard library", a package, "language reference", or a documentation package.
    group: the module or page; texts of one group stand together.
    name: dotted name after the file's, or the section's title.
    title: the line that passages of it stand under, as `gem_rag.documents.readers` gives it.
    held_out: not to be trained on.
    """

    kind: Literal["docstring", "section"]
    source: str
    group: str
    name: str
    title: str
    text: str
    held_out: bool

    @property
    def document(self) -> str:
        """The text under its title."""
        return f"{self.title}\n{self.text}"


def held_out(module: str) -> bool:
    """Whether nothing may be trained on this module."""
    return int(hashlib.md5(module.encode()).hexdigest(), 16) % 25 == 0


def read_corpus(folders: Iterable[Path] = ()) -> Iterator[tuple[str, Docstring]]:
    """(dotted module, docstring) of the standard library and of package folders, each text once."""
    seen: set[bytes] = set()
    for root in (Path(sysconfig.get_path("stdlib")), *folders):
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).parts
            if _SKIPPED_FOLDERS.intersection(parts):
                continue
            module = ".".join(file.relative_to(root).with_suffix("").parts)
            module = module.removesuffix(".__init__")
            for doc in _docstrings_of(file):
                key = hashlib.md5(" ".join(doc.text.split()).encode()).digest()
                if key not in seen:
                    seen.add(key)
                    yield module, doc


def _docstrings_of(file: Path) -> list[Docstring]:
    try:
        return list(docstrings(file.read_text(encoding="utf-8")))
    except (SyntaxError, ValueError, RecursionError):
        return []  # templates, Python 2, other encodings


def pairs(corpus: Iterable[tuple[str, Docstring]], least: int = 40) -> Iterator[Pair]:
    """(summary, rest) of every docstring whose two parts say enough, at least `least` characters.

    A rest, or a summary, seen before is left out: it would be a false negative.
    """
    seen: set[str] = set()
    for module, doc in corpus:
        if not (found := cut(doc.text, least)):
            continue
        summary, rest = found
        keys = {summary.lower(), " ".join(rest.split()).lower()[:200]}
        if seen.isdisjoint(keys):
            seen |= keys
            yield Pair(module, doc.name, doc.signature, summary, rest)


def cut(text: str, least: int = 40) -> tuple[str, str] | None:
    """A docstring's summary, in one line, and its rest; None if one of them says too little."""
    head, _, rest = text.partition("\n\n")
    summary, rest = " ".join(head.split()), rest.strip()
    if len(summary) < 15 or len(re.sub(r"\W", "", rest)) < least:
        return None
    return summary, rest


def cached_pairs(file: Path, packages: Path | None) -> list[Pair]:
    """The corpus's pairs, read once and kept, since parsing every module takes a minute."""
    if not file.exists():
        found = pairs(read_corpus([packages] if packages else []))
        write_rows(file, map(asdict, found))
    return [Pair(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def read_texts(
    folders: Iterable[Path] = (), documentation: Path | None = None
) -> tuple[list[Text], Counter[str]]:
    """Every text to learn from or to measure on, and how many were left out, by reason.

    documentation: a folder of unpacked documentation packages, each in a folder of its name.

    No text to learn from quotes half of a held-out docstring or more.
    """
    found = list(_all_texts(folders, documentation))
    kept: list[Text] = []
    left_out: Counter[str] = Counter()
    quotes = Quotes(text.text for text in found if text.held_out and text.kind == "docstring")
    novelty = Novelty()
    for text in found:
        if not _is_prose(text.text):
            left_out["no prose"] += 1
        elif text.held_out and text.kind == "section":
            left_out["page about a held-out module"] += 1
        elif not text.held_out and quotes.stand_in(text.document):
            left_out["quotes a held-out docstring"] += 1
        elif not text.held_out and not novelty.adds(text.text):
            left_out["says little that is new"] += 1
        else:
            kept.append(text)
    return kept, left_out


def _all_texts(folders: Iterable[Path], documentation: Path | None) -> Iterator[Text]:
    for module, doc in read_corpus(folders):
        top, stem = module.split(".")[0], module.rsplit(".", 1)[-1]
        name = f"{stem}.{doc.name}" if doc.name else stem
        source = "standard library" if top in sys.stdlib_module_names else top
        title = f"# {name}{doc.signature}"
        text = doc.text[:LONGEST_TEXT]
        yield Text("docstring", source, module, name, title, text, held_out(module))
    for name, text in sorted(topics.items()):
        yield from _topic(name, text)
    for folder in sorted(documentation.iterdir()) if documentation else ():
        for part in sections(folder.resolve()):
            title = " > ".join(dict.fromkeys(part.title))
            out = any(held_out(module) for module in part.modules)
            text = part.text[:LONGEST_TEXT]
            yield Text("section", folder.name, part.page, part.title[1], title, text, out)


def _topic(name: str, text: str) -> Iterator[Text]:
    """A topic of `help()`: a heading, underlined with asterisks or others, and its text."""
    heading, _, rest = text.strip().partition("\n")
    rest = re.sub(r"^[*=\-~^]{3,}\n", "", rest).strip()
    yield Text("section", "language reference", name, heading, heading, rest, False)


def _is_prose(text: str) -> bool:
    """Whether it says something in words: at least 20 letters, and not tables or other scripts."""
    letters = sum(c.isascii() and c.isalpha() for c in text)
    return letters >= 20 and letters > 0.45 * len(text.replace(" ", ""))


def write_corpus(out: Path, packages: Path | None, documentation: Path | None) -> dict[str, Any]:
    """Write the texts to `out` as JSONL, and what was counted beside it; returned."""
    texts, left_out = read_texts([packages] if packages else [], documentation)
    write_rows(out, map(asdict, texts))
    characters: Counter[str] = Counter()
    for text in texts:
        characters["held out" if text.held_out else text.source] += len(text.document)
    counts = {
        "texts": len(texts),
        "left out": dict(left_out),
        "characters": dict(characters.most_common()),
    }
    out.with_suffix(".counts.json").write_text(json.dumps(counts, indent=2) + "\n")
    return counts


def load_texts(file: Path) -> list[Text]:
    """The texts that `write_corpus` wrote."""
    if not file.exists():
        raise InputError(f"there is no corpus {file}: write it with the command `corpus`")
    with file.open(encoding="utf-8") as lines:
        return [Text(**json.loads(line)) for line in lines]


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSONL file, there when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    part.rename(file)
