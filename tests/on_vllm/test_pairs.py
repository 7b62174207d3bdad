"""Questions about documents are written by vLLM too, held to the same schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from gem_rag.model import Gem
from gem_rag.pairs import writing
from gem_rag.pairs.passages import read_passages
from gem_rag.pairs.questions import read_question
from gem_rag.pairs.settings import PairSettings
from gem_rag.pairs.writing import write_questions


def test_questions_are_written_in_the_schema(
    tiny: Gem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[str] = []

    def keep(written: list[str], count: int, gem: Gem) -> None:  # it is too small to ask well
        answers[:] = written

    monkeypatch.setattr(writing, "_check_usable", keep)
    file = tmp_path / "list.md"
    file.write_text("# Lists\n\nA list keeps its order, and append() adds an item at its end.\n")
    passages = read_passages([file], tiny.tokenizer, 64)
    settings = PairSettings(questions=3, batch=2)
    pairs = write_questions(tiny, passages, settings, tmp_path / "state")
    assert len(answers) == 3
    assert [pair.query for pair in pairs] == [q for text in answers if (q := read_question(text))]
    assert pairs
