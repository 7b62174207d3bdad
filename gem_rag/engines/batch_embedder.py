"""Batches of rows to vectors by the fastest of the passes that the model and the device allow."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from threading import Lock
from typing import Literal

import torch
from torch import Tensor

from gem_rag._utils.suggestions import check_choice
from gem_rag.core.arrays import FloatArray
from gem_rag.core.attention import LoweringName
from gem_rag.core.encoder import GemEncoder
from gem_rag.core.layout import Layout, Row, plan_batches, vector_places
from gem_rag.core.transfer import to_device
from gem_rag.engines.query_graphs import QueryGraphs
from gem_rag.errors import GemError, first_line

Compile = bool | Literal["auto"]

_ONE_PASS_TOKENS = 1024  # up to here a pass is short, and one of both halves at once the shortest
_PADDING = 0.1  # the largest share of a text pass that may be padding
# Compiling takes some 10 s and saves a part of the time: who has embedded for so long is likely to
# go on for as long again, which repays it.
_COMPILE_AFTER_SECONDS = 60.0


class BatchEmbedder:
    """Embeds batches with one model, one pass at a time.

    Args:
        encoder: The model.
        lowering: Of the attention rule, for passes of both halves.
        batch_tokens: Tokens in one pass.
        compile: As of `TransformersEngine`.
        generation: Held while what the model does is recorded, which nothing may disturb.

    Attributes:
        encoder: The model.
        lock: Held by every pass: one at a time bounds memory.

    Raises:
        InputError: `compile` is neither a bool nor "auto".
        GemError: The model cannot be compiled.
    """

    def __init__(
        self,
        encoder: GemEncoder,
        lowering: LoweringName,
        batch_tokens: int,
        compile: Compile,
        generation: AbstractContextManager[object],
    ) -> None:
        if not isinstance(compile, bool):
            check_choice("compile", compile, ("True", "False", "auto"))
        self.encoder, self._lowering = encoder, lowering
        self._batch_tokens = batch_tokens
        self._generation = generation
        self._fitting_tokens: int | None = None  # in one batch, once one has been too large
        self.lock = Lock()
        faster = encoder.device.type == "cuda" and not encoder.only_causal
        seconds = _COMPILE_AFTER_SECONDS
        self._seconds_left = seconds if compile == "auto" and faster else float("inf")
        self._graphs = QueryGraphs(encoder) if compile and faster else None
        if compile is True:
            try:
                self._compile()
            except GemError:
                raise
            except Exception as error:  # whatever the compiler runs into
                raise GemError(
                    f"the model cannot be compiled here ({first_line(error)}): load it with "
                    "compile=False"
                ) from error

    def embed_batches(self, batches: Iterable[Sequence[Row]]) -> Iterator[FloatArray]:
        """As `Engine.embed_batches`."""
        # A batch's vectors are fetched when the next one has been launched, so that a GPU never
        # waits for the next layout.
        launched: Tensor | None = None
        for rows in batches:
            start = time.monotonic()
            previous, launched = launched, self._embed_fitting(rows)
            if previous is not None:
                yield previous.cpu().numpy()
            self._compile_after(time.monotonic() - start)
        if launched is not None:
            yield launched.cpu().numpy()

    def _embed_fitting(self, rows: Sequence[Row]) -> Tensor:
        """Vectors on the model's device, computed in parts if memory allows no more at once."""
        tokens = sum(row.length(self.encoder.k) for row in rows)
        if self._fitting_tokens is None or tokens <= self._fitting_tokens or len(rows) == 1:
            try:
                return self._embed(rows)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise GemError(
                        f"a text of {tokens} tokens does not fit into the memory of the device: "
                        "shorten it, or load the model with a smaller dtype"
                    ) from None
            self._remember_out_of_memory(tokens)
        half = len(rows) // 2
        return torch.cat([self._embed_fitting(rows[:half]), self._embed_fitting(rows[half:])])

    def _embed(self, rows: Sequence[Row]) -> Tensor:
        encoder, lengths = self.encoder, [row.length(self.encoder.k) for row in rows]
        with self.lock, torch.inference_mode():
            if len(rows) == 1 and (vector := self._embed_query(rows[0])) is not None:
                return vector
            if self._fits_one_pass(lengths):
                return encoder(Layout.build(rows, encoder.k), self._lowering)
            batches = list(plan_batches(lengths, self._batch_tokens, _PADDING))
            layouts = [Layout.build([rows[i] for i in batch], encoder.k) for batch in batches]
            vectors = encoder.embed_in_halves(layouts, pass_tokens=self._batch_tokens)
            return vectors[to_device(vector_places(rows, batches), vectors.device)]

    def _embed_query(self, row: Row) -> Tensor | None:
        """A row's vector by a recorded pass, where there are any."""
        if self._graphs is None or not self._graphs.takes(row):
            return None
        try:
            if self._graphs.has_recorded(row):
                return self._graphs.embed(row).clone()
            with self._generation:
                return self._graphs.embed(row).clone()
        except RuntimeError as error:
            self._graphs = None
            warnings.warn(
                f"short texts are embedded without CUDA graphs ({first_line(error)})",
                stacklevel=6,
            )
            return None

    def _fits_one_pass(self, lengths: Sequence[int]) -> bool:
        """Whether rows run fastest in one pass of both halves: they are few, or of like length."""
        positions = len(lengths) * max(lengths)
        if self._lowering == "dense" or positions <= _ONE_PASS_TOKENS:
            return True
        if self.encoder.packs_texts or self.encoder.compiled:
            return False
        return sum(lengths) >= (1 - _PADDING) * positions

    def _remember_out_of_memory(self, tokens: int) -> None:
        """A batch has been too large for the device; said once."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._fitting_tokens is None:
            warnings.warn(
                f"a batch of {tokens} tokens does not fit into the memory of the device, and is "
                f"halved: load the model with batch_tokens={tokens // 2}",
                stacklevel=5,
            )
        self._fitting_tokens = tokens // 2

    # -- compilation ------------------------------------------------------------------------

    def _compile_after(self, seconds: float) -> None:
        """Embedding has taken so long again: compile if that is worth it by now."""
        self._seconds_left -= seconds
        if self._seconds_left > 0:
            return
        self._seconds_left = float("inf")
        try:
            self._compile()
        except Exception as error:  # whatever the compiler runs into
            warnings.warn(f"texts are embedded uncompiled ({first_line(error)})", stacklevel=4)

    def _compile(self) -> None:
        """Compile the text half, and run it once to see that it can be."""
        encoder = self.encoder
        layouts = [Layout.build([Row.whole([0] * n)] * 2, encoder.k) for n in (9, 17)]
        with self.lock, torch.inference_mode():
            encoder.compile_texts()
            try:
                encoder.embed_in_halves(layouts)
            except BaseException:
                encoder.compile_texts(False)
                raise
