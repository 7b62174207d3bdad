"""gem-tiny's corpus: docstrings of packages, what is held out, and the pairs made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gem_tiny.corpus import (
    Pair,
    cached_pairs,
    held_out,
    load_texts,
    pairs,
    read_corpus,
    read_texts,
    write_corpus,
)


def package(folder: Path) -> Path:
    for number in range(60):
        module = folder / "tools" / f"part{number}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(
            f'def act{number}(x):\n    """Do the thing of number {number}.\n\n'
            f'    It takes x and returns the {number}th of many things there are.\n    """\n'
            f'def same():\n    """A docstring that stands everywhere.\n\n    Word for word, '
            'everywhere, in all of the many parts of it.\n    """\n'
        )
    (folder / "tools" / "python2.py").write_text("print 'hello'")
    (folder / "tools" / "tests").mkdir()
    (folder / "tools" / "tests" / "test_x.py").write_text('"""Left out.\n\nAll of this text."""')
    return folder


def test_corpus_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "no-stdlib"))
    found = list(pairs(read_corpus([package(tmp_path / "site")])))
    assert len(found) == 61  # the text that stands everywhere once
    assert found[0] == Pair(
        "tools.part0",
        "act0",
        "(x)",
        "Do the thing of number 0.",
        "It takes x and returns the 0th of many things there are.",
    )
    kept_out = {p.module for p in found if held_out(p.module)}
    assert kept_out


def test_nothing_to_learn_from_quotes_what_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "no-stdlib"))
    site, pages = package(tmp_path / "site"), tmp_path / "documentation" / "manual"
    kept = next(n for n in range(60) if held_out(f"tools.part{n}"))
    secret = (
        f"Number {kept} alone knows how many birds have ever crossed the western mountains in "
        "winter, and tells nobody but those who ask it in time."
    )
    (site / "tools" / f"part{kept}.py").write_text(f'def act(x):\n    """{secret}"""\n')
    (site / "tools" / "copied.py").write_text(f'def own(x):\n    """Vendored: {secret}"""\n')
    pages.mkdir(parents=True)
    page = "<title>{0}</title><body><h1>{0}</h1><p>{1}</p><h2>More</h2><p>{2}</p></body>"
    other = "This part of the page is about other things, and quotes nothing at all."
    about = next(f"tools{n}" for n in range(100) if held_out(f"tools{n}"))
    (pages / "quoting.html").write_text(page.format("Quoting", secret, other))
    own = "This page is about a module which nothing may be learnt of."
    (pages / f"{about}.html").write_text(page.format("Other", own, own))

    texts, left_out = read_texts([site], tmp_path / "documentation")
    assert [t.held_out for t in texts if "birds" in t.text] == [True]
    assert [t.name for t in texts if t.source == "manual"] == ["More"]
    assert left_out["quotes a held-out docstring"] == 2
    assert left_out["page about a held-out module"] == 2


def test_the_corpus_is_written_with_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "no-stdlib"))
    file = tmp_path / "work" / "corpus.jsonl"
    counts = write_corpus(file, package(tmp_path / "site"), None)
    texts = load_texts(file)
    assert counts["texts"] == len(texts)
    assert {text.source for text in texts} == {"tools", "language reference"}
    assert counts["characters"]["tools"] == sum(
        len(text.document) for text in texts if text.source == "tools" and not text.held_out
    )
    assert next(text for text in texts if text.source == "tools").document.startswith(
        "# part0.act0(x)\nDo the thing of number 0.\n\nIt takes x"
    )
    for text in texts:
        assert text.held_out == (text.kind == "docstring" and held_out(text.group))


def test_held_out_is_the_rule_of_the_base_model() -> None:
    import hashlib

    for module in ("json", "json.decoder", "os.path", "asyncio.events"):
        number = int(hashlib.md5(module.encode()).hexdigest(), 16)
        assert held_out(module) == (number % 25 == 0)


def test_pairs_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "no-stdlib"))
    file = tmp_path / "work" / "pairs.jsonl"
    first = cached_pairs(file, package(tmp_path / "site"))
    assert len(file.read_text().splitlines()) == len(first) == 61
    assert json.loads(file.read_text().splitlines()[0])["module"] == "tools.part0"
    assert cached_pairs(file, tmp_path / "nowhere") == first
