"""The outputs of earlier stages in the work folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gem_rag.errors import InputError
from gem_tiny.files import read_jsonl

if TYPE_CHECKING:
    from gem_tiny.packing import PackedSequences
    from gem_tiny.question_rows import QuestionRow


def require(path: Path, stage: str) -> Path:
    """Return the path of a stage's output.

    Raises:
        InputError: It does not exist.
    """
    if not path.exists():
        raise InputError(f"there is no {path}: make it with the command `{stage}`")
    return path


def load_tokenizer(work: Path) -> Any:
    """Load the Hugging Face tokenizer written by the stage `tokenizer`."""
    from gem_rag.core.tokenizer import SafeTokenizer

    return SafeTokenizer.from_folder(require(work / "tokenizer", "tokenizer")).hf_tokenizer


def load_sequences(work: Path, name: str) -> PackedSequences:
    """Load sequences written by the stage `sequences`."""
    from gem_tiny.packing import PackedSequences

    return PackedSequences.load(require(work / f"{name}.npz", "sequences"))


def load_question_rows(work: Path, name: str) -> list[QuestionRow]:
    """Load rows written by the stage `questions`."""
    from gem_tiny.question_rows import QuestionRow

    path = require(work / f"{name}.jsonl", "questions")
    return [QuestionRow(**row) for row in read_jsonl(path)]


def show(figures: Any) -> None:
    """Print counts or figures as JSON."""
    print(json.dumps(figures, indent=2))
