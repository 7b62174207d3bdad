"""vLLM generates what it generates alone, whatever is embedded beside it."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import SMALL

import gem_rag
from gem_rag.engines.vllm.engine_args import run_in_process
from gem_rag.errors import GemError, InputError
from gem_rag.model import Gem

PROMPTS = ("Return the", "The list is", "Raises ValueError if", "A file object")
TEXTS = ("open a file for reading", "sort a list in place", "x", "def f(a):\n    return a")


@pytest.fixture(scope="module")
def alone() -> list[tuple[int, ...]]:
    """What vLLM by itself generates greedily, without any of our code in it."""
    with run_in_process(True):
        import vllm

        folder = str(gem_rag.load("gem-tiny")._checkpoint.path)
        llm = vllm.LLM(folder, **SMALL)
        greedy = vllm.SamplingParams(temperature=0, max_tokens=24)
        tokenizer = llm.get_tokenizer()
        ids = [{"prompt_token_ids": tokenizer.encode(prompt)} for prompt in PROMPTS]
        outputs = llm.generate(ids, greedy, use_tqdm=False)
        llm.llm_engine.engine_core.shutdown()
        del llm
        vllm.distributed.cleanup_dist_env_and_memory()
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def test_200_alternations_with_embeddings_change_no_token(
    alone: list[tuple[int, ...]], tiny: Gem
) -> None:
    vectors = tiny.embed_documents(TEXTS)
    for turn in range(200):
        which = turn % len(PROMPTS)
        (generation,) = tiny.generate([PROMPTS[which]], max_tokens=24)
        assert generation.tokens == alone[which][: len(generation.tokens)]
        assert len(generation.tokens) == 24 or generation.finish_reason == "stop"
        text = turn % len(TEXTS)
        assert np.allclose(tiny.embed_documents([TEXTS[text]])[0], vectors[text], atol=1e-5)


def test_32_requests_at_once_get_what_each_gets_alone(
    alone: list[tuple[int, ...]], tiny: Gem
) -> None:
    vectors = tiny.embed_documents(TEXTS)

    def request(number: int) -> None:
        which = number // 2 % 4
        if number % 2:
            found = tiny.embed_documents([TEXTS[which]])[0]
            assert np.allclose(found, vectors[which], atol=1e-5)
        elif number % 3:
            (generation,) = tiny.generate([PROMPTS[which]], max_tokens=24)
            assert generation.tokens == alone[which][: len(generation.tokens)]
        else:
            text = "".join(tiny.stream(PROMPTS[which], max_tokens=24))
            assert text == tiny._tokenizer.decode(alone[which])

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(request, range(32)))


@pytest.mark.parametrize("stop", [(), (".",), ("value of", "zzz"), ("<|end|>",)])
def test_texts_and_reasons_are_those_of_the_transformers_engine(
    stop: tuple[str, ...], tiny: Gem, plain_tiny: Gem
) -> None:
    settings = {"max_tokens": 24, "stop": stop}
    wanted = plain_tiny.generate(PROMPTS, **settings)
    assert tiny.generate(PROMPTS, **settings) == wanted
    for prompt, generation in zip(PROMPTS, wanted, strict=True):
        assert "".join(tiny.stream(prompt, **settings)) == generation.text


def test_scores_are_those_of_the_transformers_engine(tiny: Gem, plain_tiny: Gem) -> None:
    continuations = [" list is", " file", " value of the current line", " x"]
    found, wanted = (gem.score("Return the", continuations) for gem in (tiny, plain_tiny))
    assert np.allclose(found, wanted, atol=1e-3)


def test_scores_after_prompts_of_their_own_are_too(tiny: Gem, plain_tiny: Gem) -> None:
    pairs = [("Return the", " list"), ("A file is", " opened by its name"), ("Return the", " x y")]
    found, wanted = (gem.score_pairs(pairs) for gem in (tiny, plain_tiny))
    assert np.allclose(found, wanted, atol=1e-3)


def test_a_continuation_may_fill_the_context(tiny: Gem, plain_tiny: Gem) -> None:
    words = " word" * 400
    ids = tiny._tokenizer.encode_continuation(words)
    fitting = tiny._tokenizer.decode(ids[: tiny.context_length - len(tiny.tokenize("Return")) - 2])
    found, wanted = (gem.score("Return", [fitting]) for gem in (tiny, plain_tiny))
    assert np.allclose(found, wanted, atol=1e-3)


def test_sampling_with_a_seed_is_repeatable(tiny: Gem) -> None:
    settings = {"max_tokens": 16, "temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 7}
    assert tiny.generate(PROMPTS, **settings) == tiny.generate(PROMPTS, **settings)


def test_a_text_is_held_to_a_schema(tiny: Gem) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["name", "count"],
        "additionalProperties": False,
    }
    (generation,) = tiny.generate(["Answer: "], max_tokens=100, schema=schema)
    answer = json.loads(generation.text)
    assert set(answer) == {"name", "count"}
    assert 0 <= answer["count"] <= 9


def test_both_engines_hold_a_text_to_the_same_schema(tiny: Gem, plain_tiny: Gem) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    found, wanted = (
        gem.generate(["Answer: "], max_tokens=100, schema=schema) for gem in (tiny, plain_tiny)
    )
    assert found == wanted


def test_both_engines_call_the_same_tool(tiny: Gem, plain_tiny: Gem) -> None:
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    for choice in ("auto", "any", "none"):
        found, wanted = (
            gem.chat(messages, [tool], choice, max_tokens=60) for gem in (tiny, plain_tiny)
        )
        assert found == wanted
        assert bool(found.tool_calls) or choice != "any"


def test_a_schema_that_is_none_is_refused(tiny: Gem) -> None:
    with pytest.raises(InputError, match="cannot be followed"):
        tiny.generate(["Answer: "], max_tokens=8, schema={"type": "nothing"})
    assert tiny.generate(["Return the"], max_tokens=2)  # the engine goes on


def test_a_stream_that_nobody_reads_ends(tiny: Gem) -> None:
    stream = tiny.stream("Return the", max_tokens=200)
    next(stream)
    stream.close()
    tiny.embed_documents(["x"])  # the driver has taken the abort before this
    assert not tiny._engine._driver._listeners


def test_closing_fails_what_is_under_way() -> None:
    gem = gem_rag.load("gem-tiny", engine="vllm", in_process=True, enforce_eager=True, **SMALL)
    started, errors = threading.Event(), []

    def read() -> None:
        try:
            for _ in gem.stream("Return the", max_tokens=240):
                started.set()
        except GemError as error:
            errors.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(60)
    gem.close()
    reader.join(60)
    assert not reader.is_alive()
    assert not errors or "closed" in errors[0]
    with pytest.raises(GemError, match="closed"):
        gem.embed_documents(["x"])


def test_what_a_small_model_repeats_comes_to_an_end(tiny: Gem, plain_tiny: Gem) -> None:
    """As on the other engine: strings, numbers, and times, which cannot end everywhere."""
    ids = tiny.tokenize_chat([{"role": "user", "content": "What is the value?"}])
    for schema in ({"type": "number"}, {"type": "string"}, {"type": "string", "format": "time"}):
        [found] = tiny.generate([ids], schema=schema, max_tokens=128)
        assert (found.finish_reason, found.schema_error) == ("stop", "")
        assert found == plain_tiny.generate([ids], schema=schema, max_tokens=128)[0]
        assert len(found.tokens) > 40


@pytest.mark.parametrize(
    "settings",
    [
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.3},
        {"temperature": 1.0, "min_p": 1.0, "seed": 1},
        {"schema": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 2}},
    ],
)
def test_penalties_and_log_probabilities_are_those_of_the_other_engine(
    tiny: Gem, settings: dict[str, object]
) -> None:
    with gem_rag.load("gem-tiny", "transformers") as other:
        expected = other.generate(PROMPTS, max_tokens=12, logprobs=3, **settings)  # type: ignore[arg-type]
    found = tiny.generate(PROMPTS, max_tokens=12, logprobs=3, **settings)  # type: ignore[arg-type]
    for one, two in zip(found, expected, strict=True):
        assert (one.text, one.tokens) == (two.text, two.tokens)
        for a, b in zip(one.logprobs, two.logprobs, strict=True):
            assert (a.token, a.text) == (b.token, b.text)
            assert [t.token for t in a.top] == [t.token for t in b.top]
            probabilities = [[t.logprob for t in (x, *x.top)] for x in (a, b)]
            assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-3)


def test_one_prompt_twice_is_sampled_twice(tiny: Gem) -> None:
    options = {"max_tokens": 12, "temperature": 1.5, "seed": 3}
    first, second = tiny.generate(["The list is"] * 2, **options)  # type: ignore[arg-type]
    assert first.text != second.text
    assert tiny.generate(["The list is"] * 2, **options) == [first, second]  # type: ignore[arg-type]
