"""The command line on real files: what it prints, its exit codes, its one-line errors."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gem_rag import cli
from gem_rag.errors import GemError
from gem_rag.rag.answer import REFUSAL, Answer


@pytest.fixture(autouse=True)
def _keep_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        yield


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "fox.md").write_text("# Fox\n\nThe quick brown fox jumps over the lazy dog.")
    (folder / "index.txt").write_text("Indexes hold vectors, and vectors come from text.")
    return folder


@pytest.fixture
def run(trained_folder: Path, capsys: Any) -> Any:
    """Run a command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([a.replace("MODEL", str(trained_folder)) for a in arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


def test_index_search_ask_info(docs: Path, run: Any) -> None:
    code, out, err = run("index", "docs", "--model", "MODEL", "--store", "chroma")
    assert (code, err) == (0, "")
    assert out.startswith("2 added, 0 changed, 0 removed, 0 unchanged, 0 skipped; 2 chunks in")

    code, out, _ = run("search", "The quick brown fox", "-k", "1")  # the index knows its model
    assert code == 0
    assert "docs/fox.md:" in out or "docs/index.txt:" in out

    code, out, _ = run("ask", "What jumps?", "-k", "2", "--max-tokens", "8")
    assert code == 0
    assert "docs/" in out

    code, out, _ = run("ask", "What jumps?", "--style", "quote")
    assert code == 0
    quote = re.sub(r" \[\d\]$", "", out.splitlines()[0])
    said = [" ".join(file.read_text().split()) for file in docs.iterdir()]
    assert any(quote in text for text in said) or quote == REFUSAL

    code, out, _ = run("ask", "What jumps?", "--margin", "0", "--max-tokens", "8", "--json")
    assert (code, len(json.loads(out)["hits"])) == (0, 1)

    code, out, _ = run("info", "--index", "gem-index")
    assert (code, "store: chroma" in out) == (0, True)


def test_index_includes_excludes_and_removes(docs: Path, run: Any) -> None:
    (docs / ".gitignore").write_text("index.txt\n")
    code, out, err = run("index", "docs", "--model", "MODEL")
    assert (code, err) == (0, "gem-rag: left out: 1 what .gitignore names\n")
    assert out.startswith("1 added")
    (docs / ".gitignore").unlink()
    _, out, err = run("index", "docs", "--exclude", "*.txt", "--exclude", "x", "--include", "*.md")
    assert out.startswith("0 added, 0 changed, 0 removed, 1 unchanged")
    assert err == "gem-rag: left out: 1 what was excluded\n"
    code, out, _ = run("search", "fox", "-k", "1")
    assert re.search(r"docs/fox\.md:\d+-\d+ \(line \d\)\n", out), out
    assert run("index", "--remove", "docs/fox.md")[:2] == (0, "removed docs/fox.md\n")
    code, _, err = run("index", "--remove", "docs/fox.md")
    assert (code, err.count("\n")) == (2, 1)
    assert "has nothing named 'docs/fox.md'" in err
    assert run("index", "docs", "--remove", "x")[0] == 2
    code, _, err = run("index", "docs", "--include", "[")
    assert code == 2


def test_json_output_is_json_alone(docs: Path, run: Any) -> None:
    (docs / "bad.txt").write_bytes(b"\0")
    code, out, err = run("index", "docs", "--model", "MODEL", "--json")
    report = json.loads(out)
    assert (code, report["added"]) == (0, ["docs/fox.md", "docs/index.txt"])
    assert "skipped:" in err
    assert "docs/bad.txt is binary" in err
    hits = json.loads(run("search", "fox", "--json")[1])
    assert {hit["chunk"]["source"] for hit in hits} == {"docs/fox.md", "docs/index.txt"}
    answer = json.loads(run("ask", "fox?", "--json", "--max-tokens", "4")[1])
    assert set(answer) == {field.name for field in dataclasses.fields(Answer)}
    assert json.loads(run("info", "--json", "--model", "MODEL")[1])["k"] == 2


def test_reembed_changes_the_model(docs: Path, run: Any, gem_folder: Any) -> None:
    other = str(gem_folder("llama", k=1))
    run("index", "docs", "--model", "MODEL")
    code, _, err = run("search", "fox", "--model", other)
    assert code == 1
    assert "gem-rag index --reembed" in err
    code, out, _ = run("index", "--reembed", "--model", other)
    assert (code, out) == (0, "re-embedded 2 chunks\n")
    assert run("search", "fox")[0] == 0


WRONG = [
    (["search"], 2, "Missing argument 'question'"),
    (["serach", "x"], 2, "Did you mean 'search'?"),
    (["search", "x", "--indx", "y"], 2, "No such option"),
    (["search", "x", "-k", "0"], 2, "Invalid value for '-k'"),
    (["search", "x"], 2, "there is no index in gem-index: make one with gem-rag index"),
    (["ask", "x"], 2, "there is no index in gem-index: make one with gem-rag index"),
    (
        ["ask", "x", "--style", "poem"],
        2,
        "there is no style 'poem': use free, checked, quote, quotes",
    ),
    (["ask", "x", "--margin", "3"], 2, "Invalid value for '--margin'"),
    (["info", "-i", "nowhere"], 2, "there is no index in nowhere"),
    (["index"], 2, "index needs files or folders"),
    (["index", "nowhere", "-m", "MODEL"], 2, "there is no file or folder 'nowhere'"),
    (["index", "docs", "-m", "docs"], 2, "is not a model folder: it has no config.json"),
    (["index", "docs", "-m", "./no/model"], 2, "there is no model folder './no/model'"),
    (["index", "docs", "-m", "owner/name"], 2, "could not be had from the hub"),
    (["index", "docs", "-m", "MODEL", "--store", "x"], 2, "there is no store 'x'"),
    (["index", "docs", "-m", "MODEL", "--chunk-tokens", "3"], 2, "chunk_tokens must be from 16"),
    (["index", "--reembed", "-m", "MODEL"], 2, "there is no index in"),
    (["index", "empty", "-m", "MODEL"], 2, "found nothing to index in empty"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_wrong_use_is_one_line_and_code_two(
    docs: Path, run: Any, arguments: list[str], code: int, said: str
) -> None:
    (docs.parent / "empty").mkdir()
    got, out, err = run(*arguments)
    assert (got, out) == (code, "")
    assert said in err
    assert err.startswith("gem-rag: ")
    assert err.count("\n") == 1


def test_empty_index_cannot_be_asked(docs: Path, run: Any) -> None:
    run("index", "docs", "--model", "MODEL")
    for file in docs.iterdir():
        file.unlink()
    code, _, err = run("index", "docs")
    assert (code, "found nothing to index" in err) == (2, True)
    code, _, err = run("ask", "anything?")
    assert (code, "is empty: add documents with gem-rag index" in err) == (2, True)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (GemError("the disk is full"), 1, "gem-rag: the disk is full\n"),
        (KeyboardInterrupt(), 130, "gem-rag: interrupted; what was committed before is kept\n"),
        (ZeroDivisionError("odd"), 1, "gem-rag: ZeroDivisionError: odd (GEM_RAG_DEBUG=1 shows"),
    ],
)
def test_failures_are_one_line(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("gem_rag.core.checkpoint.open_checkpoint", fail)
    got, out, err = run("info")
    assert (got, out) == (code, "")
    assert err.lstrip().startswith(said)  # after ^C, a line of the terminal's own
    assert err.strip().count("\n") == 0


def test_warnings_are_one_line(docs: Path, run: Any, plain_folder: Any) -> None:
    code, _, err = run("index", "docs", "--model", str(plain_folder("llama")))
    assert code == 0
    assert err.startswith("gem-rag: warning: ")
    assert "has not been GEM-trained" in err
    assert err.count("\n") == 1


def test_export(tmp_path: Path, run: Any) -> None:
    from sentence_transformers import SentenceTransformer

    out = tmp_path / "out"
    code, printed, err = run(
        "export", "--to", "sentence-transformers", "-m", "MODEL", "-o", str(out)
    )
    assert (code, printed, err) == (0, f"wrote {out}\n", "")
    model = SentenceTransformer(str(out), trust_remote_code=True, device="cpu")
    assert model.encode_query(["what jumps?"]).shape == (1, 32)
    default = tmp_path / "default"
    code, printed, err = run("export", "-m", "MODEL", "-o", str(default))
    assert (code, printed, err) == (0, f"wrote {default}\n", "")
    assert sorted(os.listdir(default)) == sorted(os.listdir(out))
    code, _, err = run("export", "--to", "sentence-transformer", "-m", "MODEL", "-o", str(out))
    assert code == 2
    assert err == (
        "gem-rag: --to must be one of sentence-transformers, peft, plain, "
        "not 'sentence-transformer'\n"
    )


def test_extras_that_are_missing_are_named(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else 1)
    code, _, err = run("train", "-c", "paper", "-m", "MODEL", "-o", str(tmp_path / "out"))
    assert code == 2
    assert err == "gem-rag: this needs peft: pip install 'gem-rag[train]'\n"


@pytest.mark.slow
def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom gem_rag import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'faiss') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "index" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_installed_script_runs_the_command_line(run: Any) -> None:
    script = Path(sys.executable).with_name("gem-rag")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == run("--version")[1]


def test_chat_answers_every_line_and_forgets_the_oldest(
    run: Any, monkeypatch: pytest.MonkeyPatch, trained_folder: Path
) -> None:
    import gem_rag

    asked = []
    with gem_rag.load(trained_folder) as gem:
        stream = gem.stream_chat

        def told(messages: list[dict[str, str]], **sampling: Any) -> Any:
            asked.append([dict(message) for message in messages])
            return stream(messages, **sampling)

        monkeypatch.setattr(gem, "stream_chat", told)
        monkeypatch.setattr(
            "sys.stdin", io.StringIO("First?\n" + "Second? " * 8 + "\nThird?\n\nNo.")
        )
        options = ("--system", "Be brief.", "--max-tokens", "8")
        code, out, _ = run("chat", "--model", "MODEL", *options)
        assert (code, out.count("\n\n") >= 3) == (0, True)
        assert [messages[-1]["content"][:6] for messages in asked] == ["First?", "Second", "Third?"]
        assert all(messages[0]["content"] == "Be brief." for messages in asked)
        assert all(len(gem.tokenize_chat(messages)) + 8 <= gem.context_length for messages in asked)
