"""Token by token: sequences that are continued together, and how the next token is chosen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gem_rag.engines.prefix_store import LEAST_TOKENS, PrefixStore
from gem_rag.engines.prefixes import Prefix, filled_cache, prefix_of_row
from gem_rag.errors import GemError
from gem_rag.generation.listeners import GenerationListener
from gem_rag.generation.repetition import LoopBreaker
from gem_rag.generation.sampling import FinishReason, Sampling


@dataclass(eq=False)
class Request:
    """One text to generate.

    Attributes:
        prompt: Token ids.
        sampling: How to generate.
        end_tokens: Tokens that end the text, and are no part of it.
        listener: Who gets the tokens.
        matcher: llguidance's matcher of the text's grammar, or None.
        loop_breaker: Ends what is repeated without end in such a text.
        generator: The source of randomness, or None for torch's own.
        tokens: What has been generated.
        done: Whether the request wants nothing more.
        known: What has been read of the text before, and how many of its tokens that covers.
    """

    prompt: Sequence[int]
    sampling: Sampling
    end_tokens: frozenset[int]
    listener: GenerationListener
    matcher: Any = None
    loop_breaker: LoopBreaker | None = None
    generator: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    known: tuple[Prefix | None, int] = (None, 0)

    @property
    def text(self) -> list[int]:
        """The prompt and what has been generated."""
        return [*self.prompt, *self.tokens]

    @property
    def longest(self) -> int:
        """Positions that the request may come to take."""
        return len(self.prompt) + self.sampling.max_tokens

    def take(self, token: int, logprobs: Sequence[Mapping[int, float]] = ()) -> None:
        """Append the next token, or end; its log-probabilities are as `GenerationListener.add`
        takes them."""
        ended = token in self.end_tokens
        if not ended:
            self.tokens.append(token)
            if self.matcher is not None:
                self.matcher.consume_token(token)
        full = len(self.tokens) >= self.sampling.max_tokens
        reason: FinishReason | None = "stop" if ended else "length" if full else None
        new, logprobs = ([], ()) if ended else ([token], logprobs)
        self.done = not self.listener.add(new, reason, logprobs) or self.done

    def fail(self, error: BaseException) -> None:
        """End with an error, unless the text is complete."""
        self.done = True
        self.listener.fail(error)


class DecodingBatch:
    """Sequences that are continued together, padded on the left, with one key/value cache.

    Args:
        pad: Token id of padding, which no other token sees.
        prefixes: Where what has been read is kept, and what has been read before is found.

    Attributes:
        requests: What is generated, by row.
    """

    def __init__(self, pad: int, prefixes: PrefixStore | None = None) -> None:
        self.requests: list[Request] = []
        self._pad, self._prefixes = pad, prefixes
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)

    def join(self, model: Any, requests: Sequence[Request]) -> None:
        """Read the prompts of further requests, but for what has been read before, and give each
        its next token."""
        ids, mask = pad_left([request.text for request in requests], self._pad, model.device)
        unread = max(len(request.text) - request.known[1] for request in requests)
        counts = [max(0, len(request.text) - unread) for request in requests]
        known = [(r.known[0], count) for r, count in zip(requests, counts, strict=True)]
        cache = filled_cache(known, ids.shape[1] - unread)
        logits = forward(model, ids[:, -unread:], mask, cache)[:, -1]
        for request, count in zip(requests, counts, strict=True):
            request.known = (None, 0)
            if not request.tokens:
                request.listener.reused_tokens = count
        self._keep(cache, requests)
        self._append(cache, mask)
        self.requests += requests
        take_next(requests, logits)
        self.drop_done()

    def step(self, model: Any) -> None:
        """Give every request its next token."""
        last = [[request.tokens[-1]] for request in self.requests]
        self._mask = F.pad(self._mask, (0, 1), value=1)
        ids = torch.tensor(last, device=self._mask.device)
        take_next(self.requests, forward(model, ids, self._mask, self._cache)[:, -1])
        self.drop_done()

    def drop_done(self) -> None:
        """Forget requests that want nothing more."""
        keep = [row for row, request in enumerate(self.requests) if not request.done]
        if len(keep) == len(self.requests):
            return
        self.requests = [self.requests[row] for row in keep]
        if not keep:
            self._cache = None
            return
        mask = self._mask[keep]
        start = int(mask.any(dim=0).int().argmax())  # the longest is gone, and columns with it
        self._mask = mask[:, start:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[keep][:, :, start:]
            layer.values = layer.values[keep][:, :, start:]

    def find_known(self, request: Request) -> int:
        """Look for what has been read of a request's text before; how many tokens are left."""
        if self._prefixes is not None:
            request.known = self._prefixes.longest(request.text)
        return len(request.text) - request.known[1]

    def _keep(self, cache: Any, requests: Sequence[Request]) -> None:
        """Keep what has been read of prompts."""
        if self._prefixes is None:
            return
        for row, request in enumerate(requests):
            if len(request.prompt) >= LEAST_TOKENS and not request.tokens:
                start = cache.get_seq_length() - len(request.prompt)
                self._prefixes.add(prefix_of_row(cache, row, start, request.prompt))

    def _append(self, cache: Any, mask: Tensor) -> None:
        if self._cache is None:
            self._cache, self._mask = cache, mask
            return
        width = max(self._mask.shape[1], mask.shape[1])
        own, new = width - self._mask.shape[1], width - mask.shape[1]
        self._mask = torch.cat([F.pad(self._mask, (own, 0)), F.pad(mask, (new, 0))])
        for layer, other in zip(self._cache.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                parts = (getattr(layer, name), own), (getattr(other, name), new)
                padded = [F.pad(part, (0, 0, by, 0)) for part, by in parts]
                setattr(layer, name, torch.cat(padded))


class SeparateSequences:
    """Sequences that are continued one after another, each with a cache of its own, which may hold
    states that have no places for padding. As `DecodingBatch`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._caches: list[Any] = []

    def join(self, model: Any, requests: Sequence[Request]) -> None:
        """As of `DecodingBatch`; `step` and `drop_done` likewise."""
        passes = [_forward_alone(model, r.text) for r in requests]
        self.requests += requests
        self._caches += [cache for _, cache in passes]
        take_next(requests, torch.cat([logits for logits, _ in passes]))
        self.drop_done()

    def step(self, model: Any) -> None:
        each = zip(self.requests, self._caches, strict=True)
        passes = [_forward_alone(model, r.text, cache) for r, cache in each]
        self._caches = [cache for _, cache in passes]
        take_next(self.requests, torch.cat([logits for logits, _ in passes]))
        self.drop_done()

    def find_known(self, request: Request) -> int:
        return len(request.text)

    def drop_done(self) -> None:
        keep = [row for row, request in enumerate(self.requests) if not request.done]
        self.requests = [self.requests[row] for row in keep]
        self._caches = [self._caches[row] for row in keep]


def batch_kind(model: Any) -> Callable[[int], DecodingBatch | SeparateSequences]:
    """What continues sequences of a language model, found out by running a token through it.

    Returns:
        Makes an empty batch, given the id of padding.

    Raises:
        GemError: The model has no cache.
    """
    with torch.inference_mode():
        output = model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)
    cache = output.get("past_key_values", output.get("cache_params"))
    if cache is None:
        raise GemError(
            f"{type(model).__name__} gives back no cache of what it has read, without which it "
            "cannot go on token by token: choose another model"
        )
    kinds = {type(layer) for layer in getattr(cache, "layers", ())}
    if type(cache) is DynamicCache and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return DecodingBatch
    return lambda pad: SeparateSequences()


def _forward_alone(model: Any, ids: Sequence[int], cache: Any = None) -> tuple[Tensor, Any]:
    """Scores of one sequence's next token, float32 [1, vocabulary], and its cache afterwards.

    Args:
        model: The language model.
        ids: The tokens, all but the last of which are in the cache, if there is one.
        cache: What the pass before gave; None for the first.
    """
    known = inspect.signature(model.forward).parameters
    name = "cache_params" if "cache_params" in known else "past_key_values"
    start = 0 if cache is None else len(ids) - 1
    given = {} if cache is None else {name: cache}
    if "position_ids" in known:  # some count from 0 in every pass
        given["position_ids"] = torch.arange(start, len(ids), device=model.device)[None]
    new = torch.tensor([ids[start:]], device=model.device)
    output = model(new, use_cache=True, logits_to_keep=1, **given)
    logits: Tensor = output.logits[:, -1]
    return logits.float(), output[name]


def pad_left(texts: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """Token ids of texts that end in the same column, and 1 for those that are not padding:
    int64 [texts, longest] both."""
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), pad)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, width - len(text) :] = torch.tensor(text)
        mask[row, width - len(text) :] = 1
    return ids.to(device), mask.to(device)


def forward(model: Any, ids: Tensor, mask: Tensor, cache: Any = None, kept: int = 1) -> Tensor:
    """Scores of the tokens that come after each sequence's last ones: float32 [B, kept,
    vocabulary].

    Args:
        model: The language model.
        ids: Tokens that are not in the cache, [B, n].
        mask: 1 for tokens, those in the cache included, 0 for padding: [B, T].
        cache: Gets their keys and values; None if nothing will go on from them.
        kept: How many of the last positions to give scores for.
    """
    inputs: dict[str, Any] = {"attention_mask": mask, "use_cache": cache is not None}
    if cache is not None:
        inputs["past_key_values"] = cache
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    logits: Tensor = model(ids, logits_to_keep=kept, **inputs).logits[:, -kept:]
    return logits.float().to(ids.device)  # a model may lie on several devices


def take_next(requests: Sequence[Request], logits: Tensor) -> None:
    """Choose each request's next token by its own settings: [requests, vocabulary] scores."""
    logits = _constrain(requests, logits)
    unpenalized = [
        None if request.sampling.logprobs is None else row.log_softmax(-1)
        for request, row in zip(requests, logits, strict=True)
    ]
    logits = _penalize(requests, logits)
    tokens = logits.argmax(dim=-1)
    for row, request in enumerate(requests):
        if request.sampling.temperature > 0:
            tokens[row] = _sample(logits[row : row + 1], request.sampling, request.generator)
    for request, token, log_probs in zip(requests, tokens.tolist(), unpenalized, strict=True):
        request.take(token, _likeliest(log_probs, token, request.sampling.logprobs))


