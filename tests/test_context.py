"""Chunks whose vectors are made after reading what precedes them in their document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeGem
from helpers import close_to
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gem_rag import Document, Gem, Index, InputError
from gem_rag.cli.app import app
from gem_rag.documents.document import Chunk
from gem_rag.documents.splitting import Splitter
from gem_rag.rag import writer
from gem_rag.rag.database import Database
from gem_rag.rag.manifest import Manifest
from gem_rag.rag.reading import Reading, embed_readings, make_readings

PASSAGES = st.lists(
    st.lists(st.sampled_from(["pump", "lamp", "door"]), min_size=1, max_size=12).map(" ".join),
    max_size=12,
)
SENTENCES = [
    "The pump runs at night.",
    "It stops in the morning.",
    "The lamp is above the door.",
    "Nobody knows who put it there.",
    "A door has two sides.",
    "Both of them are painted green.",
]


def read(passages: Sequence[str], context_tokens: int) -> list[Reading]:
    return make_readings(passages, FakeGem().count_tokens, context_tokens)


@given(PASSAGES, st.integers(12, 40))
def test_passages_are_read_after_those_before_them(passages: list[str], most: int) -> None:
    readings = read(passages, most)
    assert len(readings) == len(passages)
    for number, (reading, passage) in enumerate(zip(readings, passages, strict=True)):
        assert reading.text[reading.start :] == passage
        before = "\n\n".join([*passages[:number], ""])
        assert before.endswith(reading.text[: reading.start])
        assert FakeGem().count_tokens(reading.text) <= most
        room = most // 2 - len(passage.split())
        if number and len(passages[number - 1].split()) <= room:
            assert reading.start, "there is room for the passage before"


@given(PASSAGES, PASSAGES)
def test_what_is_read_does_not_depend_on_what_follows(first: list[str], more: list[str]) -> None:
    assert read([*first, *more], 24)[: len(first)] == read(first, 24)


@given(PASSAGES)
def test_windows_read_no_token_more_than_twice(passages: list[str]) -> None:
    gem = FakeGem()
    windows: list[str] = []

    def embed(documents: Sequence[tuple[str, Any]]) -> np.ndarray:
        windows.extend(text for text, _ in documents)
        return np.zeros((sum(len(spans) for _, spans in documents), 1))

    gem.embed_chunks_batch = embed  # type: ignore[assignment, method-assign]
    gem.embed_documents = lambda texts: windows.extend(texts) or np.zeros((len(texts), 1))  # type: ignore[func-returns-value, assignment, method-assign, misc]
    readings = read(passages, 24)
    assert len(embed_readings(gem, readings)) == len(passages)  # type: ignore[arg-type]
    assert sum(map(gem.count_tokens, windows)) <= 2 * sum(map(gem.count_tokens, passages))


@given(PASSAGES)
def test_without_context_each_is_read_by_itself(passages: list[str]) -> None:
    assert read(passages, 0) == [Reading(passage) for passage in passages]


# -- in an index ---------------------------------------------------------------------------------


def open_index(folder: Path, gem: Any = None, context_tokens: int | None = 40) -> Index:
    return Index.open(
        folder / "index", gem or FakeGem(), chunk_tokens=16, context_tokens=context_tokens
    )


def document(name: str, sentences: Sequence[str] = SENTENCES) -> Document:
    return Document(name, "\n\n".join(sentences))


def passages(index: Index, source: str) -> list[str]:
    """What is embedded of a document's chunks, in order."""
    text = index.document(source).text
    with Database(index.folder).reading() as connection:
        rows = connection.execute(
            "SELECT chunks.title, start, stop FROM chunks JOIN documents "
            "ON documents.number = document WHERE source = ? ORDER BY start", (source,)
        )  # fmt: skip
        return [Chunk("", title, a, b, text[a:b]).passage for title, a, b in rows]


def vectors(index: Index) -> dict[bytes, np.ndarray]:
    """Vectors by what was read."""
    found: dict[bytes, np.ndarray] = {}

    def collect(commit: Any) -> None:
        digests = dict(commit.connection.execute("SELECT number, passage FROM chunks"))
        for chunks, block in commit.vectors.blocks():
            found.update(
                {digests[n]: v for n, v in zip(chunks, block, strict=True) if n in digests}
            )

    index._storage.read(collect)
    return found


