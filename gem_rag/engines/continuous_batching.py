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
from gem_rag.engines.decoding import DecodingBatch, Request, SeparateSequences
from gem_rag.errors import GemError

_PROMPT_PADDING = 0.3  # the largest share of prompts read at once that may be padding


class ContinuousBatcher:
    """Generates in the threads of its callers: one of them at a time gives everybody's texts their
    next token, until its own are complete.

    In a thread of its own it would be slower: two threads with a team of OpenMP workers each are
    more than there are cores, and those then sleep between operations.

    Args:
        model: Gives the language model; raises GemError once it is gone.
        turn: Held while the model runs, for a token at a time.
        new_batch: Makes an empty batch for the model.
        capacity: The most positions of all texts that are generated together; a longer one is
            generated alone.
        prompt_tokens: The most tokens of prompts that are read at once.
        free_memory: Frees what can be computed again, when the device has no memory left.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        turn: AbstractContextManager[None],
        new_batch: Callable[[], DecodingBatch | SeparateSequences],
        capacity: int,
        prompt_tokens: int,
        free_memory: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._turn, self._prompt_tokens = model, turn, prompt_tokens
        self._capacity, self._was_too_large = capacity, False
        self._free_memory = free_memory
        self._new_batch, self._batch = new_batch, new_batch()
        self._lock = threading.Condition()
        self._led = False  # whether a caller is at work
        self._waiting: deque[deque[Request]] = deque()  # by call; calls take turns
        self._joining: list[Request] = []

    def __len__(self) -> int:
        """How many texts are generated, or wait for it."""
        with self._lock:
            calls = [self._batch.requests, self._joining, *self._waiting]
            return len({request for call in calls for request in call if not request.done})

    def submit(self, requests: Iterable[Request]) -> None:
        """Let the texts of one call join; `run_until` generates them."""
        with self._lock:
            self._waiting.append(deque(requests))

    def cancel(self, requests: Iterable[Request]) -> None:
        """Generate no more of some requests."""
        for request in requests:
            request.fail(GemError("the call was cancelled"))
        with self._lock:
            if not self._led:  # nobody comes to free their memory
                self._batch.drop_done()
            self._lock.notify_all()

    def run_until(self, done: Callable[[], bool]) -> None:
        """Generate, or wait while another caller does, until something is there."""
        while not done():
            with self._lock:
                while self._led and not done():
                    self._lock.wait()
                if done():
                    return
                self._led = True
            try:
                while not done() and self._admit():
                    self._run_once()
                    with self._lock:
                        self._lock.notify_all()
            finally:
                with self._lock:
                    self._led = False
                    self._lock.notify_all()

    def _run_once(self) -> None:
        try:
            with self._turn, torch.inference_mode():
                self._advance(self._model())
        except torch.OutOfMemoryError:
            self._start_again_smaller()
        except Exception as error:  # whatever it was, those who wait must hear of it
            self._fail(error)
        except BaseException:  # Ctrl-C is this caller's alone: others go on from where they are
            self._wait_again(self._empty_batch())
            raise

    def _admit(self) -> bool:
        """Choose who joins next; False if there is nothing to do."""
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
            if not running:  # cancelled requests may have been left in it
                self._batch = self._new_batch()
            return bool(running)

    def _has_room(self, request: Request, running: Sequence[Request]) -> bool:
        together = [request, *running]
        most = max(one.longest for one in together) * len(together)
        return not running or most <= self._capacity

    def _advance(self, model: Any) -> None:
        """Read the prompts of those who join, then give everybody a token."""
        self._batch.drop_done()
        joining = self._joining
        lengths = [self._batch.find_known(request) for request in joining]
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
        self._free_memory()
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
        self._capacity = positions // 2
        self._wait_again(requests)

    def _wait_again(self, requests: Iterable[Request]) -> None:
        """Let requests join again, first of all, with what has been generated of them."""
        with self._lock:
            self._waiting.appendleft(deque(requests))

    def _empty_batch(self) -> list[Request]:
        """Take everybody out of the batch who is not done, those about to join included."""
        requests = dict.fromkeys([*self._batch.requests, *self._joining])
        self._batch = self._new_batch()
        self._joining = []
        return [request for request in requests if not request.done]
