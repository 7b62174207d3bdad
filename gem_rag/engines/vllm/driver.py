"""The one thread that owns a vLLM engine: it steps it, and embeds between its steps.

vLLM's engine is not safe from many threads, so whoever wants something leaves it here. Texts
asked for by many threads are generated together; embeddings are gathered into batches. Works
with the engine in this process or in one of its own.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from gem_rag.core.arrays import FloatArray
from gem_rag.core.layout import Row
from gem_rag.engines.vllm import rpc
from gem_rag.engines.vllm.embedding_queue import Batch, EmbeddingQueue
from gem_rag.engines.vllm.engine_args import batch_failed, engine_died, short_reason
from gem_rag.errors import GemError, InputError

Prepare = Callable[[Callable[..., list[Any]]], EmbeddingQueue]
_HEALTH_CHECK_SECONDS = 0.5  # seconds between looks at whether the engine is alive


class Listener(Protocol):
    """Receives the output of one request, in the driver's thread."""

    def receive(self, output: Any) -> bool:
        """Take a `RequestOutput`; False if nothing more is wanted."""

    def fail(self, error: BaseException) -> None:
        """The request will get nothing more."""


class AnyDriver(Protocol):
    """Runs requests of many threads on a vLLM engine."""

    def __len__(self) -> int:
        """How many texts are being generated, or wait for it."""

    def embed(self, rows: Sequence[Row]) -> Future[FloatArray]:
        """One vector for each span of the rows, in order: [spans, dim]."""

    def generate(self, prompt: Sequence[int], params: Any, listener: Listener) -> str:
        """Continue a prompt under `SamplingParams`; the number by which to `abort` it."""

    def abort(self, name: str) -> None:
        """Stop a request whose listener wants nothing more."""

    def close(self) -> None:
        """End; what is under way fails."""


