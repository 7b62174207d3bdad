"""gem-tiny's stages by their commands, from source files to a model that answers, in seconds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from gem_tiny.__main__ import app
from gem_tiny.texts import is_held_out
from typer.testing import CliRunner

import gem_rag
from gem_rag.errors import InputError

MODULE = '''
def load_{n}(path, size={n}):
    """Load the table of number {n} from a file.

    Args:
        path: where the file of table {n} lies on the disk.
        size: how many rows of table {n} are read at once.

    Returns:
        The rows of table {n} in the order of the file.
    """

def drop_{n}(name):
    """Drop what is called so from part {n}.

    Nothing of part {n} can be read any more, and its {n} files are removed from the disk.
    """
'''


def run(*arguments: object) -> None:
    found = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "no-stdlib"))
    for number in range(100):
        module = tmp_path / "site" / "tools" / f"part{number}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(MODULE.format(n=number))
    return tmp_path / "site"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_stages(site: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    run("corpus", "--work", work, "--packages", site)
    run("tokenizer", "--work", work, "--size", 512)
    run("questions", "--work", work)
    with pytest.raises(InputError, match=r"no .*calls\.jsonl: make it with the command `calls`"):
        run("sequences", "--work", work)
    run("calls", "--work", work, "--most", 50, "--most-talk", 20)
    run("sequences", "--work", work)
    kept = {n for n in range(100) if is_held_out(f"tools.part{n}")}
    assert kept
    for name, expected in (("questions", False), ("held-out-questions", True)):
        rows = lines(work / f"{name}.jsonl")
        assert rows
        numbers = re.findall(r"# part(\d+)\.", " ".join(p for row in rows for p in row["passages"]))
        assert {int(n) in kept for n in numbers} == {expected}
    counts = json.loads((work / "sequences.json").read_text())
    sources = {"tools", "language reference", "held out", "questions", "calls", "talk"}
    assert set(counts["tokens"]) == sources
    options = ("--work", work, "--batch", 4096, "--steps", 3, "--no-compiled")
    run("language-model", *options, "--stop-after", 1)
    run("language-model", *options)
    assert [entry["step"] for entry in lines(work / "language-model" / "log.jsonl")] == [0, 1, 2]
    with gem_rag.load(work / "base") as gem:
        assert gem.context_length == 1024
        assert gem.has_chat_template
        with gem.language_model() as model:
            assert sum(p.numel() for p in model.parameters()) < 16e6
        assert gem.generate(["Context:\n[1] # a\nUse it."], max_tokens=4)[0].tokens
    run("answering", *options)
    assert len(lines(work / "answering" / "log.jsonl")) == 3
    run("pairs", "--work", work)
    for name in ("summaries", "asked"):
        rows = lines(work / "pairs" / f"{name}.jsonl")
        assert rows
        assert all(len(row["negatives"]) == 2 for row in rows)
        told = json.dumps(rows)
        assert not any(f"number {n} from" in told or f"part {n} " in told for n in kept)
        assert lines(work / "pairs" / f"held-out-{name}.jsonl")
    # Any will do for the documentation that is not there.
    shutil.copy(work / "pairs" / "summaries.jsonl", work / "pairs" / "titles.jsonl")
    out = tmp_path / "gem"
    run("gem", "--work", work, "--out", out, "--steps", 2, "--set", "schedule.batch=8")
    run("measure", "--work", work, "--model", out, "--base", work / "prepared", "--count", 3)
    found = json.loads((work / "measured" / "figures.json").read_text())
    assert found["generation kept"] is True
    assert found["grounded"]["answerable"] + found["grounded"]["unanswerable"] == 3
    assert found["retrieval: summaries"]["BM25"]["queries"] == 3
    with gem_rag.load(out) as gem:
        assert (gem.config.scope, gem.config.answer_style) == ("special", "quote")
        assert gem.max_length == 160


def test_a_missing_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="write it with the command `corpus`"):
        run("questions", "--work", tmp_path)
