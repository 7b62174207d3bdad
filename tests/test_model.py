"""`load` shares one instance; a `Gem` embeds, generates and streams the same from many threads."""

from __future__ import annotations

import copy
import functools
import pickle
import queue
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from helpers import edit_json
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.engines.base import Sampling
from gem_rag.engines.stopping import cut_at_stop
from gem_rag.engines.transformers import TransformersEngine
from gem_rag.errors import GemError, InputError
from gem_rag.layout import Row
from gem_rag.model import Gem

TEXT = "Indexes hold vectors, and vectors come from text. The quick brown fox jumps."


@pytest.fixture
def folder(trained_folder: Path, tmp_path: Path) -> Path:
    """A GEM checkpoint that nobody else has loaded."""
    return Path(shutil.copytree(trained_folder, tmp_path / "model"))


@pytest.fixture
def constructions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every engine that is made."""
    made: list[int] = []
    original = TransformersEngine.__init__

    @functools.wraps(original)
    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(1)
        original(self, *args, **kwargs)

    monkeypatch.setattr(TransformersEngine, "__init__", counted)
    return made


@pytest.fixture(scope="module")
def short_gem(gem_folder: Any) -> Iterator[Gem]:
    """As `gem`, but reads at most 24 tokens at a time."""
    prompts = {"query": "query: ", "document": "passage: "}
    folder = gem_folder("llama", k=2, prompts=prompts, max_length=24)
    with gem_rag.load(folder) as loaded:
        yield loaded


def vectors_of(gem: Gem, *rows: Row) -> np.ndarray:
    """Vectors of rows, each embedded alone."""
    return np.concatenate([gem._engine.embed([row]) for row in rows])


def close_to(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> bool:
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() < tolerance)


# -- load --------------------------------------------------------------------------------------


def test_importing_gem_rag_imports_nothing_heavy() -> None:
    code = "import gem_rag, sys; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_public_names_can_be_imported() -> None:
    for name in gem_rag.__all__:
        assert getattr(gem_rag, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Jam'"):
        _ = gem_rag.Jam


def test_the_same_identity_gives_the_same_object(folder: Path, constructions: list[int]) -> None:
    gems = [
        gem_rag.load(folder),
        gem_rag.load(str(folder)),
        gem_rag.load(folder / ".." / folder.name),
        gem_rag.load(folder, "transformers"),
        gem_rag.load(folder, k=2),
    ]
    assert all(gem is gems[0] for gem in gems)
    assert len(constructions) == 1


def test_other_options_give_another_object(folder: Path) -> None:
    gems = [
        gem_rag.load(folder),
        gem_rag.load(folder, overlong="error"),
        gem_rag.load(folder, batch_tokens=64),
        gem_rag.load(folder, attention="dense"),
    ]
    assert len({id(gem) for gem in gems}) == len(gems)


def test_a_folder_that_has_changed_is_loaded_anew(folder: Path) -> None:
    before = gem_rag.load(folder)
    edit_json(folder / "gem_config.json", prompts={"query": "another: ", "document": ""})
    assert gem_rag.load(folder) is not before


def test_threads_that_load_at_once_share_one_engine(folder: Path, constructions: list[int]) -> None:
    barrier = threading.Barrier(16)

    def load(_: int) -> Gem:
        barrier.wait(timeout=30)
        return gem_rag.load(folder)

    with ThreadPoolExecutor(16) as pool:
        gems = list(pool.map(load, range(16)))
    assert all(gem is gems[0] for gem in gems)
    assert len(constructions) == 1


def test_the_last_close_frees_the_model(folder: Path, constructions: list[int]) -> None:
    first, second = gem_rag.load(folder), gem_rag.load(folder)
    first.close()
    assert len(second.embed_queries(["still there"])) == 1
    second.close()
    for use in (
        lambda: first.embed_queries(["gone"]),
        lambda: first.embed_chunks("gone", [(0, 1)]),
        lambda: first.generate(["gone"]),
        lambda: first.stream("gone"),
        lambda: gem_rag.load(first),
    ):
        with pytest.raises(GemError, match="closed: load the model again"):
            use()
    assert len(gem_rag.load(folder).embed_queries(["back"])) == 1
    assert len(constructions) == 2


def test_close_more_often_than_load_is_harmless(folder: Path) -> None:
    gem = gem_rag.load(folder)
    gem.close()
    gem.close()
    with gem_rag.load(folder) as again:
        assert again is not gem
        assert len(again.embed_queries(["back"])) == 1


def test_a_gem_can_be_loaded(folder: Path) -> None:
    gem = gem_rag.load(folder)
    with gem_rag.load(gem) as same:
        assert same is gem
    assert len(gem.embed_queries(["the first reference is still held"])) == 1


def test_an_engine_outlives_a_failed_load(folder: Path) -> None:
    with pytest.raises(InputError):
        gem_rag.load(folder, overlong="never")
    assert len(gem_rag.load(folder).embed_queries(["fine"])) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "transformer"}, "no engine 'transformer'.*did you mean 'transformers'"),
        ({"batch_token": 5}, "no option 'batch_token'.*did you mean 'batch_tokens'"),
        ({"devise": "cpu"}, "no option 'devise'.*did you mean 'device'"),
        ({"overlong": "never"}, "overlong must be one of truncate, windows, error, not 'never'"),
        ({"attention": "fleks"}, "attention must be one of .*, not 'fleks'"),
    ],
)
def test_a_wrong_argument_is_refused(
    arguments: dict[str, Any], message: str, trained_folder: Path
) -> None:
    with pytest.raises(InputError, match=message):
        gem_rag.load(trained_folder, **arguments)


def test_a_model_that_is_not_gem_trained_is_loaded_with_a_warning(plain_folder: Any) -> None:
    with pytest.warns(UserWarning, match="has not been GEM-trained"):
        gem = gem_rag.load(plain_folder("mistral"), k=3)
    assert gem.config.k == 3
    assert gem.embed_queries(["a text"]).shape == (1, gem.dim)


def test_a_gem_cannot_be_pickled_or_copied(gem: Gem) -> None:
    with pytest.raises(TypeError, match="pass the model's name instead"):
        pickle.dumps(gem)
    with pytest.raises(TypeError, match="pass the model's name instead"):
        copy.deepcopy(gem)


# -- embedding ---------------------------------------------------------------------------------


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
    alone = vectors_of(gem, *(Row.whole(gem.encode("passage: " + text)) for text in texts))
    with gem_rag.load(trained_folder, batch_tokens=batch_tokens, attention=attention) as other:
        assert close_to(other.embed_documents(texts), alone)


def test_no_texts_give_no_vectors(gem: Gem) -> None:
    assert gem.embed_documents([]).shape == (0, gem.dim)
    assert gem.embed_chunks("text", []).shape == (0, gem.dim)


def test_concatenated_special_tokens_give_longer_vectors(gem_folder: Any) -> None:
    with gem_rag.load(gem_folder("llama", k=2, pooling="concat")) as gem:
        assert gem.dim == 64
        assert gem.embed_queries(["a text"]).shape == (1, 64)


def test_prompts_stand_before_texts(gem: Gem) -> None:
    expected = vectors_of(gem, *(Row.whole(gem.encode(p + TEXT)) for p in ("query: ", "passage: ")))
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
    ids = gem.encode("query: " + text)
    assert set(ids[1:]).isdisjoint(range(len(helpers.SPECIAL_TOKENS)))
    assert close_to(gem.embed_queries([text]), vectors_of(gem, Row.whole(ids)))
    assert gem.count_tokens("query: " + text) == len(ids)


def test_vectors_that_are_not_numbers_are_an_error(folder: Path) -> None:
    gem = gem_rag.load(folder)
    gem._engine._encoder.special.embeddings.fill_(torch.nan)
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
    short_gem.embed_documents(["short"], overlong="error")
    with pytest.raises(InputError, match=r"has \d+ tokens and the model reads 24.*'windows'"):
        short_gem.embed_documents(["short", TEXT], overlong="error")


def test_an_overlong_text_is_cut_with_one_warning(short_gem: Gem) -> None:
    short_gem._warned = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = short_gem.embed_documents([TEXT, TEXT])
        short_gem.embed_queries([TEXT])
    assert len(caught) == 1
    assert "only its first 24 are embedded" in str(caught[0].message)
    assert Path(caught[0].filename) == Path(__file__)
    row = Row.whole(short_gem.encode("passage: " + TEXT)[:24])
    assert close_to(found, vectors_of(short_gem, row, row))


def test_windows_of_an_overlong_text_are_averaged(short_gem: Gem) -> None:
    ids, head = short_gem.encode("passage: " + TEXT), short_gem.encode("passage: ")
    assert ids[: len(head)] == head
    size = 24 - len(head)
    windows = [head + ids[at : at + size] for at in range(len(head), len(ids), size)]
    assert len(windows) > 2
    lengths = np.array([len(window) for window in windows])[:, None]
    total = (lengths * vectors_of(short_gem, *map(Row.whole, windows))).sum(axis=0)
    found = short_gem.embed_documents(["before", TEXT, "after"], overlong="windows")
    assert close_to(found[1], total / np.linalg.norm(total))
    assert close_to(found[[0, 2]], short_gem.embed_documents(["before", "after"]))


# -- chunks in context -------------------------------------------------------------------------


def token_spans(gem: Gem, prompt: str, document: str, spans: Sequence[tuple[int, int]]) -> Any:
    """Ids of an ASCII document, and the tokens of each span found by adding up lengths."""
    ids = gem.encode(prompt + document)
    ends = np.cumsum([len(gem._text.decode([i])) for i in ids]) - len(prompt)
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
    batches: list[Any] = []
    embed = short_gem._engine.embed
    monkeypatch.setattr(
        short_gem._engine, "embed", lambda rows: batches.append(rows) or embed(rows)
    )
    assert close_to(short_gem.embed_chunks(TEXT, [(72, 76), (66, 68), (68, 72)]),
                    expected[[2, 0, 1]])  # fmt: skip
    assert len(batches) == 1


@pytest.mark.parametrize("span", [(0, 0), (3, 2), (-1, 2), (0, 77), (76, 80)])
def test_a_span_outside_the_document_is_refused(gem: Gem, span: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"not a non-empty part of a document of 76 characters"):
        gem.embed_chunks(TEXT, [(0, 5), span])


def test_a_span_longer_than_the_model_reads_is_refused(short_gem: Gem) -> None:
    with pytest.raises(
        InputError, match=r"span has \d+ tokens and the model reads \d+: use shorter spans"
    ):
        short_gem.embed_chunks(TEXT, [(0, 76)])


# -- generating --------------------------------------------------------------------------------

PROMPTS = ["hello", "The quick brown fox", "x y z", "def add(first, second):\n"]


def written(gem: Gem, tokens: Sequence[int]) -> list[str]:
    """What each token says."""
    return [gem._text.decode([token]) for token in tokens]


def test_greedy_generation_is_that_of_transformers(talker: Gem, plain_folder: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(plain_folder("phi")).eval()
    for prompt, found in zip(PROMPTS, talker.generate(PROMPTS, max_tokens=12), strict=True):
        ids = torch.tensor([talker.encode(prompt)])
        with torch.inference_mode():
            expected = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
        assert list(found.tokens) == expected.tolist()
        assert found.text == talker._text.decode(expected.tolist())
        assert found.prompt_tokens == ids.shape[1]
        assert found.finish_reason == "length"


def test_prompts_can_be_token_ids(talker: Gem) -> None:
    ids = [talker.encode(prompt) for prompt in PROMPTS]
    assert talker.generate(ids, max_tokens=6) == talker.generate(PROMPTS, max_tokens=6)


@pytest.mark.parametrize("batch_tokens", [1, 60])
def test_generation_does_not_depend_on_the_batch(
    talker: Gem, gem_folder: Any, batch_tokens: int
) -> None:
    with gem_rag.load(gem_folder("phi"), batch_tokens=batch_tokens) as other:
        assert other.generate(PROMPTS, max_tokens=8) == talker.generate(PROMPTS, max_tokens=8)


def test_no_prompts_give_no_generations(talker: Gem) -> None:
    assert talker.generate([]) == []


def test_a_stop_string_may_cross_token_boundaries(talker: Gem) -> None:
    free = talker.generate(["hello"], max_tokens=20)[0]
    pieces = written(talker, free.tokens)
    stop = pieces[4][-1] + pieces[5][0]
    (found,) = talker.generate(["hello"], max_tokens=20, stop=stop)
    assert found.text == free.text[: free.text.index(stop)]
    assert found.finish_reason == "stop"
    assert found.tokens == free.tokens[: len(found.tokens)]
    assert stop in talker._text.decode(found.tokens)
    assert stop not in talker._text.decode(found.tokens[:-1])


def test_stop_strings_end_each_row_by_itself(talker: Gem) -> None:
    free = talker.generate(PROMPTS, max_tokens=16)
    stops = ["".join(written(talker, g.tokens[3 + i : 5 + i])) for i, g in enumerate(free[:3])]
    found = talker.generate(PROMPTS, max_tokens=16, stop=stops)
    assert found == [talker.generate([p], max_tokens=16, stop=stops)[0] for p in PROMPTS]
    for one, whole in zip(found, free, strict=True):
        text, stopped = cut_at_stop(whole.text, stops)
        assert (one.text, one.finish_reason) == (text, "stop" if stopped else "length")
    assert [one.finish_reason for one in found[:3]] == ["stop"] * 3
    assert len({len(one.tokens) for one in found}) > 1


def test_a_stop_string_in_the_prompt_does_not_stop(talker: Gem) -> None:
    free = talker.generate(["hello"], max_tokens=6)
    assert talker.generate(["hello"], max_tokens=6, stop=["hello", "ell"]) == free


def test_a_stop_string_begun_in_the_prompt_does_not_stop(talker: Gem) -> None:
    free = talker.generate(["hello"], max_tokens=6)
    stop = "o" + free[0].text[:2]
    assert stop not in free[0].text
    assert talker.generate(["hello"], max_tokens=6, stop=stop) == free


def changed_talker(gem_folder: Any, **generation_config: Any) -> Gem:
    """The talker with another generation_config.json."""
    folder = gem_folder("phi")
    edit_json(folder / "generation_config.json", **generation_config)
    return gem_rag.load(folder)


def test_generation_ends_at_the_end_of_text(talker: Gem, gem_folder: Any) -> None:
    (free,) = talker.generate(["hello"], max_tokens=8)
    end = free.tokens[3]
    first = free.tokens.index(end)
    with changed_talker(gem_folder, eos_token_id=[helpers.EOS, end]) as other:
        (found,) = other.generate(["hello"], max_tokens=8)
        assert found.finish_reason == "stop"
        assert found.tokens == free.tokens[:first]
        assert found.text == "".join(other.stream("hello", max_tokens=8))
        (exact,) = other.generate(["hello"], max_tokens=first + 1)
        assert exact == found


@pytest.mark.parametrize("pad", ["generated", None])
def test_a_generated_token_that_is_also_padding_counts(
    talker: Gem, gem_folder: Any, pad: str | None
) -> None:
    """A model may pad with a token that it also writes."""
    (free,) = talker.generate(["hello"], max_tokens=5)
    ids = {"pad_token_id": free.tokens[-1] if pad else None, "eos_token_id": None}
    with changed_talker(gem_folder, **ids) as other:
        assert other.generate(["hello"], max_tokens=5) == [free]


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.7, "seed": 3}], ids=["greedy", "sampled"]
)
def test_a_models_own_generation_settings_do_not_leak_in(
    talker: Gem, gem_folder: Any, settings: dict[str, Any]
) -> None:
    expected = talker.generate(PROMPTS[:2], max_tokens=10, **settings)
    own = {
        "do_sample": True,
        "temperature": 5.0,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.4,
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "max_length": 7,
        "suppress_tokens": [expected[0].tokens[0]],
    }
    with changed_talker(gem_folder, **own) as other:
        assert other.generate(PROMPTS[:2], max_tokens=10, **settings) == expected


def test_sampling_with_a_seed_is_repeatable(talker: Gem) -> None:
    settings = {"max_tokens": 10, "temperature": 1.0}
    first = talker.generate(["hello"], seed=1, **settings)
    state = torch.random.get_rng_state()
    assert talker.generate(["hello"], seed=1, **settings) == first
    assert talker.generate(["hello"], seed=2, **settings) != first
    assert "".join(talker.stream("hello", seed=1, **settings)) == first[0].text
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}])
def test_sampling_from_one_token_is_greedy(talker: Gem, narrow: dict[str, Any]) -> None:
    settings = {"temperature": 1.0, "seed": 1, **narrow}
    found = talker.generate(["hello"], max_tokens=8, **settings)
    assert found == talker.generate(["hello"], max_tokens=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"temperature": -0.1}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k must be 0 or more"),
        ({"stop": ["a", ""]}, "stop string may not be empty"),
        ({"stop": ""}, "stop string may not be empty"),
        ({"max_token": 5}, "no sampling setting 'max_token'.*did you mean 'max_tokens'"),
    ],
    ids=str,
)
def test_a_wrong_sampling_setting_is_refused(
    talker: Gem, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        talker.generate(["hello"], **settings)
    with pytest.raises(InputError, match=message):
        talker.stream("hello", **settings)


@pytest.mark.parametrize("use", [lambda g, p, **s: g.generate([p], **s), Gem.stream])
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("x " * 150, r"prompt has \d+ tokens and max_tokens is 100, more than .*context of 256"),
        ([], "prompt is empty"),
        ([5, helpers.VOCABULARY], f"no token {helpers.VOCABULARY}"),
        ([5, -1], "no token -1"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(
    talker: Gem, use: Callable[..., Any], prompt: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        use(talker, prompt, max_tokens=100)


def test_a_prompt_may_fill_the_context(talker: Gem) -> None:
    ids = talker.encode("x " * 150)[: talker.context - 4]
    assert len(talker.generate([ids], max_tokens=4)[0].tokens) == 4
    with pytest.raises(InputError, match="shorten one of them"):
        talker.generate([ids], max_tokens=5)


def test_one_prompt_must_be_in_a_list(talker: Gem) -> None:
    with pytest.raises(InputError, match="list of prompts, not one string"):
        talker.generate("hello")


def test_a_chat_is_generation_from_the_template(talker: Gem) -> None:
    messages = [{"role": "user", "content": "hello <|im_end|>"}]
    assert talker.has_chat_template
    (expected,) = talker.generate([talker.encode_chat(messages)], max_tokens=6)
    assert talker.chat(messages, max_tokens=6) == expected
    assert "".join(talker.stream_chat(messages, max_tokens=6)) == expected.text


# -- streaming ---------------------------------------------------------------------------------


def streaming_threads() -> list[threading.Thread]:
    """Workers that go on although they have had time to end."""
    found = [thread for thread in threading.enumerate() if thread.name == "gem-rag-stream"]
    for thread in found:
        thread.join(30)
    return [thread for thread in found if thread.is_alive()]


@pytest.mark.parametrize("stops", [0, 1, 2])
def test_a_stream_is_what_generate_gives(talker: Gem, stops: int) -> None:
    free = talker.generate([PROMPTS[1]], max_tokens=16)[0]
    pieces = written(talker, free.tokens)
    stop = [pieces[7] + pieces[8], pieces[6][-1] + pieces[7]][:stops]
    expected = talker.generate([PROMPTS[1]], max_tokens=16, stop=stop)[0]
    streamed = list(talker.stream(PROMPTS[1], max_tokens=16, stop=stop))
    assert expected.finish_reason == ("stop" if stops else "length")
    assert "".join(streamed) == expected.text
    assert len(streamed) > 2
    assert not streaming_threads()


@given(
    text=st.text("ab é€😀\ufffd", max_size=12),
    broken=st.none() | st.lists(st.integers(len(helpers.SPECIAL_TOKENS), helpers.VOCABULARY - 1)),
    stop=st.lists(st.text("ab é€", min_size=1, max_size=3), max_size=2),
)
def test_a_stream_shows_no_half_characters_and_no_stop_strings(
    talker: Gem, text: str, broken: list[int] | None, stop: list[str]
) -> None:
    """The pieces of any text, token by token, are the text up to its stop string."""
    assert all(len(talker.encode(character)) > 2 for character in "é€😀")  # several tokens each
    ids = talker.encode(text)[1:] if broken is None else broken
    pieces: queue.Queue[Any] = queue.Queue()
    text = ""
    for number, i in enumerate(ids, start=1):
        pieces.put([i])
        text = talker._text.decode(ids[:number])
        if any(s in text for s in stop):
            break  # generation ends here
    pieces.put(None)
    shown = list(talker._engine._shown(pieces, Sampling(stop=stop)))
    assert "".join(shown) == cut_at_stop(text, stop)[0]
    assert "" not in shown


@pytest.mark.parametrize("tokens", [1, 240])
def test_an_abandoned_stream_ends(talker: Gem, tokens: int) -> None:
    steps: list[int] = []
    hook = talker._engine._model.register_forward_hook(lambda *_: steps.append(1))
    stream = talker.stream("hello", max_tokens=tokens)
    next(stream)
    stream.close()
    hook.remove()
    assert len(steps) < 240
    assert not streaming_threads()
    assert len(talker.generate(["hello"], max_tokens=3)[0].tokens) == 3


def test_a_stream_that_is_never_read_starts_nothing(talker: Gem) -> None:
    stream = talker.stream("hello", max_tokens=200)
    assert not streaming_threads()
    assert len(talker.generate(["hello"], max_tokens=3)[0].tokens) == 3
    del stream


def test_a_half_read_stream_blocks_nobody(talker: Gem) -> None:
    stream = talker.stream("hello", max_tokens=40)
    first = next(stream)
    (whole,) = talker.generate(["hello"], max_tokens=40)
    talker.embed_queries(["meanwhile"])
    assert first + "".join(stream) == whole.text


@pytest.mark.parametrize("error", [ValueError("no luck"), MemoryError("no luck")])
def test_a_failure_in_the_worker_reaches_the_reader(
    talker: Gem, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(talker._engine._model, "generate", failing)
        with pytest.raises(GemError, match="generation failed: no luck"):
            list(talker.stream("hello", max_tokens=3))
    assert not streaming_threads()
    assert "".join(talker.stream("hello", max_tokens=3))


def test_a_stream_of_a_model_closed_meanwhile_fails_cleanly(folder: Path) -> None:
    gem = gem_rag.load(folder)
    stream = gem.stream("hello", max_tokens=3)
    gem.close()
    with pytest.raises(GemError, match="closed"):
        list(stream)


# -- many threads ------------------------------------------------------------------------------


def test_threads_get_what_one_caller_gets(talker: Gem) -> None:
    texts = [f"text number {i} {'word ' * (i % 5)}" for i in range(64)]

    def work(number: int) -> Any:
        text = texts[number]
        if number % 4 == 0:
            return talker.generate([text], max_tokens=6)[0]
        if number % 4 == 1:
            return "".join(talker.stream(text, max_tokens=6))
        if number % 4 == 2:
            return talker.generate([text], max_tokens=6, temperature=1.0, seed=number)[0]
        return talker.embed_documents([text])

    expected = [work(number) for number in range(64)]
    barrier = threading.Barrier(64)

    def at_once(number: int) -> Any:
        barrier.wait(timeout=60)
        return work(number)

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(at_once, range(64)))
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, np.ndarray):
            assert close_to(one, other, tolerance=1e-6)
        else:
            assert one == other


def test_the_overlong_warning_comes_once_from_many_threads(short_gem: Gem) -> None:
    short_gem._warned = False
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("always")
        list(pool.map(lambda _: short_gem.embed_documents([TEXT]), range(16)))
    assert len(caught) == 1


def test_max_tokens_is_what_the_context_leaves(talker: Gem) -> None:
    prompt = [5] * (talker.context - 3)
    (generation,) = talker.generate([prompt])
    assert len(generation.tokens) == 3
    assert talker.generate([prompt], max_tokens=None) == [generation]
    with pytest.raises(InputError, match="max_tokens is 4, more than the model's context"):
        talker.generate([prompt], max_tokens=4)


def test_a_special_token_named_as_stop_string_ends_the_text(talker: Gem) -> None:
    """No decoded text shows it, so it must be stopped at as a token."""
    engine = talker._engine
    sampling = Sampling(max_tokens=8, stop=("<|im_end|>",))
    marker = engine.text.markers["<|im_end|>"]
    assert marker in engine._generation_config(sampling).eos_token_id
    letters = talker.encode("ab")[-2:]
    found = engine._generation([*letters, marker, *letters], [1], sampling)
    assert (found.text, found.finish_reason) == ("ab", "stop")


def test_options_beside_a_loaded_gem_are_refused(gem: Gem) -> None:
    with pytest.raises(InputError, match="a Gem is loaded already"):
        gem_rag.load(gem, dtype="bfloat16")


def test_score_is_the_mean_log_probability_after_the_prompt(talker: Gem) -> None:
    texts = [" a", " hello there", " x y z and more of it", "b"]
    model = talker._engine._model
    prompt = talker.encode("The prompt:")
    expected = []
    for text in texts:
        tokens = talker.tokenizer.encode(text, add_special_tokens=False).ids
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        expected.append(float(logits.log_softmax(-1)[range(len(tokens)), tokens].mean()))
    assert np.allclose(talker.score("The prompt:", texts), expected, atol=1e-5)
    assert np.allclose(talker.score(prompt, texts[::-1]), expected[::-1], atol=1e-5)


@pytest.mark.parametrize("text", ["", "word " * 400])
def test_what_cannot_be_scored_is_refused(talker: Gem, text: str) -> None:
    with pytest.raises(InputError, match="tokens after a prompt of"):
        talker.score("prompt", ["fine", text])
