"""Chunks: within size, in order, losing no words, under the right headings."""

from __future__ import annotations

import itertools

import pytest
from fakes import FakeGem
from hypothesis import given
from hypothesis import strategies as st

from gem_rag.documents.document import Chunk, Document
from gem_rag.documents.splitting import Splitter

TOKENIZER = FakeGem().tokenizer
WORDS = st.lists(st.sampled_from(["alpha", "beta.", "gamma,", "\n\n", "\n", "# delta\n", "{x}"]))


def split(document: Document, size: int = 32) -> list[Chunk]:
    return Splitter(TOKENIZER, size).split(document)


@given(WORDS.map(" ".join), st.sampled_from(["text", "markdown"]))
def test_chunks_are_in_order_and_hold_all_words(text: str, kind: str) -> None:
    document = Document("s", text, kind=kind)  # type: ignore[arg-type]
    found = split(document)
    assert all(c.text == text[c.start : c.stop] for c in found)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(found))
    assert " ".join(c.text for c in found).split() == text.split()


@pytest.mark.parametrize("size", [8, 16, 64])
def test_passages_stay_within_the_size(size: int) -> None:
    text = "\n\n".join("word " * n for n in range(1, 40))
    document = Document("s", text, "A title")
    for c in split(document, size):
        assert len(TOKENIZER.encode(c.passage).ids) <= size


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "Guide\n\n# Setup\n\n" + "install it " * 20 + "\n\n## Use\n\n" + "run it " * 20,
            "markdown",
        ),
        (
            "Guide\n\nSetup\n=====\n\n" + "install it " * 20 + "\n\nUse\n---\n\n" + "run it " * 20,
            "text",
        ),
    ],
)
def test_a_chunk_stands_under_its_title_and_heading(text: str, kind: str) -> None:
    found = split(Document("s", text, "Guide", kind), 24)  # type: ignore[arg-type]
    titles = {word: c.title for c in found for word in ("install", "run") if word in c.text}
    assert titles["install"].split(" > ")[-1] in ("Setup", "Guide")
    assert titles["run"].startswith("Guide")
    last = [c for c in found if "run" in c.text][-1]
    assert last.passage.startswith("Guide > Setup > Use\n")


def test_a_chunk_that_begins_with_its_title_does_not_repeat_it() -> None:
    (only,) = split(Document("s", "The title\n\nSome text.", "The title"))
    assert only.passage == only.text


def test_ids_are_of_source_place_and_passage() -> None:
    def one(source: str = "s", title: str = "t", start: int = 0, text: str = "x") -> str:
        return Chunk(source, title, start, start + len(text), text).id

    assert one() == one()
    assert len({one(), one("r"), one(title="u"), one(start=1), one(text="y")}) == 5
