"""Generated documents in eight scripts: every character is in some passage, which always fits."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import gem_rag
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
