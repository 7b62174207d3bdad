"""`Conversation`: questions to an index that may refer to what was said before."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Unpack

from gem_rag.core.config import AnswerStyle, check_margin
from gem_rag.rag.answer import Answer, check_question, check_style, stream_answer
from gem_rag.rag.citations import Citation
from gem_rag.rag.hits import Hit
from gem_rag.rag.index import AskOptions, Index, split_options
from gem_rag.rag.rewriting import rewrite_question
from gem_rag.rag.search import SearchSettings


@dataclass(frozen=True)
class Turn:
    """A question in a conversation, and its answer.

    Attributes:
        question: The question as it was asked.
        standalone: The question that was searched for and answered: the same, or, where it refers
            to earlier turns, what the model made of it.
        answer: The answer; its timings have "rewrite" too.
    """

    question: str
    standalone: str
    answer: Answer

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.answer.text

    @property
    def citations(self) -> list[Citation]:
        """What the answer rests on."""
        return self.answer.citations

    @property
    def hits(self) -> list[Hit]:
        """The passages that were read."""
        return self.answer.hits


@dataclass(frozen=True)
class Found:
    """What was found for a question in a conversation.

    Attributes:
        question: The question as it was asked.
        standalone: The question that was searched for.
        hits: The passages, best first.
        timings: Seconds spent in "rewrite" and "search".
    """

    question: str
    standalone: str
    hits: list[Hit]
    timings: dict[str, float]


class Conversation:
    """Questions to an index, each in the light of those before; for one thread at a time.

    A question after the first is made to stand alone by the index's model (see `rewrite_question`)
    before it is searched for. Earlier answers are read for that alone: every answer rests on
    passages that were searched for its own question.

    Args:
        index: The index.
        k: How many chunks to retrieve for a question.
        style: "free", "checked", "quote", "quotes" or "sentences"; default the model's own.
        margin: Chunks that score lower than the best one by more than this are not read; default
            the model's own.
        **options: As for `Index.search`, and as for `Gem.generate`.

    Attributes:
        index: The index.
        turns: What was asked and answered, oldest first; clear it to begin again.

    Raises:
        InputError: There is no such style or margin, or a setting is out of range.
    """

    def __init__(
        self,
        index: Index,
        k: int = 5,
        *,
        style: AnswerStyle | None = None,
        margin: float | None = None,
        **options: Unpack[AskOptions],
    ) -> None:
        searching, sampling = split_options(options, index.gem.config)
        SearchSettings(**searching)  # whether they can be
        check_style(style)
        check_margin("margin", margin)
        self.index = index
        self.turns: list[Turn] = []
        self._search = partial(index.search, k=k, **searching)
        self._answer = partial(stream_answer, index.gem, style=style, margin=margin, **sampling)

    def ask(self, question: str) -> Turn:
        """Answer a question.

        Args:
            question: The question; it may refer to what was said before.

        Returns:
            The turn, which is then the last of `turns`.

        Raises:
            InputError: The question is empty or too long, the index is empty, or a setting is out
                of range. The conversation stays as it was.
        """
        for _ in self.stream(question):
            pass
        return self.turns[-1]

    def stream(self, question: str) -> Generator[str, None, Turn]:
        """Answer a question piece by piece.

        Args:
            question: As for `ask`, which raises the same errors.

        Returns:
            A generator of pieces that together are the answer's text (of style "checked", whole
            sentences). Its return value is the turn, which is then the last of `turns`; a
            generator that is closed before its end leaves none.
        """
        check_question(question)
        return self._stream(question)

    def find(self, question: str) -> Found:
        """Search for a question: what `stream` does first, for those who show passages at once.

        Args:
            question: As for `ask`, which raises the same errors.
        """
        check_question(question)
        start = time.perf_counter()
        history = [(turn.standalone, turn.text) for turn in self.turns]
        standalone = rewrite_question(self.index.gem, question, history)
        rewritten = time.perf_counter()
        hits = self._search(standalone)
        timings = {"rewrite": rewritten - start, "search": time.perf_counter() - rewritten}
        return Found(question, standalone, hits, timings)

    def stream_found(self, found: Found) -> Generator[str, None, Turn]:
        """Answer a question for which passages have been found, as `stream` does."""
        with closing(self._answer(found.standalone, found.hits)) as pieces:
            answer = yield from pieces
        answer = dataclasses.replace(
            answer,
            citations=self.index.locate(answer.citations),
            timings={**found.timings, **answer.timings},
        )
        self.index.count_asked(answer)
        turn = Turn(found.question, found.standalone, answer)
        self.turns.append(turn)
        return turn

    def _stream(self, question: str) -> Generator[str, None, Turn]:
        return (yield from self.stream_found(self.find(question)))
