"""The text gem-tiny learns from: docstrings of the standard library and of installed packages.

A module is held out, from everything that is trained, if the md5 of its dotted name is a
multiple of 25. Held-out docstrings are what gem-tiny is measured on.

Knows nothing about models or training.
"""

from __future__ import annotations

import hashlib
import json
import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gem_rag.rag.docstrings import Docstring, docstrings

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
        head, _, rest = doc.text.partition("\n\n")
        summary, rest = " ".join(head.split()), rest.strip()
        if len(summary) < 15 or len(re.sub(r"\W", "", rest)) < least:
            continue
        keys = {summary.lower(), " ".join(rest.split()).lower()[:200]}
        if seen.isdisjoint(keys):
            seen |= keys
            yield Pair(module, doc.name, doc.signature, summary, rest)


def cached_pairs(file: Path, packages: Path | None) -> list[Pair]:
    """The corpus's pairs, read once and kept, since parsing every module takes a minute."""
    if not file.exists():
        found = pairs(read_corpus([packages] if packages else []))
        write_rows(file, map(asdict, found))
    return [Pair(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def write_rows(file: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """A JSONL file, there when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part.rename(file)


def training_texts(corpus: Iterable[Pair]) -> Iterator[tuple[str, str]]:
    """(query, document) texts to train on, held-out modules left out.

    Every summary with the rest of its docstring; and for a third of them a question by name with
    the docstring as a passage, in the form the base model knows passages.
    """
    for pair in corpus:
        if held_out(pair.module):
            continue
        yield pair.summary, pair.rest
        draw = hashlib.md5(f"{pair.module}.{pair.name}".encode()).digest()[0]
        if pair.name and draw % 3 == 0:
            name = pair.name.rsplit(".", 1)[-1]
            question = _QUESTIONS[draw // 3 % len(_QUESTIONS)].format(name=name)
            header = f"# {pair.module}.{pair.name}{pair.signature}"
            yield question, f"{header}\n{pair.summary}\n\n{pair.rest}"


_QUESTIONS = ("What does {name} do?", "How do I use {name}?", "What is {name} for?", "{name}")
