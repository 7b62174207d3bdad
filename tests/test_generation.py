"""`Gem` generates as transformers does, stops where it is told to, and scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from helpers import edit_json, written
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.errors import InputError
from gem_rag.generation.listeners import GenerationListener
from gem_rag.generation.replies import ChatReply
from gem_rag.generation.sampling import Sampling
from gem_rag.generation.stop_strings import cut_at_stop
from gem_rag.model import Gem

PROMPTS = ["hello", "The quick brown fox", "x y z", "def add(first, second):\n"]


def test_greedy_generation_is_that_of_transformers(talker: Gem, plain_folder: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(plain_folder("phi")).eval()
    for prompt, found in zip(PROMPTS, talker.generate(PROMPTS, max_tokens=12), strict=True):
        ids = torch.tensor([talker.tokenize(prompt)])
        with torch.inference_mode():
            expected = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
        assert list(found.tokens) == expected.tolist()
        assert found.text == talker._tokenizer.decode(expected.tolist())
        assert found.prompt_tokens == ids.shape[1]
        assert found.finish_reason == "length"


def test_prompts_can_be_token_ids(talker: Gem) -> None:
    ids = [talker.tokenize(prompt) for prompt in PROMPTS]
    assert talker.generate(ids, max_tokens=6) == talker.generate(PROMPTS, max_tokens=6)


@pytest.mark.parametrize("batch_tokens", [1, 60])
def test_generation_does_not_depend_on_the_batch(
    talker: Gem, gem_folder: Any, batch_tokens: int
) -> None:
    with gem_rag.load(gem_folder("phi"), batch_tokens=batch_tokens) as other:
        assert other.generate(PROMPTS, max_tokens=8) == talker.generate(PROMPTS, max_tokens=8)


def test_what_was_there_before_counts_less(talker: Gem, plain_folder: Any) -> None:
    """As transformers has it, where it has it; without end tokens, which would count as text."""
    model = AutoModelForCausalLM.from_pretrained(plain_folder("phi")).eval()
    for prompt in PROMPTS:
        ids = torch.tensor([talker.tokenize(prompt)])
        with torch.inference_mode():
            expected = model.generate(
                ids, do_sample=False, max_new_tokens=12, repetition_penalty=1.5
            )[0, ids.shape[1] :]
        (found,) = talker.generate([prompt], max_tokens=12, repetition_penalty=1.5)
        assert list(found.tokens) == expected.tolist()
    (free,) = talker.generate(["hello"], max_tokens=30)
    assert len(set(free.tokens)) < 30  # a model like this repeats itself
    (present,) = talker.generate(["hello"], max_tokens=30, presence_penalty=2)
    (frequent,) = talker.generate(["hello"], max_tokens=30, frequency_penalty=2)
    with talker.language_model() as model, torch.inference_mode():
        for found, by_times in ((present, False), (frequent, True)):
            for n, token in enumerate(found.tokens):
                before = [*talker.tokenize("hello"), *found.tokens[:n]]
                scores = model(torch.tensor([before])).logits[0, -1]
                for other in set(found.tokens[:n]):
                    scores[other] -= 2 * (found.tokens[:n].count(other) if by_times else 1)
                assert token == int(scores.argmax())


def test_min_p_leaves_the_likeliest(talker: Gem) -> None:
    (greedy,) = talker.generate(["hello"], max_tokens=12)
    (sampled,) = talker.generate(["hello"], max_tokens=12, temperature=1.0, min_p=1.0, seed=1)
    assert sampled == greedy


@pytest.mark.parametrize("penalty", [{}, {"presence_penalty": 2.0, "temperature": 0.5, "seed": 1}])
def test_log_probabilities_are_the_models(talker: Gem, penalty: Any) -> None:
    (found,) = talker.generate(["hello"], max_tokens=8, logprobs=3, **penalty)
    assert [one.token for one in found.logprobs] == list(found.tokens)
    with talker.language_model() as model, torch.inference_mode():
        ids = [*talker.tokenize("hello"), *found.tokens]
        expected = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    for n, one in enumerate(found.logprobs):
        row = expected[len(ids) - len(found.tokens) - 1 + n]
        assert one.logprob == pytest.approx(float(row[one.token]), abs=1e-4)
        assert one.text == talker._tokenizer.decode([one.token])
        values, likeliest = row.topk(3)
        assert [other.token for other in one.top] == likeliest.tolist()
        assert [other.logprob for other in one.top] == pytest.approx(values.tolist(), abs=1e-4)
    (without,) = talker.generate(["hello"], max_tokens=8, **penalty)
    assert without.logprobs == ()
    assert without.tokens == found.tokens


def test_log_probabilities_of_a_grammar_are_among_what_it_allows(talker: Gem) -> None:
    schema = {"type": "boolean"}
    (found,) = talker.generate(["hello"], max_tokens=9, schema=schema, logprobs=20)
    first = found.logprobs[0]
    assert {one.text[0] for one in first.top} == {"t", "f"}  # and nothing that cannot be
    assert sum(np.exp(one.logprob) for one in first.top) == pytest.approx(1, abs=1e-3)


def test_log_probabilities_end_with_the_text(talker: Gem) -> None:
    free = talker.generate(["hello"], max_tokens=20)[0]
    stop = written(talker, free.tokens)[4]
    (found,) = talker.generate(["hello"], max_tokens=20, stop=stop, logprobs=0)
    assert [one.token for one in found.logprobs] == list(found.tokens)
    assert {one.top for one in found.logprobs} == {()}


@pytest.mark.parametrize(
    "setting",
    [
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"presence_penalty": 3},
        {"frequency_penalty": float("nan")},
        {"logprobs": 21},
        {"logprobs": -1},
    ],
)
def test_settings_out_of_range_are_refused(talker: Gem, setting: Any) -> None:
    with pytest.raises(InputError, match=f"{next(iter(setting))} must be"):
        talker.generate(["hello"], **setting)


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
    assert stop in talker._tokenizer.decode(found.tokens)
    assert stop not in talker._tokenizer.decode(found.tokens[:-1])


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
    ids = talker.tokenize("x " * 150)[: talker.context_length - 4]
    assert len(talker.generate([ids], max_tokens=4)[0].tokens) == 4
    with pytest.raises(InputError, match="shorten one of them"):
        talker.generate([ids], max_tokens=5)


def test_one_prompt_must_be_in_a_list(talker: Gem) -> None:
    with pytest.raises(InputError, match="list of prompts, not one string"):
        talker.generate("hello")


def test_a_chat_is_generation_from_the_template(talker: Gem) -> None:
    messages = [{"role": "user", "content": "hello <|im_end|>"}]
    assert talker.has_chat_template
    (expected,) = talker.generate([talker.tokenize_chat(messages)], max_tokens=6)
    assert talker.chat(messages, max_tokens=6) == ChatReply(**vars(expected))
    assert "".join(talker.stream_chat(messages, max_tokens=6)) == expected.text


def test_max_tokens_is_what_the_context_leaves(talker: Gem) -> None:
    prompt = [5] * (talker.context_length - 3)
    (generation,) = talker.generate([prompt])
    assert len(generation.tokens) == 3
    assert talker.generate([prompt], max_tokens=None) == [generation]
    with pytest.raises(InputError, match="max_tokens is 4, more than the model's context"):
        talker.generate([prompt], max_tokens=4)


def test_a_special_token_named_as_stop_string_ends_the_text(talker: Gem) -> None:
    """No decoded text shows it, so it must be stopped at as a token."""
    engine = talker._engine
    sampling = Sampling(max_tokens=8, stop=("<|im_end|>",))
    marker = engine.tokenizer.control_tokens["<|im_end|>"]
    letters = talker.tokenize("ab")[-2:]
    listener = GenerationListener(1, sampling, engine.tokenizer.decode)
    request = engine._request([1], sampling, listener, 0)
    for token in [*letters, marker, *letters]:
        request.take(token)
    found = listener.generation.result(0)
    assert (found.text, found.finish_reason) == ("ab", "stop")


def test_score_is_the_mean_log_probability_after_the_prompt(talker: Gem) -> None:
    texts = [" a", " hello there", " x y z and more of it", "b"]
    model = talker._engine._model
    prompt = talker.tokenize("The prompt:")
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
