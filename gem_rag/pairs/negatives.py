"""Hard negatives: passages that are found for a query and do not answer it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from random import Random

from gem_rag.pairs.filters import normalized
from gem_rag.pairs.pair import Pair
from gem_rag.pairs.searchers import Found, Searcher
from gem_rag.pairs.settings import PairSettings


def mine_negatives(
    pairs: Sequence[Pair], searchers: Sequence[Searcher], settings: PairSettings
) -> list[Pair]:
    """Give every pair negatives, from what BM25 and the model find together.

    They are drawn from the ranks that the settings name; none scores above their share of the right
    document's score, is the same text, or answers too (a text of the same section, or of another
    pair of the same query). Where so few are left, the rest is drawn from all other texts.

    Args:
        pairs: Pairs; the documents of all are what negatives are drawn from.
        searchers: What finds documents.
        settings: How many, and from where.

    Returns:
        The pairs with negatives; fewer than asked for only if there are no other texts.
    """
    if not settings.negatives:
        return [dataclasses.replace(pair, negatives=()) for pair in pairs]
    documents = list(dict.fromkeys(pair.document for pair in pairs))
    numbers = {document: number for number, document in enumerate(documents)}
    answers = _Answers(pairs, numbers)
    queries = [pair.query for pair in pairs]
    depth = min(settings.last_rank, len(documents))
    results = [search(queries, documents, depth) for search in searchers]
    mined = []
    for row, pair in enumerate(pairs):
        random = Random(f"{settings.seed} {pair.query}")
        right, wrong = numbers[pair.document], answers.of(pair)
        hard = {
            document
            for found in results
            for document in _candidates(found, row, right, settings)
            if document not in wrong
        }
        chosen = random.sample(sorted(hard), min(settings.negatives, len(hard)))
        chosen += _others(len(documents), settings.negatives - len(chosen), {*wrong, *hard}, random)
        negatives = tuple(documents[number] for number in chosen)
        mined.append(dataclasses.replace(pair, negatives=negatives))
    return mined


class _Answers:
    """Which documents answer a query beside its own, or may do so.

    Args:
        pairs: All pairs.
        numbers: Of their documents.
    """

    def __init__(self, pairs: Sequence[Pair], numbers: dict[str, int]) -> None:
        self._by_section: dict[str, set[int]] = defaultdict(set)
        self._by_query: dict[str, set[int]] = defaultdict(set)
        for pair in pairs:
            number = numbers[pair.document]
            self._by_section[pair.section].add(number)
            self._by_query[normalized(pair.query)].add(number)

    def of(self, pair: Pair) -> set[int]:
        return self._by_section[pair.section] | self._by_query[normalized(pair.query)]


def _candidates(found: Found, row: int, right: int, settings: PairSettings) -> list[int]:
    """Documents among the ranks that negatives come from, that do not score like the right one."""
    rank = found.rank(row, right)
    # The right document scores no more than the last one found, if it is not among them.
    score = found.scores[row][(rank or len(found.rows[row])) - 1]
    ranks = slice(settings.first_rank - 1, settings.last_rank)
    candidates = zip(found.rows[row][ranks], found.scores[row][ranks], strict=True)
    most = settings.max_score * score
    return [int(document) for document, own in candidates if document >= 0 and own <= most]


def _others(count: int, wanted: int, taken: set[int], random: Random) -> list[int]:
    """Any other documents, while there are some."""
    wanted = min(wanted, count - len(taken))
    others: list[int] = []
    while len(others) < wanted:
        number = random.randrange(count)
        if number not in taken:
            taken.add(number)
            others.append(number)
    return others
