"""Queries, documents and which document answers which query: from files, or from a team's own
documents.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gem_rag.documents.document import Document
from gem_rag.documents.readers import read_paths
from gem_rag.documents.structure import parse_structure, split_sections
from gem_rag.errors import InputError

_SHORTEST = 40  # letters of a body
_SHOWN = 3  # ids in an error


@dataclass(frozen=True)
class Collection:
    """queries: texts by id. documents: texts by id, under their titles. relevant: for each
    query's id the ids of documents with their grades, 1 or more."""

    name: str
    queries: dict[str, str]
    documents: dict[str, str]
    relevant: dict[str, dict[str, int]]

    def save(self, folder: Path) -> None:
        """Write in the BEIR layout."""
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
        for name, texts in (("corpus", self.documents), ("queries", self.queries)):
            with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
                for id, text in texts.items():
                    lines.write(json.dumps({"_id": id, "title": "", "text": text}) + "\n")
        with (folder / "qrels" / "test.tsv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter="\t", lineterminator="\n")
            table.writerow(["query-id", "corpus-id", "score"])
            for query, grades in self.relevant.items():
                table.writerows([query, id, grade] for id, grade in grades.items())


def read_beir(folder: Path, split: str = "test") -> Collection:
    """A collection in the BEIR layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.

    Queries without a judgement are left out.

    Raises InputError naming the file, and the line or the ids, for anything that cannot be used.
    """
    files = [folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / f"{split}.tsv"]
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}: a BEIR folder holds corpus.jsonl, queries.jsonl "
            "and qrels/test.tsv"
        )
    documents = {id: "\n".join(filter(None, (row.get("title"), row["text"])))
                 for id, row in _rows(files[0])}  # fmt: skip
    queries = {id: row["text"] for id, row in _rows(files[1])}
    relevant = _judgements(files[2])
    _check_ids(files[2], "queries.jsonl", relevant, queries)
    judged = [id for grades in relevant.values() for id in grades]
    _check_ids(files[2], "corpus.jsonl", judged, documents)
    relevant = {query: kept for query, grades in relevant.items()
                if (kept := {id: grade for id, grade in grades.items() if grade > 0})}  # fmt: skip
    if not relevant:
        raise InputError(f"{files[2]} judges no document relevant: check its third column")
    return Collection(folder.name, {id: queries[id] for id in relevant}, documents, relevant)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    seen = set()
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                id = str(row["_id"])
                if not isinstance(row["text"], str):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f'{file}, line {number}: this is not {{"_id": ..., "text": ...}}'
                ) from None
            if id in seen:
                raise InputError(f"{file}, line {number}: the id {id!r} stands there twice")
            seen.add(id)
            yield id, row


def _judgements(file: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.reader(lines, delimiter="\t"), start=1):
            try:
                query, document, grade = row
                found.setdefault(query, {})[document] = int(float(grade))
            except ValueError:
                if number > 1:  # the first line may be a header
                    raise InputError(
                        f"{file}, line {number}: this is not query-id, corpus-id and score"
                    ) from None
                found = {}
    return found


def _check_ids(file: Path, name: str, wanted: Iterable[str], known: dict[str, str]) -> None:
    missing = [id for id in dict.fromkeys(wanted) if id not in known]
    if missing:
        shown = ", ".join(map(repr, missing[:_SHOWN])) + (", ..." if missing[_SHOWN:] else "")
        raise InputError(f"{file} names {len(missing)} ids that {name} lacks: {shown}")


def from_documents(paths: Sequence[Path], held_out: float = 1.0, most: int = 1000) -> Collection:
    """A collection of a team's own documents: a title or heading must find what stands below it.

    held_out: share of the documents, by a hash of their names, whose titles ask; what stands in
        the others is there to be confused with. `is_held_out` gives the same documents.
    most: queries.

    Raises InputError if there are no titles or headings with text below them.
    """
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    seen: set[str] = set()
    base = Path.cwd()
    for document in read_paths(paths, base):
        if not isinstance(document, Document):
            continue
        for number, (title, body) in enumerate(_titled_texts(document)):
            id = f"{document.source}#{number}"
            documents[id] = body
            asks = is_held_out(document.source, held_out) and title.lower() not in seen
            if asks and len(queries) < most:
                queries[id] = title
            seen.add(title.lower())
    if not queries:
        named = ", ".join(map(str, paths))
        raise InputError(
            f"{named} has no titles or headings with text below them: give documents with headings "
            "(Markdown, reStructuredText, Python docstrings), or a BEIR folder (--data)"
        )
    relevant = {id: {id: 1} for id in queries}
    return Collection(", ".join(path.name for path in paths), queries, documents, relevant)


def is_held_out(source: str, share: float) -> bool:
    """Whether a document of this name is among so many that are kept to measure on."""
    return int(hashlib.md5(source.encode()).hexdigest(), 16) % 1000 < share * 1000


def _titled_texts(document: Document) -> Iterator[tuple[str, str]]:
    """(heading, text below it), or (title, text) of a document without headings."""
    sections = [s for s in split_sections(document, parse_structure(document)) if s.path]
    if sections:
        titled = [(s.path[-1], document.text[s.body : s.stop]) for s in sections]
    else:
        first, _, body = document.text.strip().partition("\n")
        title = (document.title or first).lstrip("# ")  # docstrings' titles are marked
        titled = [(title, body if title in first else document.text)]
    for title, body in titled:
        title = " ".join(title.split())
        if title and len(title) <= 200 and sum(map(str.isalpha, body)) >= _SHORTEST:
            yield title, body.strip()
