"""Embedding requests to token rows, and vectors to responses, for one model."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers

from gem_rag.core.arrays import FloatArray
from gem_rag.core.config import GemConfig
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.errors import InputError
from gem_rag.model import Gem
from gem_rag.server.embeddings import EmbeddingRequest
from gem_rag.server.errors import ApiError

# Characters, or token ids, that are tokenized before a request is looked at again: a client that
# has left is noticed, and other requests take turns.
_SLICE = 1 << 18


class EmbeddingCodec:
    """Turns requests into token rows and vectors into responses.

    Args:
        tokenizer: The model's.
        config: Its prompts are put before texts; without `input_type` the document's.
        vocabulary: Token ids are below this.
        max_length: Most tokens of an input.
        dim: Length of its embeddings.
        names: What requests may call the model; the first is its own.
    """

    def __init__(
        self,
        tokenizer: SafeTokenizer,
        config: GemConfig,
        *,
        vocabulary: int,
        max_length: int,
        dim: int,
        names: Sequence[str],
    ) -> None:
        self._tokenizer, self._config, self._names = tokenizer, config, list(names)
        self._vocabulary, self._max_length, self._dim = vocabulary, max_length, dim

    @classmethod
    def of(cls, gem: Gem, names: Sequence[str]) -> EmbeddingCodec:
        """The codec of a loaded model."""
        return cls(
            SafeTokenizer(gem.hf_tokenizer), gem.config, vocabulary=gem.vocab_size,
            max_length=gem.max_length, dim=gem.dim, names=names,
        )  # fmt: skip

    async def rows(self, request: EmbeddingRequest) -> list[list[int]]:
        """Token ids of each input.

        Tokenizes in threads, a slice at a time, so that the event loop stays free and a cancelled
        request stops.

        Raises:
            ApiError: The request cannot be answered.
        """
        self._check(request)
        if request.messages is not None:
            return [await asyncio.to_thread(self._chat_row, request)]
        inputs, rows = request.inputs, list[list[int]]()
        self._check_inputs(request, inputs)
        for part in _slices(inputs):
            rows += await asyncio.to_thread(self._rows, request, inputs[part], part.start)
        return rows

    def response(
        self,
        request: EmbeddingRequest,
        rows: Sequence[Sequence[int]],
        vectors: FloatArray,
        request_id: str | None = None,
    ) -> bytes:
        """The response's JSON for vectors [inputs, dim] of these token rows."""
        if request.dimensions is not None:
            vectors = vectors[:, : request.dimensions]
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        encode = _base64 if request.encoding_format == "base64" else _floats
        tokens = sum(map(len, rows))
        response = {
            "id": f"embd-{request_id or request.request_id or uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": request.model or self._names[0],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "data": [],
        }
        # One vector at a time: encoding JSON holds Python's lock, which the event loop needs too.
        data = ", ".join(
            json.dumps({"object": "embedding", "index": index, "embedding": encode(vector)})
            for index, vector in enumerate(vectors)
        )
        return f"{json.dumps(response).removesuffix('[]}')}[{data}]}}".encode()

    # -- requests ----------------------------------------------------------------------------

    def _check(self, request: EmbeddingRequest) -> None:
        if request.model is not None and request.model not in self._names:
            raise ApiError(
                f"there is no model {request.model!r} here: use {self._names[0]!r}",
                param="model",
                status=404,
            )
        if request.dimensions is not None and request.dimensions > self._dim:
            raise ApiError(
                f"dimensions is {request.dimensions} and embeddings have {self._dim}",
                param="dimensions",
            )
        limit = request.truncate_prompt_tokens
        if limit is not None and (limit == 0 or limit > self._max_length):
            raise ApiError(
                f"truncate_prompt_tokens is {limit}: give from 1 to {self._max_length}, what the "
                "model embeds, or -1 for that",
                param="truncate_prompt_tokens",
            )

    def _check_inputs(self, request: EmbeddingRequest, inputs: Sequence[str | list[int]]) -> None:
        """Bound the work before any of it is done, by characters."""
        most = self._max_length * self._tokenizer.max_token_length
        truncated = request.truncate_prompt_tokens is not None
        for number, entry in enumerate(inputs):
            if isinstance(entry, str) and len(entry) > most and not truncated:
                raise self._too_long(number, f"{len(entry)} characters")
            if not (entry.strip() if isinstance(entry, str) else entry):
                raise ApiError(f"input {number} is empty", param="input")
        prompted = request.use is not None and self._config.prompts[request.use]
        if prompted and not isinstance(inputs[0], str):
            raise ApiError(
                "token ids are embedded as they are, without a prompt: leave input_type out, or "
                "give texts",
                param="input_type",
            )

    def _too_long(self, number: int, length: str) -> ApiError:
        return ApiError(
            f"input {number} has {length} and the model embeds at most {self._max_length} tokens: "
            "split it, or cut it with truncate_prompt_tokens=-1",
            param="input",
        )

    # -- rows --------------------------------------------------------------------------------

    def _rows(
        self, request: EmbeddingRequest, inputs: Sequence[str | list[int]], first: int
    ) -> list[list[int]]:
        """Token ids of inputs that are numbered from `first`."""
        texts = [entry for entry in inputs if isinstance(entry, str)]
        rows = self._tokenize(request, texts) if texts else list(self._ids(request, inputs, first))
        for number, row in enumerate(rows, first):
            self._check_row(number, row)
        return rows

    def _tokenize(self, request: EmbeddingRequest, texts: Sequence[str]) -> list[list[int]]:
        prompt = self._config.prompts[request.use or "document"]
        limit = self._limit(request)
        if limit is not None:
            most, left = limit * self._tokenizer.max_token_length, _cuts_left(request)
            texts = [text[-most:] if left else text[:most] for text in texts]
        special = request.add_special_tokens is not False
        try:
            encodings = self._tokenizer.encode_prompted(prompt, texts, special)
        except InputError as error:
            raise ApiError(str(error), param="input") from error
        if limit is None:
            return [encoding.ids for encoding in encodings]
        return [_truncate(encoding, limit, _cuts_left(request)) for encoding in encodings]

    def _ids(
        self, request: EmbeddingRequest, inputs: Sequence[Any], first: int
    ) -> Iterator[list[int]]:
        for number, row in enumerate(inputs, first):
            for token in row:
                if not 0 <= token < self._vocabulary:
                    raise ApiError(
                        f"input {number} holds token {token}, and the model's tokens are 0 to "
                        f"{self._vocabulary - 1}: encode texts with its own tokenizer, or send "
                        "them as they are",
                        param="input",
                    )
            yield self._cut(request, row)

    def _chat_row(self, request: EmbeddingRequest) -> list[int]:
        assert request.messages is not None
        most = self._max_length * self._tokenizer.max_token_length
        characters = sum(len(json.dumps(m, ensure_ascii=False)) for m in request.messages)
        if characters > most:  # a template may not be cut, so no setting helps
            raise self._too_long(0, f"{characters} characters")
        template_kwargs = request.chat_template_kwargs or {}
        if "chat_template" in template_kwargs:  # a template is a program
            raise ApiError(
                "a request cannot bring its own chat_template", param="chat_template_kwargs"
            )
        try:
            row = self._tokenizer.encode_chat(
                request.messages,
                **template_kwargs,
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message,
            )
        except (InputError, TypeError) as error:
            raise ApiError(str(error), param="messages") from error
        row = self._cut(request, row)
        self._check_row(0, row)
        return row

    def _check_row(self, number: int, row: Sequence[int]) -> None:
        if not row:
            raise ApiError(f"input {number} has no tokens", param="input")
        if len(row) > self._max_length:
            raise self._too_long(number, f"{len(row)} tokens")

    def _limit(self, request: EmbeddingRequest) -> int | None:
        """Tokens to cut inputs to, if they are to be cut."""
        limit = request.truncate_prompt_tokens
        return self._max_length if limit == -1 else limit

    def _cut(self, request: EmbeddingRequest, row: list[int]) -> list[int]:
        limit = self._limit(request)
        if limit is None:
            return row
        return row[-limit:] if _cuts_left(request) else row[:limit]


