"""gem-tiny's corpus: which texts it has, and which are held out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from gem_tiny.texts import is_held_out, load_texts, read_texts, write_corpus


@pytest.mark.usefixtures("without_stdlib")
def test_no_training_text_quotes_a_held_out_docstring(package: Path, tmp_path: Path) -> None:
    pages = tmp_path / "documentation" / "manual"
    kept = next(n for n in range(60) if is_held_out(f"tools.part{n}"))
    secret = (
        f"Number {kept} alone knows how many birds have ever crossed the western mountains in "
        "winter, and tells nobody but those who ask it in time."
    )
    (package / "tools" / f"part{kept}.py").write_text(f'def act(x):\n    """{secret}"""\n')
    (package / "tools" / "copied.py").write_text(f'def own(x):\n    """Vendored: {secret}"""\n')
    pages.mkdir(parents=True)
    page = "<title>{0}</title><body><h1>{0}</h1><p>{1}</p><h2>More</h2><p>{2}</p></body>"
    other = "This part of the page is about other things, and quotes nothing at all."
    about = next(f"tools{n}" for n in range(100) if is_held_out(f"tools{n}"))
    (pages / "quoting.html").write_text(page.format("Quoting", secret, other))
    own = "This page is about a module which nothing may be learnt of."
    (pages / f"{about}.html").write_text(page.format("Other", own, own))

    texts, excluded = read_texts([package], tmp_path / "documentation")
    assert [t.held_out for t in texts if "birds" in t.text] == [True]
    assert [t.name for t in texts if t.source == "manual"] == ["More"]
    assert excluded["quotes a held-out docstring"] == 2
    assert excluded["page about a held-out module"] == 2


@pytest.mark.usefixtures("without_stdlib")
def test_the_corpus_is_written_with_counts(package: Path, tmp_path: Path) -> None:
    file = tmp_path / "work" / "corpus.jsonl"
    counts = write_corpus(file, package, None)
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
        assert text.held_out == (text.kind == "docstring" and is_held_out(text.group))


def test_held_out_is_the_rule_of_the_base_model() -> None:
    for module in ("json", "json.decoder", "os.path", "asyncio.events"):
        number = int(hashlib.md5(module.encode()).hexdigest(), 16)
        assert is_held_out(module) == (number % 25 == 0)
