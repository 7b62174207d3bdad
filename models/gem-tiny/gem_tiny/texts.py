"""The corpus: docstrings, Python's language reference, and HTML documentation.

A module is held out from all training data if the md5 of its dotted name is a multiple of 25.
gem-tiny is evaluated on held-out docstrings, so texts elsewhere that quote them, and documentation
pages about held-out modules, are excluded too.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Literal

from gem_rag._utils.files import write_atomically
from gem_rag.documents.docstrings import Docstring, docstrings
from gem_rag.errors import InputError
from gem_tiny.documentation import read_sections
from gem_tiny.files import read_jsonl, write_jsonl
from gem_tiny.overlap import NoveltyFilter, QuoteDetector

MAX_CHARACTERS = 12_000  # of a text; what follows in longer ones is mostly tables
_HOLDOUT_DIVISOR = 25
_EXCLUDED_FOLDERS = {
    "test", "tests", "testing", "_vendor", "vendor", "vendored", "site-packages", "idlelib",
    "lib2to3", "turtledemo", "__pycache__", "_examples",
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A docstring, or a section of documentation.

    Attributes:
        kind: Which of the two.
        source: "standard library", "language reference", or the name of a package.
        group: The module or page; the texts of a group are adjacent in the corpus.
        name: The dotted name, from the file's name on, or the title of the section.
        title: The line that precedes passages of the text, as in `gem_rag.documents.readers`.
        text: The text itself.
        held_out: Whether the text is for evaluation only.
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
        """The text preceded by its title."""
        return f"{self.title}\n{self.text}"


def is_held_out(module: str) -> bool:
    """Whether a module is for evaluation only."""
    return int(hashlib.md5(module.encode()).hexdigest(), 16) % _HOLDOUT_DIVISOR == 0


def read_docstrings(folders: Iterable[Path] = ()) -> Iterator[tuple[str, Docstring]]:
    """Read the docstrings of the standard library and of installed packages, without duplicates.

    Args:
        folders: Folders of installed packages.

    Yields:
        The dotted name of the module, and a docstring.
    """
    seen: set[bytes] = set()
    for root in (Path(sysconfig.get_path("stdlib")), *folders):
        for file in sorted(root.rglob("*.py")):
            path = file.relative_to(root)
            if _EXCLUDED_FOLDERS.intersection(path.parts):
                continue
            module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
            for doc in _parse_docstrings(file):
                key = hashlib.md5(" ".join(doc.text.split()).encode()).digest()
                if key not in seen:
                    seen.add(key)
                    yield module, doc


def _parse_docstrings(file: Path) -> list[Docstring]:
    try:
        return list(docstrings(file.read_text(encoding="utf-8")))
    except (SyntaxError, ValueError, RecursionError):
        return []  # templates, Python 2, other encodings


def read_texts(
    folders: Iterable[Path] = (), documentation: Path | None = None
) -> tuple[list[Text], Counter[str]]:
    """Read all texts, for training and for evaluation.

    Training texts that quote half of a held-out docstring, or little that is new, are excluded.

    Args:
        folders: Folders of installed packages.
        documentation: A folder with a subfolder of HTML pages for each documentation package.

    Returns:
        The texts, and how many were excluded, by reason.
    """
    candidates = list(_read_candidates(folders, documentation))
    kept: list[Text] = []
    excluded: Counter[str] = Counter()
    quotes = QuoteDetector(
        text.text for text in candidates if text.held_out and text.kind == "docstring"
    )
    novelty = NoveltyFilter()
    for text in candidates:
        if not _is_prose(text.text):
            excluded["no prose"] += 1
        elif text.held_out and text.kind == "section":
            excluded["page about a held-out module"] += 1
        elif not text.held_out and quotes.matches(text.document):
            excluded["quotes a held-out docstring"] += 1
        elif not text.held_out and not novelty.add(text.text):
            excluded["says little that is new"] += 1
        else:
            kept.append(text)
    return kept, excluded


def _read_candidates(folders: Iterable[Path], documentation: Path | None) -> Iterator[Text]:
    for module, doc in read_docstrings(folders):
        package, stem = module.split(".")[0], module.rsplit(".", 1)[-1]
        name = f"{stem}.{doc.name}" if doc.name else stem
        source = "standard library" if package in sys.stdlib_module_names else package
        title = f"# {name}{doc.signature}"
        text = doc.text[:MAX_CHARACTERS]
        yield Text("docstring", source, module, name, title, text, is_held_out(module))
    for name, text in sorted(topics.items()):
        yield _parse_topic(name, text)
    for folder in sorted(documentation.iterdir()) if documentation else ():
        for section in read_sections(folder.resolve()):
            title = " > ".join(dict.fromkeys(section.title))
            held_out = any(is_held_out(module) for module in section.modules)
            text = section.text[:MAX_CHARACTERS]
            yield Text(
                "section", folder.name, section.page, section.title[1], title, text, held_out
            )


def _parse_topic(name: str, text: str) -> Text:
    """A topic of `help()`: an underlined heading and its text."""
    heading, _, body = text.strip().partition("\n")
    body = re.sub(r"^[*=\-~^]{3,}\n", "", body).strip()
    return Text("section", "language reference", name, heading, heading, body, False)


def _is_prose(text: str) -> bool:
    """Whether a text is mostly Latin letters, with at least 20 of them: no table, other script."""
    letters = sum(c.isascii() and c.isalpha() for c in text)
    return letters >= 20 and letters > 0.45 * len(text.replace(" ", ""))


def write_corpus(path: Path, packages: Path | None, documentation: Path | None) -> dict[str, Any]:
    """Write all texts to a JSON Lines file, and counts to a file next to it.

    Args:
        path: The file to write.
        packages: A folder of installed packages, in addition to the standard library.
        documentation: As in `read_texts`.

    Returns:
        The counts.
    """
    texts, excluded = read_texts([packages] if packages else [], documentation)
    write_jsonl(path, map(asdict, texts))
    characters: Counter[str] = Counter()
    for text in texts:
        characters["held out" if text.held_out else text.source] += len(text.document)
    counts = {
        "texts": len(texts),
        "left out": dict(excluded),
        "characters": dict(characters.most_common()),
    }
    write_atomically(path.with_suffix(".counts.json"), json.dumps(counts, indent=2) + "\n")
    return counts


def load_texts(path: Path) -> list[Text]:
    """Load the texts written by `write_corpus`.

    Raises:
        InputError: There is no such file.
    """
    if not path.exists():
        raise InputError(f"there is no corpus {path}: write it with the command `corpus`")
    return [Text(**row) for row in read_jsonl(path)]
