"""From a folder of documents to a file of pairs, with a card beside it.

| path | content |
|---|---|
| OUT | the pairs, JSON lines (`pair.Pair`) |
| OUT's name.md | the card |
| OUT's name.held_out.jsonl | with `held_out`: headings and texts that are kept to measure on |
| OUT's name.questions | what the model has written, from which an interrupted run goes on |
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gem_rag._utils.files import write_atomically
from gem_rag.errors import InputError
from gem_rag.loading import load
from gem_rag.model import Gem
from gem_rag.pairs.card import Made, card
from gem_rag.pairs.filters import says_something, without_duplicates
from gem_rag.pairs.negatives import mine_negatives
from gem_rag.pairs.pair import Pair, read_pairs, write_pairs
from gem_rag.pairs.passages import Passage, is_held_out, read_passages
from gem_rag.pairs.searchers import ModelSearcher, Searcher, bm25, found_again
from gem_rag.pairs.settings import PairSettings
from gem_rag.pairs.structure import structure_pairs
from gem_rag.pairs.writing import UnusableQuestionsError, is_usable, write_questions

_USUAL = PairSettings()


@dataclass
class _Run:
    """One run's model, settings, and how many pairs each filter has taken away."""

    gem: Gem
    settings: PairSettings
    progress: bool
    dropped: Counter[str] = field(default_factory=Counter)

    def searchers(self) -> list[Searcher]:
        search = self.settings.search
        if search == "auto":
            search = "both" if self.gem.config.scope else "bm25"
        found: list[Searcher] = [] if search == "model" else [bm25]
        return found if search == "bm25" else [*found, ModelSearcher(self.gem, self.progress)]

    def keep(self, why: str, pairs: Sequence[Pair], kept: Iterable[Pair]) -> list[Pair]:
        """The pairs that are kept; counts the others."""
        left = list(kept)
        self.dropped[why] += len(pairs) - len(left)
        return left


def make_pairs(
    paths: Sequence[str | Path],
    model: str | Path | Gem,
    out: str | Path,
    settings: PairSettings = _USUAL,
    *,
    progress: bool = False,
    notice: Callable[[str], object] = lambda line: None,
) -> Made:
    """Make pairs of documents.

    Args:
        paths: Files and folders.
        model: What writes questions and, if it is GEM-trained, finds passages; as for `load`.
        out: The file to write, JSON lines.
        settings: Every number.
        progress: Whether to show progress bars.
        notice: Is told what is being done, and how long it will take.

    Returns:
        What was made, as the card says.

    Raises:
        InputError: There is nothing to read, or too little; or OUT exists.
        UnusableQuestionsError: The model writes nothing usable, and documents have no structure.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists already: choose another name, or remove it")
    with load(model) as gem:
        run = _Run(gem, settings, progress)
        passages = read_passages(
            [Path(p).expanduser() for p in paths], gem.tokenizer,
            min(settings.passage_tokens, gem.max_length),
            min(settings.context_tokens, gem.max_length),
        )  # fmt: skip
        to_measure = [p for p in passages if is_held_out(p, settings.held_out)]
        to_train = [p for p in passages if not is_held_out(p, settings.held_out)]
        notice(f"{len(passages)} passages, {len(to_measure)} of them held out")
        pairs = list(structure_pairs(to_train))
        named = (pair for pair in pairs if says_something(pair.query, least=1))
        pairs = run.keep("says nothing", pairs, named)
        if settings.questions:
            state = out.with_name(f"{out.stem}.questions")
            try:
                written = write_questions(gem, to_train, settings, state, progress, notice)
            except UnusableQuestionsError as error:
                if not pairs:
                    raise
                notice(f"pairs from structure only, since {error}")
            else:
                pairs += _filtered(run, written, to_train)
        pairs = run.keep("repeats another", pairs, without_duplicates(pairs))
        if not pairs:
            raise InputError(
                f"nothing came of {len(passages)} passages: give more documents, with headings, or "
                "let a model write questions"
            )
        pairs = mine_negatives(pairs, run.searchers(), settings)
        return _save(run, pairs, passages, out)


def refresh_negatives(
    file: str | Path,
    model: str | Path | Gem,
    out: str | Path,
    settings: PairSettings = _USUAL,
    *,
    progress: bool = False,
) -> Made:
    """Mine the negatives of a file of pairs again, with a model that has been trained since.

    Args:
        file: What `make_pairs` wrote.
        model: As for `make_pairs`.
        out: The file to write; the same one is replaced.
        settings: Of the negatives.
        progress: Whether to show progress bars.

    Returns:
        What was made.

    Raises:
        InputError: The file is not one of pairs.
    """
    pairs = read_pairs(Path(file))
    with load(model) as gem:
        run = _Run(gem, settings, progress)
        return _save(run, mine_negatives(pairs, run.searchers(), settings), [], Path(out))


def held_out_file(out: Path) -> Path:
    """Where `make_pairs` writes the sections that it held out."""
    return out.with_name(f"{out.stem}.held_out.jsonl")


def _filtered(run: _Run, written: Sequence[Pair], passages: Sequence[Passage]) -> list[Pair]:
    """Questions that say something, once, and find their passage again."""
    pairs = run.keep("says nothing", written, (p for p in written if is_usable(p.query)))
    pairs = run.keep("repeats another", pairs, without_duplicates(pairs))
    documents = list(dict.fromkeys(passage.chunk for passage in passages))
    numbers = {document: number for number, document in enumerate(documents)}
    again = found_again(
        [pair.query for pair in pairs],
        documents,
        [numbers[pair.document] for pair in pairs],
        run.searchers(),
        run.settings.round_trip,
    )
    kept = (pair for pair, stays in zip(pairs, again, strict=True) if stays)
    return run.keep("does not find its passage", pairs, kept)


def _save(run: _Run, pairs: Sequence[Pair], passages: Sequence[Passage], out: Path) -> Made:
    """Write the pairs, what is held out, and the card."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if run.settings.held_out:
        _write_held_out(passages, run.settings.held_out, held_out_file(out))
    write_pairs(out, pairs)
    made = Made(
        file=out.name,
        pairs=len(pairs),
        kinds=dict(Counter(pair.kind for pair in pairs)),
        sources=dict(Counter(pair.source for pair in pairs)),
        dropped=dict(run.dropped),
        negatives=dict(sorted(Counter(len(pair.negatives) for pair in pairs).items())),
        model=run.gem.name,
        fingerprint=run.gem.fingerprint,
        settings=dataclasses.asdict(run.settings),
    )
    write_atomically(out.with_suffix(".md"), card(made, pairs, out))
    return made


def _write_held_out(passages: Sequence[Passage], share: float, file: Path) -> None:
    """Headings that must find the text below them, of held-out sections; all other texts are there
    to be confused with."""
    others = [p for p in passages if not is_held_out(p, share)]
    queries = structure_pairs([p for p in passages if is_held_out(p, share)])
    write_pairs(
        file,
        [
            *(pair for pair in queries if pair.kind == "heading" and says_something(pair.query, 1)),
            *(Pair("", p.text, "", p.source, p.section) for p in others if p.first),
        ],
    )
