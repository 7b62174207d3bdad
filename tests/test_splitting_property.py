"""Generated documents in eight scripts: every character is in some passage, which always fits."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gem_rag
from gem_rag.documents.conversion import Converter
from gem_rag.documents.document import Document
from gem_rag.documents.splitting import Splitter
from gem_rag.documents.structure import parse_structure, split_sections

SIZE = 48
WORDS = (
    "the quick brown fox naïve résumé straße",
    "насос открыть клапан холл дверь",
    "αντλία βαλβίδα πόρτα",
    "مضخة صمام باب الضمان",
    "משאבה שסתום דלת",
    "保証期間は購入日から 電池とゴム足 フィルター",
    "การรับประกันมีผล ยกเว้นแบตเตอรี่",
    "वारंटी बैटरी पंप",
    "🔧 🚪 ----- ===== *** ``` # > | [l](u) <b> \u200b",
)
plain_word = st.sampled_from([word for words in WORDS[:-1] for word in words.split()])
word = st.sampled_from([word for words in WORDS for word in words.split()] + ["0f" * 300])
line = st.lists(word, max_size=20).map(" ".join)


@st.composite
def block(draw: st.DrawFn, kind: str) -> str:
    text = draw(line)
    shape = draw(st.sampled_from(["text", "heading", "fence", "table", "rule", "quote", "any"]))
    if shape == "heading" and kind == "markdown":
        return "#" * draw(st.integers(1, 6)) + " " + text
    if shape == "heading":
        return f"{text}\n{draw(st.sampled_from('=-~^')) * max(3, len(text))}"
    if shape == "fence":
        return f"```\n# comment {text}\n```"
    if shape == "table":
        rows = "\n".join(f"| {n} | {draw(word)} |" for n in range(draw(st.integers(0, 12))))
        return f"| part | b |\n|---|---|\n{rows}"
    if shape == "rule":
        return "-" * draw(st.integers(3, 80))
    if shape == "quote":
        return f"> # {text}"
    if shape == "any":
        return draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    return "\n".join(draw(st.lists(line, max_size=4)))


@st.composite
def documents(draw: st.DrawFn) -> Document:
    kind = draw(st.sampled_from(["markdown", "rst", "text"]))
    separator = draw(st.sampled_from(["\n\n", "\n"]))
    text = separator.join(draw(st.lists(block(kind), max_size=8)))
    return Document("s", text, draw(line)[:100], kind)  # type: ignore[arg-type]


@st.composite
def pages(draw: st.DrawFn) -> tuple[str, list[str]]:
    """An HTML page, and the words that it shows."""
    shown: list[str] = []

    def words(most: int = 12) -> str:
        chosen = draw(st.lists(plain_word, min_size=1, max_size=most))
        shown.extend(chosen)
        return html.escape(" ".join(chosen))

    body = []
    for shape in draw(
        st.lists(st.sampled_from(["h1", "h2", "h5", "p", "pre", "table", "ul"]), min_size=1)
    ):
        if shape == "table":
            rows = range(draw(st.integers(1, 6)))
            cells = "".join(f"<tr><td>{words(3)}</td><td>{words(3)}</td></tr>" for _ in rows)
            body.append(f"<table><tr><th>{words(2)}</th><th>b</th></tr>{cells}</table>")
        elif shape == "ul":
            body.append(f"<ul><li>{words()}</li><li>{words()}</li></ul>")
        else:
            body.append(f"<{shape}>{words(60)}</{shape}>")
    title = html.escape(" ".join(draw(st.lists(plain_word, max_size=5))))
    return f"<html><head><title>{title}</title></head><body>{''.join(body)}</body></html>", shown


def tokenizer() -> tokenizers.Tokenizer:
    """gem-tiny's, which falls back to bytes outside of Latin scripts."""
    folder = Path(gem_rag.__file__).parent / "assets" / "gem-tiny"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


TOKENIZER = tokenizer()
SPLITTER = Splitter(TOKENIZER, SIZE)


@given(documents())
def test_every_character_is_in_a_passage_that_fits(document: Document) -> None:
    text = document.text
    covered = bytearray(len(text))
    for chunk in SPLITTER.split(document):
        assert text[chunk.start : chunk.stop] == chunk.text
        assert len(TOKENIZER.encode(chunk.passage).ids) <= SIZE or len(chunk.text) == 1
        covered[chunk.start : chunk.stop] = b"\1" * len(chunk.text)
    assert not [c for c, is_covered in zip(text, covered, strict=True) if not is_covered and
                not c.isspace()]  # fmt: skip


@given(documents())
def test_no_title_is_another_sections(document: Document) -> None:
    sections = split_sections(document, parse_structure(document))
    for chunk in SPLITTER.split(document):
        own = {part for s in sections if s.start < chunk.stop and chunk.start < s.stop
               for part in s.path}  # fmt: skip
        others = {part for s in sections for part in s.path} - own - {document.title}
        last = chunk.title.split("\n")[0].split(" > ")[-1]
        assert last not in others


@pytest.fixture(scope="module")
def converter() -> Iterator[Converter]:
    with Converter() as converter:
        yield converter


@given(page=pages())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_word_that_a_page_shows_is_in_a_passage(
    tmp_path: Path, converter: Converter, page: tuple[str, list[str]]
) -> None:
    text, shown = page
    file = tmp_path / "page.html"
    file.write_text(text)
    converted = converter.convert(file, "html")
    document = Document("s", converted.text, converted.title, "markdown")
    # A long word may be divided between chunks.
    passages = "".join(chunk.text for chunk in SPLITTER.split(document))
    assert not [word for word in shown if word not in passages]
