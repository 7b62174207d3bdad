"""Question rows: a question over one to five passages, and an answer quoted from one of them.

The right passage is at a random position among hard distractors: passages of the same module or
page, of similar names, and other parts of the same text. Some rows cannot be answered. Training
rows are made from training texts, evaluation rows from held-out docstrings, by the same code.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from random import Random
from typing import Any

from gem_tiny.facts import Fact, choose_subject, extract_facts, word_question
from gem_tiny.passages import split_passages
from gem_tiny.texts import Text

_PASSAGE_CHARACTERS = (350, 500, 650, 850)
_ROW_CHARACTERS = 3300  # of all passages: 1,024 tokens hold most of them
_PASSAGE_COUNTS = (1, 2, 2, 3, 3, 4, 4, 4, 4, 5, 5)
_UNANSWERABLE_SHARE = 0.18  # of attempted rows
_ROWS_PER_TEXT = 2
# Some kinds of facts are far more frequent than others: the probability to keep a fact.
_KEEP = {"purpose": 0.6, "type": 0.3, "default": 0.35, "error": 0.3, "detail": 0.6, "which": 0.3}
# Kinds that ask what a text says, not what its title names. Some of their rows have passages
# without titles, as passages of plain files are.
_CONTENT_KINDS = ("prose", "how", "definition")
_UNTITLED_SHARE = 0.35
_NEIGHBOR_DISTANCE = 20


@dataclass(frozen=True)
class QuestionRow:
    """A question over passages.

    Attributes:
        kind: The kind of `Fact` it asks for.
        question: The question.
        answer: Words of a passage, separated by single spaces; empty if no passage answers.
        number: Which passage answers, from 1; 0 if none does.
        passages: The passages.
    """

    kind: str
    question: str
    answer: str
    number: int
    passages: tuple[str, ...]


def make_question_rows(
    texts: Sequence[Text], seed: int, limit: int, passages: int | None = None
) -> Iterator[QuestionRow]:
    """Make question rows; the same seed gives the same rows.

    Args:
        texts: What the rows ask about, and where distractors come from.
        seed: Seed of all random choices.
        limit: The most rows.
        passages: Number of passages of a row; by default one to five.

    Returns:
        The rows.
    """
    generator = _RowGenerator(texts)
    order = list(range(len(texts)))
    Random(seed).shuffle(order)
    rows = (
        row
        for index in order
        for row in generator.make_rows(index, Random(f"{seed} {index}"), passages)
    )
    return islice(rows, limit)


def count_rows(rows: Sequence[QuestionRow]) -> Mapping[str, Any]:
    """Count rows by kind and by number of passages."""
    return {
        "rows": len(rows),
        "refused": sum(not row.number for row in rows),
        "kinds": dict(Counter(row.kind for row in rows).most_common()),
        "passages": dict(sorted(Counter(len(row.passages) for row in rows).items())),
    }


class _RowGenerator:
    """Draws rows from texts, which it refers to by index."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self._texts = texts
        self._groups: dict[str, list[int]] = defaultdict(list)
        self._by_name_word: dict[str, list[int]] = defaultdict(list)
        self._document_counts: Counter[str] = Counter()
        for index, text in enumerate(texts):
            self._groups[_group_key(text)].append(index)
            for word in _split_name(text.name):
                self._by_name_word[word].append(index)
            self._document_counts.update(set(re.findall(r"\w{4,}", text.text.lower())))
        # Neighbors of long texts need the same passages again and again.
        self._passages = lru_cache(maxsize=20_000)(
            lambda index, size: split_passages(texts[index], size)
        )

    def make_rows(self, index: int, random: Random, passages: int | None) -> Iterator[QuestionRow]:
        """Make up to two rows that ask about a text."""
        facts = extract_facts(self._texts[index], self._document_counts, random)
        kept = [fact for fact in facts if random.random() < _KEEP.get(fact.kind, 1.0)]
        for fact in kept[:_ROWS_PER_TEXT]:
            count = passages or random.choice(_PASSAGE_COUNTS)
            size = min(random.choice(_PASSAGE_CHARACTERS), _ROW_CHARACTERS // count)
            if random.random() < _UNANSWERABLE_SHARE:
                row = self._make_unanswerable(index, fact, size, count, random)
            else:
                row = self._make_answerable(index, fact, size, count, random)
            if row and fact.kind in _CONTENT_KINDS and random.random() < _UNTITLED_SHARE:
                row = _remove_titles(row)
            if row:
                yield row

    def _make_answerable(
        self, index: int, fact: Fact, size: int, count: int, random: Random
    ) -> QuestionRow | None:
        right = next((p for p in self._passages(index, size) if fact.answer in _flatten(p)), None)
        name = choose_subject(self._texts[index], random)
        others = self._draw_distractors(index, fact, size, count - 1, random)
        if right is None or len(others) < count - 1:
            return None
        place = random.randrange(count)
        return QuestionRow(
            fact.kind,
            word_question(fact, name, random),
            fact.answer,
            place + 1,
            (*others[:place], right, *others[place:]),
        )

    def _make_unanswerable(
        self, index: int, fact: Fact, size: int, count: int, random: Random
    ) -> QuestionRow | None:
        """A row without the right passage, or with the text but a question it does not answer."""
        name = choose_subject(self._texts[index], random)
        unstated = self._draw_unstated_fact(index, fact, random) if random.random() < 0.4 else None
        distractors = count if unstated is None else count - 1
        passages = self._draw_distractors(index, fact, size, distractors, random)
        if len(passages) < distractors:
            return None
        if unstated is not None:
            passages.insert(random.randrange(count), random.choice(self._passages(index, size)))
        question = word_question(unstated or fact, name, random)
        return QuestionRow(fact.kind, question, "", 0, tuple(passages))

    def _draw_unstated_fact(self, index: int, fact: Fact, random: Random) -> Fact | None:
        """A fact of the same kind that a neighbor states and that this text does not mention."""
        if not fact.item or fact.kind in ("how", "which", "definition", "prose"):
            return None
        document = self._texts[index].document.lower()
        neighbors = self._neighbors(index)
        for neighbor in random.sample(neighbors, min(4, len(neighbors))):
            for other in extract_facts(self._texts[neighbor], self._document_counts, random):
                if other.kind == fact.kind and other.item.lower() not in document:
                    return other
        return None

    def _draw_distractors(
        self, index: int, fact: Fact, size: int, count: int, random: Random
    ) -> list[str]:
        """Passages that do not answer: of other texts, or other parts of this one."""
        distractors: list[str] = []
        short_name = _short_name(self._texts[index])
        for _ in range(8 * count):
            if len(distractors) == count:
                break
            other = self._draw_text(index, random)
            if other == index and fact.kind in ("purpose", "heading", "how", "which", "prose"):
                continue
            if other != index and _short_name(self._texts[other]) == short_name:
                continue  # a namesake may answer as well
            passage = random.choice(self._passages(other, size))
            flat = _flatten(passage)
            answers = fact.answer in flat or (fact.kind == "definition" and fact.item in flat)
            if passage not in distractors and not answers:
                distractors.append(passage)
        return distractors

    def _draw_text(self, index: int, random: Random) -> int:
        """Mostly a neighbor or a text with a similar name, sometimes the same or any text."""
        draw = random.random()
        shared_words = [
            word
            for word in _split_name(self._texts[index].name)
            if len(self._by_name_word[word]) > 1
        ]
        if draw < 0.45 and (neighbors := self._neighbors(index)):
            return random.choice(neighbors)
        if draw < 0.8 and shared_words:
            return random.choice(self._by_name_word[random.choice(shared_words)])
        if draw < 0.9:
            return index
        return random.randrange(len(self._texts))

    def _neighbors(self, index: int) -> list[int]:
        """Texts of the same module or page, up to twenty on either side."""
        group = self._groups[_group_key(self._texts[index])]
        place = group.index(index)
        nearby = group[max(0, place - _NEIGHBOR_DISTANCE) : place + _NEIGHBOR_DISTANCE]
        return [i for i in nearby if i != index]


def _remove_titles(row: QuestionRow) -> QuestionRow | None:
    """The row without the first line of each passage, unless the answer is in it."""
    passages = tuple(passage.partition("\n")[2].strip() or passage for passage in row.passages)
    if row.number and row.answer not in _flatten(passages[row.number - 1]):
        return None
    return replace(row, passages=passages)


def _group_key(text: Text) -> str:
    return f"{text.source} {text.group}"


def _short_name(text: Text) -> str:
    return text.name.rsplit(".", 1)[-1]


def _split_name(name: str) -> list[str]:
    """The words of a name, which are the same for getFile, get_file and "Get file"."""
    return [w.lower() for w in re.findall(r"[A-Z]?[a-z]{2,}|[A-Z]{2,}", name)]


def _flatten(passage: str) -> str:
    return " ".join(passage.split())
