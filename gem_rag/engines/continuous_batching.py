"""`ContinuousBatcher`: calls of all kinds generate together, and join and leave between tokens.

transformers' own continuous batching switches the whole model to an attention of its own, while
embeddings use the model too, and has neither seeds nor grammars of a request's own. So this does
the little that is needed.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from gem_rag.core.layout import plan_batches
from gem_rag.engines.decoding import DecodingBatch, Request
from gem_rag.errors import GemError

_PROMPT_PADDING = 0.3  # the largest share of prompts read at once that may be padding


class ContinuousBatcher:
    """Runs in a thread of its own while there is something to generate.

    Args:
        model: Gives the language model; raises GemError once it is gone.
        turn: Held while the model runs, for a token at a time.
        pad: Token id of padding.
        capacity: The most positions of all texts that are generated together; a longer one is
            generated alone.
        prompt_tokens: The most tokens of prompts that are read at once.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        turn: AbstractContextManager[None],
        pad: int,
        capacity: int,
        prompt_tokens: int,
    ) -> None:
        self._model, self._turn, self._prompt_tokens = model, turn, prompt_tokens
        self._capacity, self._was_too_large = capacity, False
        self._pad, self._batch = pad, DecodingBatch(pad)
        self._lock = threading.Lock()
        self._waiting: deque[deque[Request]] = deque()  # by call; calls take turns
        self._joining: list[Request] = []
        self._running = False

    def submit(self, requests: Iterable[Request]) -> None:
        """Generate the texts of one call."""
        with self._lock:
            self._waiting.append(deque(requests))
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name="gem-rag-generate", daemon=True).start()

    def cancel(self, requests: Iterable[Request]) -> None:
        """Generate no more of some requests."""
        for request in requests:
            request.fail(GemError("the call was cancelled"))

    def _run(self) -> None:
        while self._admit():
            try:
                with self._turn, torch.inference_mode():
                    try:
                        self._advance(self._model())
                    except torch.OutOfMemoryError:
                        self._start_again_smaller()
            except BaseException as error:  # whatever it was, those who wait must hear of it
                self._fail(error)

    def _admit(self) -> bool:
        """Choose who joins next. False, and the thread ends, if there is nothing to do."""
        with self._lock:
            running = [request for request in self._batch.requests if not request.done]
            while self._waiting:
                call = self._waiting.popleft()
                if call and not call[0].done and not self._has_room(call[0], running):
                    self._waiting.appendleft(call)
                    break
                if call and not (request := call.popleft()).done:
                    self._joining.append(request)
                    running.append(request)
                if call:
                    self._waiting.append(call)
            self._running = bool(running)
            if not running:  # cancelled requests may have been left in it
                self._batch = DecodingBatch(self._pad)
            return self._running

    def _has_room(self, request: Request, running: Sequence[Request]) -> bool:
        together = [request, *running]
        most = max(one.longest for one in together) * len(together)
        return not running or most <= self._capacity

    def _advance(self, model: Any) -> None:
        """Read the prompts of those who join, then give everybody a token."""
        self._batch.drop_done()
        joining = self._joining
        lengths = [len(request.prompt) + len(request.tokens) for request in joining]
        for chosen in plan_batches(lengths, self._prompt_tokens, _PROMPT_PADDING):
            self._batch.join(model, [joining[i] for i in chosen])
        self._joining = []
        if self._batch.requests:
            self._batch.step(model)

    def _fail(self, error: BaseException) -> None:
        """Those who generate get an error; those who wait do not."""
        if not isinstance(error, GemError):
            failure = GemError(f"generation failed: {error}")
            failure.__cause__ = error
            error = failure
        for request in self._empty_batch():
            request.fail(error)

    def _start_again_smaller(self) -> None:
        """Go on from where everybody is, with half as much at once."""
        requests = self._empty_batch()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(requests) < 2:
            for request in requests:
                request.fail(GemError(
                    f"a text of {request.longest} tokens does not fit into the memory of the "
                    "device: shorten the prompt, or lower max_tokens"
                ))  # fmt: skip
            return
        positions = len(requests) * max(request.longest for request in requests)
        if not self._was_too_large:
            self._was_too_large = True
            warnings.warn(
                f"{len(requests)} texts of {positions} tokens together do not fit into the memory "
                "of the device: fewer are generated at once from now on",
                stacklevel=2,
            )
        with self._lock:
            self._capacity = positions // 2
            self._waiting.appendleft(deque(requests))

    def _empty_batch(self) -> list[Request]:
        """Take everybody out of the batch who is not done, those about to join included."""
        requests = dict.fromkeys([*self._batch.requests, *self._joining])
        self._batch = DecodingBatch(self._pad)
        self._joining = []
        return [request for request in requests if not request.done]