class Driver:
    """Starts an engine in a thread of its own and runs it until `close`.

    config: a `VllmConfig`.
    in_process: whether the engine runs in this process or in one of its own.
    prepare: makes the workers embedders, given the engine's `collective_rpc`.

    Raises what starting the engine raises.
    """

    def __init__(self, config: Any, in_process: bool, prepare: Prepare) -> None:
        self._numbers = itertools.count()
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._listeners: dict[str, Listener] = {}
        self._lock = threading.Lock()
        self._dead: GemError | None = None
        self._engine: Any = None
        self._embeddings: EmbeddingQueue | None = None
        self._batch: Batch | None = None  # being embedded
        self._over = threading.Event()
        self._thread_hangs = False  # for ever, for an engine that was killed
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run,
            args=(config, in_process, prepare, started),
            name="gem-rag-vllm",
            daemon=True,
        )
        self._thread.start()
        try:
            started.result()
        except GemError:
            raise
        except Exception as error:  # vLLM's models, memory and kernels raise many kinds
            raise GemError(f"vLLM did not start: {short_reason(error)}") from error

    def __len__(self) -> int:
        """How many texts are being generated, or wait for it."""
        return len(self._listeners)

    def embed(self, rows: Sequence[Row]) -> Future[FloatArray]:
        """One vector for each span of the rows, in order: [spans, dim]."""
        future: Future[FloatArray] = Future()

        def add() -> None:
            assert self._embeddings is not None
            self._embeddings.add(rows, future)

        self._submit(add, future.set_exception)
        return future

    def generate(self, prompt: Sequence[int], params: Any, listener: Listener) -> str:
        """Continue a prompt under `SamplingParams`; the number by which to `abort` it."""
        name = f"gem-{next(self._numbers)}"

        def add() -> None:
            from vllm.v1.engine.exceptions import EngineDeadError

            try:
                self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
            except Exception as error:  # vLLM's own checks of the request raise many kinds
                if isinstance(error, EngineDeadError):
                    raise
                listener.fail(InputError(f"vLLM refuses the request: {short_reason(error)}"))
            else:
                self._listeners[name] = listener

        self._submit(add, listener.fail)
        return name

    def abort(self, name: str) -> None:
        """Stop a request whose listener wants nothing more."""
        self._submit(lambda: self._abort(name), lambda error: None)

    def close(self) -> None:
        """End the engine; what is under way fails."""
        self._commands.put(None)
        self._over.wait()
        if not self._thread_hangs:
            self._thread.join()

    # -- in the thread -----------------------------------------------------------------------

    def _run(self, config: Any, in_process: bool, prepare: Prepare, started: Future[None]) -> None:
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import Executor

        try:
            self._engine = LLMEngine(
                config,
                Executor.get_class(config),
                log_stats=False,
                multiprocess_mode=not in_process,
            )
            self._embeddings = prepare(self._engine.collective_rpc)
        except BaseException as error:
            started.set_exception(error)
            self._end(GemError("the engine did not start"), in_process)
            return
        started.set_result(None)
        if not in_process:
            threading.Thread(target=self._watch, name="gem-rag-vllm-watch", daemon=True).start()
        over = GemError("this Gem has been closed: load the model again")
        try:
            while self._run_pending_commands():
                self._work()
        except BaseException as failure:  # whatever it was, the engine is lost
            over = engine_died(failure)
        self._end(over, in_process)

    def _run_pending_commands(self) -> bool:
        """Run the commands that have arrived; waits for one if there is nothing else to do."""
        idle = not self._embeddings and not self._engine.has_unfinished_requests()
        while True:
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            try:
                command.do()
            except BaseException as error:
                command.refuse(engine_died(error))
                raise
            idle = False

    def _work(self) -> None:
        generating = self._engine.has_unfinished_requests()
        if self._embeddings and not self._embeddings.pause(generating):
            self._embed(generating)
        elif generating:
            for output in self._engine.step():
                self._dispatch_output(output)

    def _embed(self, generating: bool) -> None:
        assert self._embeddings is not None
        batch = self._embeddings.take(generating)
        if not batch.rows:
            return
        self._batch = batch  # what fails with the engine
        try:
            rows = rpc.serialize_rows(batch.rows)
            vectors = rpc.vectors(self._engine.collective_rpc(rpc.EMBED, args=(rows,)))
        except GemError as error:
            self._embeddings.failed(batch, error)
        except Exception as error:
            if self._is_lost():
                raise
            self._embeddings.failed(batch, batch_failed(error))
        else:
            self._embeddings.done(batch, vectors)
        self._batch = None

    def _is_lost(self) -> bool:
        """Whether a call failed because the engine did, which its client learns a little later."""
        resources = getattr(self._engine.engine_core, "resources", None)
        if resources is None:  # in this process
            return False
        deadline = time.monotonic() + _HEALTH_CHECK_SECONDS
        while not resources.engine_dead and time.monotonic() < deadline:
            time.sleep(_HEALTH_CHECK_SECONDS / 50)
        return bool(resources.engine_dead)

    def _dispatch_output(self, output: Any) -> None:
        listener = self._listeners.get(output.request_id)
        if listener is None:
            return
        wanted = listener.receive(output)
        if output.finished:
            del self._listeners[output.request_id]
        elif not wanted:
            self._abort(output.request_id)

    def _abort(self, name: str) -> None:
        if self._listeners.pop(name, None) is not None:
            self._engine.abort_request([name])

    def _watch(self) -> None:
        """In a thread of its own: vLLM's client waits for ever for an engine that was killed, and
        the driver with it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        resources = self._engine.engine_core.resources
        while not self._over.wait(_HEALTH_CHECK_SECONDS):
            if resources.engine_dead:
                self._fail(engine_died(EngineDeadError()))
                self._thread_hangs = True
                self._over.set()

    def _end(self, error: GemError, in_process: bool) -> None:
        self._fail(error)
        try:
            if self._engine is not None:
                self._engine.engine_core.shutdown()
                self._engine = None
                if in_process:
                    from vllm.distributed import cleanup_dist_env_and_memory

                    cleanup_dist_env_and_memory()
        finally:
            self._over.set()

    def _fail(self, error: GemError) -> None:
        """Nobody waits in vain: everything asked for and not yet done fails."""
        with self._lock:
            self._dead = self._dead or error
            listeners, self._listeners = self._listeners, {}
            batch, self._batch = self._batch, None
        for listener in listeners.values():
            listener.fail(error)
        while not self._commands.empty():
            if command := self._commands.get():
                command.refuse(error)
        if self._embeddings is not None:
            if batch is not None:
                self._embeddings.failed(batch, error)
            self._embeddings.fail_all(error)

    def _submit(self, do: Callable[[], None], refuse: Callable[[BaseException], None]) -> None:
        with self._lock:
            dead = self._dead
            if dead is None:
                self._commands.put(_Command(do, refuse))
        if dead is not None:
            refuse(dead)


@dataclass(frozen=True)
class _Command:
    do: Callable[[], None]
    refuse: Callable[[BaseException], None]
