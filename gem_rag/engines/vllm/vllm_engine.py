"""The vLLM engine: vLLM generates, and embeds in its workers, on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np

from gem_rag._utils.cancellation import on_cancel
from gem_rag.core.arrays import FloatArray
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.layout import Row
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.engines.engine import Engine
from gem_rag.engines.vllm import rpc
from gem_rag.engines.vllm.driver import AnyDriver, Driver
from gem_rag.engines.vllm.embedding_queue import EmbeddingQueue, check_share
from gem_rag.engines.vllm.engine_args import engine_config, run_in_process
from gem_rag.errors import GemError
from gem_rag.generation.listeners import GenerationListener, StreamListener
from gem_rag.generation.sampling import Generation, Sampling


class VllmEngine(Engine):
    """A vLLM engine that also embeds.

    checkpoint: the folder to load.
    in_process: run vLLM in this process, without workers of its own. Otherwise, as vLLM does by
        default, the engine has a process of its own, and a script needs
        `if __name__ == "__main__":`.
    embed_share: of the time, that embeddings may take while text is being generated.
    engine_args: vLLM's own (`vllm.EngineArgs`): dtype, tensor_parallel_size, quantization, ...

    Raises InputError if vLLM is not installed, does not know the model or refuses an argument;
    GemError if the architecture's attention cannot be replaced.
    """

    name = "vllm"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        in_process: bool = False,
        embed_share: float = 0.5,
        **engine_args: Any,
    ) -> None:
        check_share(embed_share)
        folder, k = str(checkpoint.path), checkpoint.config.k
        self._k = k

        def prepare(call: Callable[..., list[Any]]) -> EmbeddingQueue:
            self._capabilities = rpc.WorkerCapabilities.of(call(rpc.LOAD, args=(folder, k)))
            return self._capabilities.queue(k, embed_share)

        with run_in_process(in_process):
            config = engine_config(folder, engine_args)
            self._driver: AnyDriver = Driver(config, in_process, prepare)
        self._describe(checkpoint, config.model_config)

    def _describe(self, checkpoint: Checkpoint, model_config: Any) -> None:
        """Set what every engine says of its model."""
        self.tokenizer = SafeTokenizer.from_folder(str(checkpoint.path))
        self.dim = checkpoint.config.dim(self._capabilities.hidden)
        self.dtype = str(model_config.dtype).removeprefix("torch.")
        self.vocab_size = int(model_config.get_vocab_size())
        self.context_length = int(model_config.max_model_len)
        self.max_text_tokens = self._capabilities.max_text_tokens
        self.batch_tokens = self._capabilities.batch_tokens

    def embed(self, rows: Sequence[Row]) -> FloatArray:
        self._capabilities.check(rows, self._k)
        return self._driver.embed(rows).result()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generation]:
        decode = self.tokenizer.decode
        listeners = [GenerationListener(len(prompt), sampling, decode) for prompt in prompts]
        with self._submitted(prompts, sampling, listeners):
            return [listener.generation.result() for listener in listeners]

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Generator[str, None, Generation]:
        listener = StreamListener(len(prompt), sampling, self.tokenizer.decode)
        with self._submitted([prompt], sampling, [listener]):  # left when the reader walks away
            return (yield from listener.pieces())

    @contextmanager
    def _submitted(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        listeners: Sequence[GenerationListener],
    ) -> Iterator[None]:
        """Generates while the block runs."""
        names = [
            self._driver.generate(prompt, self._params(sampling, number), _Receiver(listener))
            for number, (prompt, listener) in enumerate(zip(prompts, listeners, strict=True))
        ]

        def cancel() -> None:
            for name, listener in zip(names, listeners, strict=True):
                self._driver.abort(name)
                listener.fail(GemError("the call was cancelled"))

        with on_cancel(cancel):
            yield

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> FloatArray:
        listeners = []
        for prompt, tokens in pairs:
            # The last token is forced, so that a continuation may fill the whole context. vLLM
            # reads what prompts share once, but not where it is to score tokens of the prompt.
            listener = _ScoreListener(tokens)
            params = self._params(Sampling(max_tokens=1, logprobs=0),
                                  prompt_logprobs=0 if len(tokens) > 1 else None,
                                  allowed_token_ids=[tokens[-1]])  # fmt: skip
            self._driver.generate([*prompt, *tokens[:-1]], params, listener)
            listeners.append(listener)
        return np.array([listener.score.result() for listener in listeners], dtype=np.float32)

    @property
    def num_generating(self) -> int:
        return len(self._driver)

    def close(self) -> None:
        self._driver.close()

    def _params(self, sampling: Sampling, number: int = 0, **more: Any) -> Any:
        """vLLM's `SamplingParams`, for one of a call's prompts, given its number.

        Stop strings are looked for here, so that both engines agree on them; markers are single
        tokens, which no decoded text shows.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        if sampling.constraint is not None:
            more["structured_outputs"] = StructuredOutputsParams(grammar=sampling.constraint)
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logprobs=sampling.logprobs,
            seed=None if sampling.seed is None else sampling.seed + number,
            stop_token_ids=self.tokenizer.stop_token_ids(sampling.stop),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            **more,
        )


class _Receiver:
    """Gives a listener what vLLM says of its request."""

    def __init__(self, listener: GenerationListener) -> None:
        self._listener = listener

    def receive(self, output: Any) -> bool:
        self._listener.reused_tokens = output.num_cached_tokens or 0
        return self._listener.add(*_new_tokens(output))

    def fail(self, error: BaseException) -> None:
        self._listener.fail(error)


class _ScoreListener:
    """Reads the log-probabilities of given tokens, all but the last of them in the prompt."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.score: Future[float] = Future()
        self._tokens = tokens
        self._likely: list[float] = []

    def receive(self, output: Any) -> bool:
        if output.prompt_logprobs is not None and len(self._tokens) > 1:
            read = output.prompt_logprobs[1 - len(self._tokens) :]
            self._likely += [
                at[token].logprob for at, token in zip(read, self._tokens, strict=False)
            ]
        if output.finished:
            self._likely.append(output.outputs[0].logprobs[0][self._tokens[-1]].logprob)
            self.score.set_result(float(np.mean(self._likely)))
        return True

    def fail(self, error: BaseException) -> None:
        self.score.set_exception(error)


def _new_tokens(output: Any) -> tuple[list[int], Any, list[dict[int, float]]]:
    """What `GenerationListener.add` takes: tokens without the one that ends a text, why it ended,
    if it did, and log-probabilities."""
    completion = output.outputs[0]
    tokens, reason = list(completion.token_ids), completion.finish_reason
    logprobs = [
        {token: one.logprob for token, one in at.items()} for at in completion.logprobs or ()
    ]
    if reason == "stop":
        tokens.pop()
    return tokens, reason, logprobs[: len(tokens)]