def _cuts_left(request: EmbeddingRequest) -> bool:
    return request.truncation_side == "left"


def _slices(inputs: Sequence[str | list[int]]) -> Iterator[slice]:
    """Neighbouring inputs that are tokenized together."""
    start = size = 0
    for number, entry in enumerate(inputs):
        size += len(entry)
        if size > _SLICE:
            yield slice(start, number + 1)
            start, size = number + 1, 0
    if start < len(inputs):
        yield slice(start, len(inputs))


def _truncate(encoding: tokenizers.Encoding, limit: int, left: bool) -> list[int]:
    """The first (or last) tokens of a text, and what its tokenizer puts around every text."""
    if len(encoding) <= limit:
        return encoding.ids
    added = encoding.special_tokens_mask
    room = limit - sum(added)
    if room < 1:
        raise ApiError(
            f"truncate_prompt_tokens is {limit}, of which the tokenizer's own take {sum(added)}",
            param="truncate_prompt_tokens",
        )
    text = [place for place, is_added in enumerate(added) if not is_added]
    kept = set(text[-room:] if left else text[:room])
    return [token for place, token in enumerate(encoding.ids) if added[place] or place in kept]


def _floats(vector: FloatArray) -> Any:
    return vector.tolist()


def _base64(vector: FloatArray) -> Any:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