def _likeliest(log_probs: Tensor | None, token: int, count: int | None) -> list[dict[int, float]]:
    """The log-probabilities, by id, of a token and of the likeliest: from [vocabulary], if asked
    for."""
    if log_probs is None:
        return []
    values, ids = log_probs.topk(min(count or 0, len(log_probs)))
    return [
        {**dict(zip(ids.tolist(), values.tolist(), strict=True)), token: float(log_probs[token])}
    ]


def _penalize(requests: Sequence[Request], logits: Tensor) -> Tensor:
    """Scores in which tokens that were there before count less: [requests, vocabulary]."""
    for row, request in enumerate(requests):
        sampling = request.sampling
        if sampling.repetition_penalty != 1:
            seen = torch.tensor([request.text], device=logits.device)
            penalty = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
            logits[row] = penalty(seen, logits[row : row + 1])[0]
        if sampling.presence_penalty or sampling.frequency_penalty:
            written = torch.tensor(request.tokens, dtype=torch.long, device=logits.device)
            times = written.bincount(minlength=logits.shape[1])
            logits[row] -= sampling.frequency_penalty * times
            logits[row] -= sampling.presence_penalty * (times > 0)
    return logits


def _sample(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """A token id, [], from scores [1, vocabulary]."""
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    for warper in warpers:
        logits = warper(None, logits)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[0, 0]


def _constrain(requests: Sequence[Request], logits: Tensor) -> Tensor:
    """Scores without the tokens that a request's grammar does not allow next."""
    held = [row for row, request in enumerate(requests) if request.matcher is not None]
    if not held:
        return logits
    from llguidance.torch import allocate_token_bitmask, fill_next_token_bitmask

    allowed = allocate_token_bitmask(len(held), logits.shape[1])
    for place, row in enumerate(held):
        matcher = requests[row].matcher
        if matcher.is_error():
            reason = matcher.get_error()
            requests[row].fail(GemError(f"the text left its grammar: {reason}"))
            continue
        fill_next_token_bitmask(matcher, allowed, place)  # the end tokens, once it has stopped
    mask = _unpack_bits(allowed, logits.shape[1]).to(logits.device)
    logits[held] = logits[held].masked_fill(~mask, -torch.inf)
    for row in held:
        if (breaker := requests[row].loop_breaker) is not None:
            logits[row] = breaker.apply(requests[row].tokens, logits[row])
    return logits


def _unpack_bits(words: Tensor, width: int) -> Tensor:
    """int32 [rows, words] as bool [rows, width], the lowest bit of a word first."""
    shifts = torch.arange(32, dtype=torch.int32)
    return (words[..., None] >> shifts & 1).bool().flatten(1)[:, :width]