def is_like_a_new_one(index: Index, folder: Path, documents: Sequence[Document]) -> bool:
    """Whether an index has what one of these documents alone has."""
    new = open_index(folder, index.gem)
    new.sync(documents)
    found, wanted = vectors(index), vectors(new)
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[digest], vector) for digest, vector in wanted.items()
    )


def test_an_index_has_the_vectors_of_chunks_in_context(tmp_path: Path, gem: Gem) -> None:
    index = Index.open(tmp_path / "index", gem, chunk_tokens=48, context_tokens=240)
    index.sync([document("a")])
    parts = passages(index, "a")
    assert len(parts) > 3
    text = "\n\n".join(parts)
    spans = [(text.index(part), text.index(part) + len(part)) for part in parts]
    in_context = gem.embed_chunks(text, spans)
    stored = np.stack(
        [
            vectors(index)[r.digest]
            for r in make_readings(parts, Splitter(gem.tokenizer, 48).count_tokens, 240)
        ]
    )
    assert close_to(stored, in_context, tolerance=1e-4)
    alone = gem.embed_documents(parts)
    assert close_to(alone[:1], in_context[:1], tolerance=1e-4)
    assert not close_to(alone[1:], in_context[1:], tolerance=1e-2)


def test_a_change_embeds_what_is_read_after_it(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    other = document("b", SENTENCES[:2])
    index.sync([document("a"), other])
    before = read(passages(index, "a"), 40)
    changed = document("a", [*SENTENCES[:4], "A gate has two sides.", SENTENCES[5], "The end."])
    embedded = index.sync([changed]).embedded
    after = read(passages(index, "a"), 40)
    assert embedded == len(set(after) - set(before)) < len(after)
    assert is_like_a_new_one(index, tmp_path / "new", [changed, other])


def test_an_interrupted_sync_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_BATCH", 2)

    class Failing(FakeGem):
        def embed_chunks_batch(self, documents: Any) -> np.ndarray:
            if self.embedded:
                raise KeyboardInterrupt
            return super().embed_chunks_batch(documents)

    texts = [document("a", SENTENCES[:3]), document("b", SENTENCES[3:])]
    with pytest.raises(KeyboardInterrupt):
        open_index(tmp_path, interrupted := Failing()).sync(texts)
    index = open_index(tmp_path)
    assert index.sync(texts).embedded == len(vectors(index)) - len(interrupted.embedded)
    assert is_like_a_new_one(index, tmp_path / "new", texts)


def test_reembedding_and_repair_keep_the_context(tmp_path: Path) -> None:
    texts = [document("a"), document("b", SENTENCES[::-1])]
    open_index(tmp_path).sync(texts)
    for file in (tmp_path / "index").glob("vectors-*.npy"):
        file.unlink()
    index = open_index(tmp_path)
    assert [finding.is_repaired for finding in index.examine(repair=True)] == [True]
    assert is_like_a_new_one(index, tmp_path / "new", texts)
    again = Index.reembed(tmp_path / "index", FakeGem("other", 32))  # type: ignore[arg-type]
    assert again.manifest.context_tokens == 40
    assert is_like_a_new_one(again, tmp_path / "other", texts)


def test_the_setting_is_the_index_s_own(tmp_path: Path) -> None:
    open_index(tmp_path).sync([document("a")])
    assert open_index(tmp_path, context_tokens=None).manifest.context_tokens == 40
    with pytest.raises(InputError, match="was made with context_tokens=40, not 0: leave it out"):
        open_index(tmp_path, context_tokens=0)


@pytest.mark.parametrize("tokens", [-1, 1, 16, 65])
def test_a_context_that_cannot_be_is_refused(tmp_path: Path, tokens: int) -> None:
    with pytest.raises(InputError, match=r"context_tokens must be 0, or more than chunk_tokens"):
        open_index(tmp_path, context_tokens=tokens)
    assert not (tmp_path / "index").exists()


def test_the_command_line_sets_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(SENTENCES))
    arguments = ["index", str(tmp_path / "a.txt"), "--index", str(tmp_path / "index")]
    done = CliRunner().invoke(app, [*arguments, "--chunk-tokens", "16", "--context-tokens", "64"])
    assert done.exit_code == 0, done.output
    assert Manifest.read_existing(tmp_path / "index").context_tokens == 64
