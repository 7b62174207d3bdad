"""Pairs of general English: a word, or a question about it, finds what WordNet says it means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gem_rag.pairs.pair import Pair

_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_QUESTIONS = ("{}", "{}", "what is {}", "what does {} mean", "meaning of {}", "define {}")
_MIN_WORDS = 4  # of a definition


@dataclass(frozen=True)
class Synset:
    """One meaning.

    Attributes:
        key: Part of speech and number.
        words: That have it.
        definition: What it is.
        examples: Sentences that use it.
        parent: Key of what it is a kind of, or of what it is similar to.
    """

    key: str
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    parent: str | None


def read_synsets(folder: Path) -> Iterator[Synset]:
    """Read WordNet's data files (wndb(5WN))."""
    for name in _FILES:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):  # as the license does
                yield _parse(line)


def _parse(line: str) -> Synset:
    facts, _, gloss = line.partition(" | ")
    fields = facts.split()
    kind, count = fields[2].replace("s", "a"), int(fields[3], 16)
    words = (fields[4 + 2 * i].split("(")[0].replace("_", " ") for i in range(count))
    pointers = fields[5 + 2 * count :]
    parent = next(
        (
            f"{pointers[i + 2]}{pointers[i + 1]}"
            for i in range(0, 4 * int(fields[4 + 2 * count]), 4)
            if pointers[i] in ("@", "@i", "&")
        ),
        None,
    )
    parts = [part.strip() for part in gloss.split("; ")]
    definition = "; ".join(part for part in parts if not part.startswith('"'))
    examples = tuple(part.strip('"') for part in parts if part.startswith('"'))
    return Synset(f"{kind}{fields[0]}", tuple(words), definition, examples, parent)


def gloss_pairs(folder: Path, negatives: int, seed: int = 0) -> Iterator[Pair]:
    """One pair for each meaning that is defined in some words.

    Args:
        folder: Of the data files.
        negatives: Definitions of other words of the same kind for each pair; meanings that have
            fewer neighbours get random ones.
        seed: Of everything that is drawn.
    """
    random = Random(seed)
    synsets = [s for s in read_synsets(folder) if len(s.definition.split()) >= _MIN_WORDS]
    siblings = defaultdict(list)
    for synset in synsets:
        siblings[synset.parent].append(synset)
    for synset in synsets:
        word = random.choice(synset.words)
        near = [s for s in siblings[synset.parent] if s.parent and not _shared(s, synset)]
        drawn = random.sample(near, min(negatives, len(near)))
        while len(drawn) < negatives:
            other = random.choice(synsets)
            if not _shared(other, synset):
                drawn.append(other)
        yield Pair(
            random.choice(_QUESTIONS).format(word),
            _text(synset, word),
            "gloss",
            "WordNet",
            synset.key,
            tuple(_text(other) for other in drawn),
        )


def _shared(one: Synset, other: Synset) -> bool:
    return not set(one.words).isdisjoint(other.words)


def _text(synset: Synset, asked: str = "") -> str:
    """The definition with examples; what is asked for does not stand in it as a title does."""
    examples = (e for e in synset.examples if asked.lower() not in e.lower() or not asked)
    return ". ".join([synset.definition, *examples])
