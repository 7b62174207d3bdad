"""`Gem` embeds texts, over-long ones by policy, and parts of a document in their context."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from flash_stand_in import use_packed_texts
from helpers import close_to, vectors_of
from tokenizers import normalizers

import gem_rag
from gem_rag.core.layout import Row
from gem_rag.engines.batch_embedder import BatchEmbedder
from gem_rag.errors import GemError, InputError
from gem_rag.model import Gem

TEXT = "Indexes hold vectors, and vectors come from text. The quick brown fox jumps."


@pytest.fixture(scope="module")
def short_gem(gem_folder: Any) -> Iterator[Gem]:
    """As `gem`, but reads at most 24 tokens at a time."""
    prompts = {"query": "query: ", "document": "passage: "}
    folder = gem_folder("llama", k=2, prompts=prompts, max_length=24)
    with gem_rag.load(folder) as loaded:
        yield loaded


def test_vectors_are_unit_rows_of_float32(gem: Gem) -> None:
    vectors = gem.embed_documents(["one", "two words", TEXT])
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, gem.dim)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
@pytest.mark.parametrize("attention", ["split", "dense"])
def test_vectors_do_not_depend_on_order_batch_or_lowering(
    gem: Gem, trained_folder: Path, batch_tokens: int, attention: str
) -> None:
    texts = [TEXT[: 1 + (11 * i) % 40] for i in range(12)]
    alone = vectors_of(gem, *(Row.whole(gem.tokenize("passage: " + text)) for text in texts))
    with gem_rag.load(trained_folder, batch_tokens=batch_tokens, attention=attention) as other:
        assert close_to(other.embed_documents(texts), alone)


@pytest.mark.parametrize("packed", [False, True])
def test_long_batches_are_embedded_in_halves(
    gem: Gem, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In passes of like length without a GPU's kernel; each row's vectors come in its place."""
    if packed:
        use_packed_texts(monkeypatch)
    rows = [Row.whole([5 + n % 60] * (1 + 7 * n % 100)) for n in range(40)]
    rows[7] = Row([5, 6, 7, 8], ((0, 2), (0, 4), (1, 3)))
    rows[9] = Row([5, 6, 7, 8], ())
    alone = vectors_of(gem, *rows)
    called = []
    monkeypatch.setattr(
        gem._engine.encoder, "forward", lambda *args: called.append(args)
    )  # the way of short batches
    assert close_to(gem._engine.embed(rows), alone)
    batches = list(gem._engine.embed_batches([rows[:30], rows[10:]]))
    assert close_to(np.concatenate([batches[0], batches[1][-10:]]), alone)
    assert not called


def test_flex_attention_is_gone_and_says_so(trained_folder: Path) -> None:
    with pytest.warns(DeprecationWarning, match="attention='flex' is now called attention='auto'"):
        gem_rag.load(trained_folder, attention="flex").close()


