"""Question rows: questions over one to five passages, and answers copied from the right one.

The right passage stands at a random place among hard ones: of the same module or page, of
similar names, other parts of the same text. Some rows cannot be answered. Training rows are made
of what is not held out, rows to measure on of held-out docstrings alone, by the same code.

Knows nothing about models.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from gem_rag.documents.document import Document
from gem_rag.documents.splitting import chunks
from gem_tiny.corpus import Text
from gem_tiny.facts import Fact, facts, subject, wording

_SIZES = (350, 500, 650, 850)  # characters of a passage, at most
_ROOM = 3300  # characters of all passages of a row: 1,024 tokens hold most of them
_COUNTS = (1, 2, 2, 3, 3, 4, 4, 4, 4, 5, 5)  # passages of a row
_REFUSED = 0.18  # of the rows; some of the others cannot be made
# Kinds of facts are common to very different degrees: how many of a kind are kept.
_KEPT = {"purpose": 0.6, "type": 0.3, "default": 0.35, "error": 0.3, "detail": 0.6, "which": 0.3}
_PER_TEXT = 2  # rows
# Kinds that ask for what a text says, not for what its title names; of these, how many rows show
# passages without their titles, as they come from plain files.
_BY_CONTENT = ("prose", "how", "definition")
_UNTITLED = 0.35


@dataclass(frozen=True)
class Row:
    """A question over passages.

    number: of the passage that answers, from 1; 0 if none does.
    answer: words of that passage, with single spaces; empty if none answers.
    """

    kind: str
    question: str
    answer: str
    number: int
    passages: tuple[str, ...]


def make_rows(
    texts: Sequence[Text], seed: int, most: int, passages: int | None = None
) -> Iterator[Row]:
    """At most so many rows of texts, the same for the same seed.

    passages: in every row; default one to five.
    """
    library = _Library(texts)
    order = list(range(len(texts)))
    Random(seed).shuffle(order)
    made = 0
    for index in order:
        random = Random(f"{seed} {index}")
        for row in library.rows(index, random, passages):
            yield row
            made += 1
            if made == most:
                return


class _Library:
    """Texts as passages, with their neighbours and namesakes."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self._texts = texts
        self._groups: dict[str, list[int]] = defaultdict(list)
        self._alike: dict[str, list[int]] = defaultdict(list)
        self._common: Counter[str] = Counter()
        for index, text in enumerate(texts):
            self._groups[f"{text.source} {text.group}"].append(index)
            for word in _name_words(text.name):
                self._alike[word].append(index)
            self._common.update(set(re.findall(r"\w{4,}", text.text.lower())))
        # Long texts' chunks are asked for again and again.
        self._chunks = lru_cache(maxsize=20_000)(self._split)

    def rows(self, index: int, random: Random, passages: int | None) -> Iterator[Row]:
        text = self._texts[index]
        found = [f for f in facts(text, self._common, random) if self._is_kept(f, random)]
        for fact in found[:_PER_TEXT]:
            count = passages or random.choice(_COUNTS)
            size = min(random.choice(_SIZES), _ROOM // count)
            if random.random() < _REFUSED:
                row = self._refused(index, fact, size, count, random)
            else:
                row = self._answered(index, fact, size, count, random)
            if row and fact.kind in _BY_CONTENT and random.random() < _UNTITLED:
                row = _untitled(row)
            if row:
                yield row

    def _is_kept(self, fact: Fact, random: Random) -> bool:
        return random.random() < _KEPT.get(fact.kind, 1.0)

    def _answered(
        self, index: int, fact: Fact, size: int, count: int, random: Random
    ) -> Row | None:
        right = next((c for c in self._chunks(index, size) if fact.answer in _flat(c)), None)
        name = subject(self._texts[index], random)
        others = self._distractors(index, fact, name, size, count - 1, random)
        if right is None or len(others) < count - 1:
            return None
        place = random.randrange(count)
        return Row(
            fact.kind,
            wording(fact, name, random),
            fact.answer,
            place + 1,
            (*others[:place], right, *others[place:]),
        )

    def _refused(self, index: int, fact: Fact, size: int, count: int, random: Random) -> Row | None:
        """None of the passages answers: the right one is missing, or asked what it does not say."""
        name = subject(self._texts[index], random)
        asked = self._foreign(index, fact, random) if random.random() < 0.4 else None
        missing = count if asked is None else count - 1
        others = self._distractors(index, fact, name, size, missing, random)
        if len(others) < missing:
            return None
        if asked is not None:
            others.insert(random.randrange(count), random.choice(self._chunks(index, size)))
        return Row(fact.kind, wording(asked or fact, name, random), "", 0, tuple(others))

    def _foreign(self, index: int, fact: Fact, random: Random) -> Fact | None:
        """A fact of the same kind that a neighbour states and this text says nothing about."""
        if not fact.item or fact.kind in ("how", "which", "definition", "prose"):
            return None
        text = self._texts[index]
        for other in random.sample(near := self._near(index), min(4, len(near))):
            for found in facts(self._texts[other], self._common, random):
                if found.kind == fact.kind and found.item.lower() not in text.document.lower():
                    return found
        return None

    def _distractors(
        self, index: int, fact: Fact, name: str, size: int, count: int, random: Random
    ) -> list[str]:
        """Passages that do not answer, each of another text or another part of this one."""
        found: list[str] = []
        short = self._texts[index].name.rsplit(".", 1)[-1]
        for _ in range(8 * count):
            if len(found) == count:
                break
            other = self._draw(index, random)
            if other == index and fact.kind in ("purpose", "heading", "how", "which", "prose"):
                continue
            if other != index and self._texts[other].name.rsplit(".", 1)[-1] == short:
                continue  # a namesake may answer as well
            passage = random.choice(self._chunks(other, size))
            flat = _flat(passage)
            answers = fact.answer in flat or (fact.kind == "definition" and fact.item in flat)
            if passage not in found and not answers:
                found.append(passage)
        return found

    def _draw(self, index: int, random: Random) -> int:
        """Another text, mostly a neighbour or one of a similar name; sometimes the same."""
        draw = random.random()
        words = [w for w in _name_words(self._texts[index].name) if len(self._alike[w]) > 1]
        if draw < 0.45 and (near := self._near(index)):
            return random.choice(near)
        if draw < 0.8 and words:
            return random.choice(self._alike[random.choice(words)])
        if draw < 0.9:
            return index
        return random.randrange(len(self._texts))

    def _near(self, index: int) -> list[int]:
        """Texts of the same module or page, at most twenty on either side."""
        text = self._texts[index]
        group = self._groups[f"{text.source} {text.group}"]
        place = group.index(index)
        return [i for i in group[max(0, place - 20) : place + 20] if i != index]

    def _split(self, index: int, size: int) -> list[str]:
        """The text's passages, in the form an index has them."""
        text = self._texts[index]
        if len(text.document) <= size:
            return [text.document]
        if text.kind == "docstring":
            document = Document(text.group, text.document, text.title)
            splitter: TextSplitter | MarkdownSplitter = TextSplitter(size)
        else:
            document = Document(text.group, text.text, text.title, "markdown")
            splitter = MarkdownSplitter(size)
        parts = splitter.chunk_indices(document.text)
        spans = [(start, start + len(part)) for start, part in parts]
        return [chunk.passage for chunk in chunks(document, spans)]


def _untitled(row: Row) -> Row | None:
    """The row without its passages' first lines, if the answer does not need them."""
    passages = tuple(passage.partition("\n")[2].strip() or passage for passage in row.passages)
    if row.number and row.answer not in _flat(passages[row.number - 1]):
        return None
    return replace(row, passages=passages)


def _name_words(name: str) -> list[str]:
    """The words a name is made of: getFile, get_file and "Get file" have the same."""
    return [w.lower() for w in re.findall(r"[A-Z]?[a-z]{2,}|[A-Z]{2,}", name)]


def _flat(passage: str) -> str:
    return " ".join(passage.split())


def count_rows(rows: Sequence[Row]) -> Mapping[str, Any]:
    """How many rows there are, by kind and by the number of passages."""
    return {
        "rows": len(rows),
        "refused": sum(not row.number for row in rows),
        "kinds": dict(Counter(row.kind for row in rows).most_common()),
        "passages": dict(sorted(Counter(len(row.passages) for row in rows).items())),
    }
