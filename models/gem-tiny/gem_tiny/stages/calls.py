"""Stage `calls`: rows of tool calls and small talk."""

from __future__ import annotations

from gem_tiny.stages.options import WORK, Seed, Work
from gem_tiny.stages.work_folder import load_question_rows


def calls(work: Work = WORK, most: int = 24_000, most_talk: int = 3000, seed: Seed = 0) -> None:
    """Write rows of tool calls, and of small talk."""
    from gem_tiny.files import write_jsonl
    from gem_tiny.texts import load_texts
    from gem_tiny.tool_call_rows import make_small_talk_rows, make_tool_call_rows

    texts = load_texts(work / "corpus.jsonl")
    questions = (row.question for row in load_question_rows(work, "questions"))
    for name, rows in (
        ("calls", make_tool_call_rows(texts, seed, most)),
        ("talk", make_small_talk_rows(questions, seed, most_talk)),
    ):
        write_jsonl(
            work / f"{name}.jsonl",
            ({"messages": messages, "completion": completion} for messages, completion in rows),
        )