def test_a_batch_too_large_for_the_device_is_halved(
    gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text {number} of ten" for number in range(10)]
    wanted = gem.embed_documents(texts)
    embed, sizes = BatchEmbedder._embed, list[int]()

    def small_device(embedder: BatchEmbedder, rows: Sequence[Row]) -> Any:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(embedder, rows)

    monkeypatch.setattr(BatchEmbedder, "_embed", small_device)
    monkeypatch.setattr(gem._engine._embedder, "_fitting_tokens", None)
    with pytest.warns(UserWarning, match="is halved: load the model with batch_tokens="):
        vectors = gem.embed_documents(texts)
    assert close_to(vectors, wanted)
    assert max(sizes) == 10
    sizes.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once, and not tried again
        gem.embed_documents(texts)
    assert max(sizes) <= 3


def test_a_text_too_large_for_the_device_is_refused(
    gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(embedder: BatchEmbedder, rows: Sequence[Row]) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(BatchEmbedder, "_embed", no_room)
    monkeypatch.setattr(gem._engine._embedder, "_fitting_tokens", 1)
    with pytest.raises(GemError, match="does not fit into the memory of the device: shorten it"):
        gem.embed_documents(["a text", "another"])


def test_no_texts_give_no_vectors(gem: Gem) -> None:
    assert gem.embed_documents([]).shape == (0, gem.dim)
    assert gem.embed_chunks("text", []).shape == (0, gem.dim)


def test_concatenated_special_tokens_give_longer_vectors(gem_folder: Any) -> None:
    with gem_rag.load(gem_folder("llama", k=2, pooling="concat")) as gem:
        assert gem.dim == 64
        assert gem.embed_queries(["a text"]).shape == (1, 64)


def test_prompts_stand_before_texts(gem: Gem) -> None:
    expected = vectors_of(
        gem, *(Row.whole(gem.tokenize(p + TEXT)) for p in ("query: ", "passage: "))
    )
    assert close_to(gem.embed_queries([TEXT]), expected[:1])
    assert close_to(gem.embed_documents([TEXT]), expected[1:])
    assert not close_to(expected[:1], expected[1:], tolerance=1e-2)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fine", ""], "text 1 is empty"),
        (["fine", " \n\t"], "text 1 is empty"),
        ("one string", "list of strings, not one string"),
        ([None], "text 0 is NoneType, not a string"),
        (["fine", 3], "text 1 is int, not a string"),
        (["fine", "\ud800"], "lone surrogate"),
    ],
)
def test_a_text_that_cannot_be_embedded_is_refused(gem: Gem, texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gem.embed_documents(texts)


def test_a_text_that_names_special_tokens_is_plain_text(gem: Gem) -> None:
    text = "a </s> b <|im_start|> c <pad> <|gem_1|>"
    ids = gem.tokenize("query: " + text)
    assert set(ids[1:]).isdisjoint(range(len(helpers.SPECIAL_TOKENS)))
    assert close_to(gem.embed_queries([text]), vectors_of(gem, Row.whole(ids)))
    assert gem.count_tokens("query: " + text) == len(ids)


def test_vectors_that_are_not_numbers_are_an_error(folder: Path) -> None:
    gem = gem_rag.load(folder)
    gem._engine.encoder.special.embeddings.fill_(torch.nan)
    with pytest.raises(GemError, match="NaN for text 0 \\('a text'\\)"):
        gem.embed_documents(["a text"])
    with pytest.raises(GemError, match="NaN"):
        gem.embed_chunks("a text", [(0, 6)])


def test_progress_is_drawn_on_stderr_only(gem: Gem, capsys: pytest.CaptureFixture[str]) -> None:
    gem.embed_documents([TEXT])
    assert capsys.readouterr() == ("", "")
    gem.embed_documents([TEXT], progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "embedding" in err
    assert "1/1" in err


# -- texts longer than the model reads ---------------------------------------------------------


def test_an_overlong_text_is_refused_on_demand(short_gem: Gem) -> None:
    short_gem.embed_documents(["short"], truncation="error")
    with pytest.raises(InputError, match=r"has \d+ tokens and the model reads 24.*'windows'"):
        short_gem.embed_documents(["short", TEXT], truncation="error")


def test_an_overlong_text_is_cut_with_one_warning(short_gem: Gem) -> None:
    short_gem._truncation_warned = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = short_gem.embed_documents([TEXT, TEXT])
        short_gem.embed_queries([TEXT])
    assert len(caught) == 1
    assert "only its first 24 are embedded" in str(caught[0].message)
    assert Path(caught[0].filename) == Path(__file__)
    row = Row.whole(short_gem.tokenize("passage: " + TEXT)[:24])
    assert close_to(found, vectors_of(short_gem, row, row))


def test_windows_of_an_overlong_text_are_averaged(short_gem: Gem) -> None:
    ids, head = short_gem.tokenize("passage: " + TEXT), short_gem.tokenize("passage: ")
    assert ids[: len(head)] == head
    size = 24 - len(head)
    windows = [head + ids[at : at + size] for at in range(len(head), len(ids), size)]
    assert len(windows) > 2
    lengths = np.array([len(window) for window in windows])[:, None]
    total = (lengths * vectors_of(short_gem, *map(Row.whole, windows))).sum(axis=0)
    found = short_gem.embed_documents(["before", TEXT, "after"], truncation="windows")
    assert close_to(found[1], total / np.linalg.norm(total))
    assert close_to(found[[0, 2]], short_gem.embed_documents(["before", "after"]))


def test_the_truncation_warning_comes_once_from_many_threads(short_gem: Gem) -> None:
    short_gem._truncation_warned = False
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("always")
        list(pool.map(lambda _: short_gem.embed_documents([TEXT]), range(16)))
    assert len(caught) == 1


# -- chunks in context -------------------------------------------------------------------------


def token_spans(gem: Gem, prompt: str, document: str, spans: Sequence[tuple[int, int]]) -> Any:
    """Ids of an ASCII document, and the tokens of each span found by adding up lengths."""
    ids = gem.tokenize(prompt + document)
    ends = np.cumsum([len(gem._tokenizer.decode([i])) for i in ids]) - len(prompt)
    starts = np.concatenate([[-len(prompt)], ends[:-1]])
    found = []
    for start, end in spans:
        inside = np.flatnonzero((ends > start) & (starts < end))
        found.append((0 if start == 0 else int(inside[0]), int(inside[-1]) + 1))
    return ids, found


def test_chunks_are_embedded_in_context(gem: Gem) -> None:
    spans = [(49, 76), (0, 49), (8, 20), (0, len(TEXT))]
    ids, expected = token_spans(gem, "passage: ", TEXT, spans)
    found = gem.embed_chunks(TEXT, spans)
    assert close_to(found, vectors_of(gem, Row(ids, tuple(expected))))
    assert close_to(found[3:], gem.embed_documents([TEXT]))
    assert not close_to(found[:1], gem.embed_documents([TEXT[49:76]]), tolerance=1e-3)


def head_of(gem: Gem, prompt: str) -> int:
    """Tokens that stand before the text."""
    offsets = gem.tokenizer.encode(prompt + TEXT).offsets
    return next(i for i, (_, end) in enumerate(offsets) if end > len(prompt))


def test_chunks_of_an_overlong_document_are_read_in_windows(short_gem: Gem) -> None:
    """A window ends with its part, reaches back as far as it may, and begins as a text does."""
    spans = [(70, 76), (0, 4), (37, 41)]
    ids, parts = token_spans(short_gem, "passage: ", TEXT, spans)
    head = head_of(short_gem, "passage: ")
    room = 24 - head
    expected = []
    for start, stop in parts:
        first = max(head, stop - room)
        local = (start - first + head if start else 0, stop - first + head)
        expected.append(Row(ids[:head] + ids[first:stop], (local,)))
    assert parts[2][1] > 24
    assert parts[0][1] - parts[2][0] > room
    assert close_to(short_gem.embed_chunks(TEXT, spans), vectors_of(short_gem, *expected))


def test_neighbouring_chunks_share_a_window(
    short_gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, parts = token_spans(short_gem, "passage: ", TEXT, [(66, 68), (68, 72), (72, 76)])
    head = head_of(short_gem, "passage: ")
    first = parts[2][1] - (24 - head)
    assert parts[0][0] >= first
    local = tuple((start - first + head, stop - first + head) for start, stop in parts)
    expected = vectors_of(short_gem, Row(ids[:head] + ids[first : parts[2][1]], local))
    read = spy_on_rows(short_gem, monkeypatch)
    assert close_to(short_gem.embed_chunks(TEXT, [(72, 76), (66, 68), (68, 72)]),
                    expected[[2, 0, 1]])  # fmt: skip
    assert len(read) == 1


def test_chunks_of_many_documents_are_embedded_in_one_batch(
    gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [(TEXT, [(49, 76), (0, 49)]), (TEXT[:30], [(3, 20)]), ("none", []),
                 (TEXT[5:], [(0, 20), (8, 30), (30, 40)])]  # fmt: skip
    expected = np.concatenate([gem.embed_chunks(text, spans) for text, spans in documents])
    read = spy_on_rows(gem, monkeypatch)
    assert close_to(gem.embed_chunks_batch(documents), expected)
    assert sorted(len(row.spans) for row in read) == [1, 2, 3]
    assert gem.embed_chunks_batch([]).shape == (0, gem.dim)


def spy_on_rows(gem: Gem, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The rows that an engine reads from now on."""
    rows: list[Row] = []
    embed = gem._engine.embed_batches

    def spy(batches: Iterable[Sequence[Row]]) -> Iterator[Any]:
        kept = [list(batch) for batch in batches]
        rows.extend(row for batch in kept for row in batch)
        return embed(kept)

    monkeypatch.setattr(gem._engine, "embed_batches", spy)
    return rows


@pytest.mark.parametrize("span", [(0, 0), (3, 2), (-1, 2), (0, 77), (76, 80)])
def test_a_span_outside_the_document_is_refused(gem: Gem, span: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"not a non-empty part of a document of 76 characters"):
        gem.embed_chunks(TEXT, [(0, 5), span])


def test_a_span_longer_than_the_model_reads_is_refused(short_gem: Gem) -> None:
    with pytest.raises(
        InputError, match=r"span has \d+ tokens and the model reads \d+: use shorter spans"
    ):
        short_gem.embed_chunks(TEXT, [(0, 76)])


def test_a_text_that_the_tokenizer_drops_is_named(tmp_path: Path) -> None:
    tokenizer = helpers.build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    base = helpers.save_plain(tmp_path / "base", "llama", tokenizer)
    with gem_rag.load(helpers.save_gem(tmp_path / "gem", base)) as gem:
        assert gem.embed_documents(["a\u200bb"]).shape == (1, gem.dim)
        with pytest.raises(InputError, match=r"text 1 has no tokens \('.u200b'\): leave it out"):
            gem.embed_documents(["a", "\u200b"])
        with pytest.raises(InputError, match=r"text 2 has no tokens"):
            gem.embed_tokens([[5], [6], []])
