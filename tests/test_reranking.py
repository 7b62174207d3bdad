"""Reranked hits: scores are what the model itself says, and the order is that of both rankings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeGem

import gem_rag
from gem_rag.core.config import GemConfig
from gem_rag.documents.document import Chunk
from gem_rag.errors import InputError
from gem_rag.model import Gem
from gem_rag.rag.hits import Hit
from gem_rag.rag.reranking import Method, relevance, rerank

QUESTION = "What moves water?"
TEXTS = (
    "A lamp gives light at night.",
    "A pump moves water through the pipes of a house, from the well to the roof.",
    "Doors.",
    "Braces {question} and {passages} are text.",
)
OWN = "Read:\n{passages}\n\nQ: {question}\nA:"


def hit(text: str, score: float = 0.5) -> Hit:
    return Hit(Chunk(text[:9], "", 0, len(text), text), score, "line 3")


def log_prob(gem: Gem, prompt: list[int], text: str) -> np.ndarray:
    """Of each of a text's tokens after a prompt, by one plain pass."""
    tokens = gem.hf_tokenizer.encode(text, add_special_tokens=False)
    with gem.language_model() as model, torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0]
    predicted = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
    return predicted[range(len(tokens)), tokens].numpy()


def chat_ids(gem: Gem, text: str) -> list[int]:
    rendered = gem.hf_tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    return list(gem.hf_tokenizer.encode(rendered, add_special_tokens=False))


@pytest.fixture(scope="module")
def plain(gem_folder: Any) -> Iterator[Gem]:
    """A model without a chat template."""
    folder: Path = gem_folder("llama")
    (folder / "chat_template.jinja").unlink()
    with gem_rag.load(folder) as loaded:
        assert not loaded.has_chat_template
        yield loaded


@pytest.fixture(scope="module")
def with_prompt(gem_folder: Any) -> Iterator[Gem]:
    """A model with a prompt of its own."""
    with gem_rag.load(gem_folder("llama", answer_prompt=OWN)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tiny() -> Iterator[Gem]:
    with gem_rag.load("gem-tiny") as loaded:
        yield loaded


# -- scores ------------------------------------------------------------------------------------


def test_likelihood_by_a_chat_template(gem: Gem) -> None:
    asked = [f"Passage: {text}\nPlease write a question based on this passage." for text in TEXTS]
    wanted = [log_prob(gem, chat_ids(gem, text), QUESTION).mean() for text in asked]
    assert np.allclose(relevance(gem, QUESTION, TEXTS), wanted, atol=1e-5)


def test_likelihood_by_a_plain_prompt(plain: Gem) -> None:
    prompts = [plain.tokenize(f"Passages:\n[1] {text}\n\nQuestion:") for text in TEXTS]
    wanted = [log_prob(plain, prompt, f" {QUESTION}").mean() for prompt in prompts]
    assert np.allclose(relevance(plain, QUESTION, TEXTS), wanted, atol=1e-5)


def test_likelihood_by_the_models_own_prompt(with_prompt: Gem) -> None:
    prompts = [with_prompt.tokenize(f"Read:\n[1] {text}\n\nQ:") for text in TEXTS]
    wanted = [log_prob(with_prompt, prompt, f" {QUESTION}").mean() for prompt in prompts]
    assert np.allclose(relevance(with_prompt, QUESTION, TEXTS), wanted, atol=1e-5)


def judged(text: str) -> str:
    return f"Passage: {text}\n\nQuery: {QUESTION}\n\nDoes the passage answer the query?"


def test_yes_over_no_by_a_chat_template(gem: Gem) -> None:
    prompts = [chat_ids(gem, judged(text)) for text in TEXTS]
    wanted = [log_prob(gem, p, "Yes").sum() - log_prob(gem, p, "No").sum() for p in prompts]
    assert np.allclose(relevance(gem, QUESTION, TEXTS, "yes-no"), wanted, atol=1e-4)


def test_yes_over_no_by_a_plain_prompt(plain: Gem, with_prompt: Gem) -> None:
    for model in (plain, with_prompt):
        prompts = [model.tokenize(judged(text)) for text in TEXTS]
        wanted = [log_prob(model, p, " Yes").sum() - log_prob(model, p, " No").sum()
                  for p in prompts]  # fmt: skip
        assert np.allclose(relevance(model, QUESTION, TEXTS, "yes-no"), wanted, atol=1e-4)


@pytest.mark.parametrize("method", ["likelihood", "yes-no"])
def test_many_are_scored_as_one_by_one(gem: Gem, tiny: Gem, method: Method) -> None:
    for model in (gem, tiny):
        one_by_one = [relevance(model, QUESTION, [text], method)[0] for text in TEXTS]
        assert np.allclose(relevance(model, QUESTION, TEXTS, method), one_by_one, atol=1e-4)


def test_gem_tiny_expects_a_question_after_the_passage_that_answers_it(tiny: Gem) -> None:
    found = relevance(tiny, "What does a pump move?", TEXTS)
    assert int(found.argmax()) == 1


# -- what fits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["likelihood", "yes-no"])
def test_a_long_passage_is_cut_to_its_beginning(plain: Gem, method: Method) -> None:
    long = "A pump moves water. " * 100
    [found] = relevance(plain, QUESTION, [long], method)
    texts = {"likelihood": [f" {QUESTION}"], "yes-no": [" Yes", " No"]}[method]
    room = plain.context_length - max(len(plain.tokenizer.encode(text).ids) for text in texts)
    part = long
    while (
        len(
            prompt := plain.tokenize(
                judged(part) if method == "yes-no" else f"Passages:\n[1] {part}\n\nQuestion:"
            )
        )
        > room + 1
    ):  # a text alone has <s> before it too
        part = part[: len(part) * 4 // 5]
    assert len(part) > 40
    likely = [log_prob(plain, prompt, text) for text in texts]
    wanted = likely[0].mean() if method == "likelihood" else likely[0].sum() - likely[1].sum()
    assert np.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("method", ["likelihood", "yes-no"])
def test_a_question_that_leaves_no_room_is_refused(gem: Gem, method: Method) -> None:
    with pytest.raises(InputError, match="leaves no room for a passage in the model's 256 tokens"):
        rerank(gem, "why? " * 200, [hit("A pump.")], method=method)


# -- order -------------------------------------------------------------------------------------


class Expecting(FakeGem):
    """Expects a question after the passages in its list, by their numbers there."""

    def __init__(self, likely: dict[str, float]) -> None:
        super().__init__()
        self.config = GemConfig()
        self.likely = likely

    def tokenize(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def score_pairs(self, pairs: Sequence[tuple[list[int], str]]) -> np.ndarray:
        prompts = ["".join(map(chr, prompt)) for prompt, _ in pairs]
        scores = [next(s for name, s in self.likely.items() if name in p) for p in prompts]
        return np.array(scores, np.float32)


def order(likely: dict[str, float], *texts: str) -> list[str]:
    """The texts of hits in their new order."""
    model: Any = Expecting(likely)
    hits = [hit(text, 0.9 - 0.1 * place) for place, text in enumerate(texts)]
    found = rerank(model, QUESTION, hits)
    assert {id(one) for one in found} == {id(one) for one in hits}  # their scores with them
    return [one.chunk.text for one in found]


def test_the_order_is_that_of_both_rankings() -> None:
    # Ranks 1 and 3, 2 and 1, 3 and 4, 4 and 2.
    likely = {"one": -3.0, "two": -1.0, "three": -4.0, "four": -2.0}
    wanted = {"one": 1 / 61 + 1 / 63, "two": 1 / 62 + 1 / 61, "three": 1 / 63 + 1 / 64,
              "four": 1 / 64 + 1 / 62}  # fmt: skip
    assert order(likely, *likely) == sorted(wanted, key=lambda text: -wanted[text])
    assert order(likely, *likely) == ["two", "one", "four", "three"]


def test_of_equal_sums_the_first_stays_first() -> None:
    assert order({"c": -2.0, "a": -1.0}, "c", "a") == ["c", "a"]


def test_of_equally_likely_ones_the_first_stays_first() -> None:
    assert order({"": -1.0}, "c", "a", "b") == ["c", "a", "b"]


@pytest.mark.parametrize("method", ["likelihood", "yes-no"])
def test_no_hits_stay_none(gem: Gem, method: Method) -> None:
    assert rerank(gem, QUESTION, [], method=method) == []


def test_empty_questions_and_other_methods_are_refused(gem: Gem) -> None:
    for hits in ([], [hit("A pump.")]):
        with pytest.raises(InputError, match="the question is empty"):
            rerank(gem, " \n", hits)
        with pytest.raises(InputError, match="method must be one of likelihood, yes-no, not 'best"):
            rerank(gem, QUESTION, hits, method="best")  # type: ignore[arg-type]


def test_a_search_reranks_its_best_hits(tmp_path: Path) -> None:
    """With `reranked`, as many as that are put in the order of `rerank`, and k are returned."""
    gem = gem_rag.load("gem-tiny")
    index = gem_rag.Index.open(tmp_path, gem)
    texts = ["A list holds values.", "A tuple cannot be changed.", "A dict maps keys to values.",
             "The sea is salt water.", "A set holds each value once."]  # fmt: skip
    index.sync([gem_rag.Document(str(n), text) for n, text in enumerate(texts)])
    question = "Which type maps a key to a value?"
    plain = index.search(question, 5)
    wanted = [*rerank(gem, question, plain[:4]), plain[4]]
    assert index.search(question, 5, reranked=4) == wanted
    assert index.search(question, 2, reranked=4) == wanted[:2]
    assert index.search_many([question], 2, reranked=4) == [wanted[:2]]
    with pytest.raises(InputError, match="reranked must be a number from 0, not -1"):
        index.search(question, reranked=-1)
