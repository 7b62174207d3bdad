"""The transformers engine: any causal language model on CPU or GPU.

It embeds with `core.encoder.GemEncoder` and generates with a `ContinuousBatcher`; both run on the
same weights.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from safetensors import SafetensorError

from gem_rag._utils.cancellation import on_cancel
from gem_rag._utils.deprecation import warn_renamed
from gem_rag._utils.fair_lock import FairLock
from gem_rag._utils.suggestions import check_choice
from gem_rag.core.arrays import FloatArray
from gem_rag.core.attention import LoweringName
from gem_rag.core.auto_model import load_language_model
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.encoder import GemEncoder, check_supported, context_length
from gem_rag.core.layout import Row
from gem_rag.core.memory import pass_tokens
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.engines.batch_embedder import BatchEmbedder, Compile
from gem_rag.engines.continuous_batching import ContinuousBatcher
from gem_rag.engines.decoding import DecodingBatch, Request, SeparateSequences, batch_kind
from gem_rag.engines.engine import Engine
from gem_rag.engines.prefix_cache import DEFAULT_DISK, DEFAULT_MEMORY, PrefixCache
from gem_rag.engines.scoring import mean_log_probs
from gem_rag.errors import GemError, InputError
from gem_rag.generation.listeners import GenerationListener, StreamListener
from gem_rag.generation.repetition import LoopBreaker
from gem_rag.generation.sampling import Generation, Sampling

_GENERATION_TOKENS = 8192


class TransformersEngine(Engine):
    """A transformers model on one device.

    Args:
        checkpoint: The folder to load.
        device: A torch device, or "auto" for CUDA if there is a GPU.
        dtype: The name of a torch dtype, or "auto": float32 on a CPU, the checkpoint's elsewhere.
        attention: A lowering of the attention rule for passes of both halves, or "auto": split.
            Batches that would be much padded run in two halves; "dense", the plain reference, runs
            everything in one pass.
        compile: Whether texts go through compiled layers (`torch.compile`) and a short text alone,
            on a GPU, through one CUDA graph. "auto" compiles on a GPU once embedding has taken as
            long as compiling repays. Vectors differ by rounding; generation is never compiled.
        prefix_cache_bytes: Keys and values of prompts that are kept in memory, so that a prompt
            which begins alike goes on from them; 0 for none.
        prefix_cache_folder: Gets what memory has no room for any more; default it is dropped.
        prefix_cache_disk_bytes: Of that folder's files.
        model_kwargs: Passed on to transformers' `from_pretrained`.

    Raises:
        InputError: The folder cannot be loaded, or names a layer that the model does not have.
        GemError: The architecture cannot follow the attention rule.
    """

    name = "transformers"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "auto",
        attention: LoweringName | Literal["auto"] = "auto",
        compile: Compile = "auto",
        prefix_cache_bytes: int = DEFAULT_MEMORY,
        prefix_cache_folder: str | Path | None = None,
        prefix_cache_disk_bytes: int = DEFAULT_DISK,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_cpu = torch.device(device).type == "cpu"
        if dtype == "auto" and on_cpu:
            dtype = "float32"
        self.tokenizer, model = _load(checkpoint, dtype, model_kwargs or {})
        if "device_map" not in (model_kwargs or {}):
            model = model.to(device)
        config = checkpoint.config
        encoder = GemEncoder(model, config.k, config.pooling, config.adapter, config.layers)
        adapter = checkpoint.adapter()
        if adapter is not None:
            encoder.special.load_tensors(adapter)
        encoder.eval().requires_grad_(False)
        self.lowering = _choose_lowering(encoder, attention)
        self.dim = encoder.dim
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.vocab_size = int(model.get_input_embeddings().num_embeddings)
        self.context_length = context_length(model.config)
        self.max_text_tokens = encoder.max_text_tokens
        self.batch_tokens = pass_tokens(model, encoder.device, encoder.layers)
        # In prompts that are read at once.
        self._generation_tokens = min(self.batch_tokens, _GENERATION_TOKENS)
        self._eos, self._pad = _take_end_tokens(model)
        # One pass at a time bounds memory; an embedding never waits for a long generation to end.
        self._generation_lock = FairLock()
        self._embedder_or_none: BatchEmbedder | None = BatchEmbedder(
            encoder, self.lowering, self.batch_tokens, compile, self._generation_lock
        )
        self._batch_kind = batch_kind(model)
        self._prefixes = PrefixCache(
            checkpoint.fingerprint, self.dtype, encoder.device,
            prefix_cache_bytes, prefix_cache_folder, prefix_cache_disk_bytes,
        )  # fmt: skip
        self._why_no_prefixes = self._find_why_no_prefixes(model)
        self._batcher = ContinuousBatcher(
            lambda: self._model,
            self._generation_lock,
            self._new_batch,
            capacity=4 * self._generation_tokens,
            prompt_tokens=self._generation_tokens,
            free_memory=self._prefixes.store.clear,
        )

    def _new_batch(self) -> DecodingBatch | SeparateSequences:
        if self._batch_kind is not DecodingBatch:
            return self._batch_kind(self._pad)
        return DecodingBatch(self._pad, None if self._why_no_prefixes else self._prefixes.store)

    def _find_why_no_prefixes(self, model: Any) -> str:
        """Why keys and values of prompts are not kept; nothing if they are."""
        if self._batch_kind is not DecodingBatch:
            return "this model keeps more than keys and values of what it has read"
        if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
            return "this model lies on several devices"
        return ""

    def use_prefixes(self, folder: Path) -> bool:
        if not self._why_no_prefixes:
            self._prefixes.use(folder)
        return not self._why_no_prefixes

    def keep_prefixes(self, prompts: Sequence[Sequence[int]], folder: Path, max_bytes: int) -> int:
        if self._why_no_prefixes:
            raise InputError(
                f"{self._why_no_prefixes}, so none can be kept for its answers: leave it out"
            )
        files = self._prefixes.files(folder, max_bytes)
        kept = self._prefixes.fill(
            lambda: self._model, prompts, files,
            budget=self._generation_tokens, pad=self._pad, turn=self._generation_lock,
        )  # fmt: skip
        self._prefixes.use(folder)
        return kept

    @property
    def _embedder(self) -> BatchEmbedder:
        if self._embedder_or_none is None:  # another thread closed the engine meanwhile
            raise GemError("this Gem has been closed: load the model again")
        return self._embedder_or_none

    @property
    def encoder(self) -> GemEncoder:
        """The model and its special tokens. Raises GemError once the engine is closed."""
        return self._embedder.encoder

    def embed(self, rows: Sequence[Row]) -> FloatArray:
        [vectors] = self.embed_batches([rows])
        return vectors

    def embed_batches(self, batches: Iterable[Sequence[Row]]) -> Iterator[FloatArray]:
        return self._embedder.embed_batches(batches)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generation]:
        decode = self.tokenizer.decode
        listeners = [GenerationListener(len(prompt), sampling, decode) for prompt in prompts]
        with self._submitted(prompts, sampling, listeners):
            self._batcher.run_until(lambda: all(one.generation.done() for one in listeners))
            return [listener.generation.result() for listener in listeners]

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Generator[str, None, Generation]:
        listener = StreamListener(len(prompt), sampling, self.tokenizer.decode)
        with self._submitted([prompt], sampling, [listener]):  # left when the reader walks away
            advance = partial(self._batcher.run_until, lambda: listener.ready)
            return (yield from listener.pieces(advance))

    @contextmanager
    def _submitted(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        listeners: Sequence[GenerationListener],
    ) -> Iterator[None]:
        """Requests that are cancelled with the block."""
        requests = [
            self._request(prompt, sampling, listener, number)
            for number, (prompt, listener) in enumerate(zip(prompts, listeners, strict=True))
        ]
        with on_cancel(lambda: self._batcher.cancel(requests)):
            self._batcher.submit(requests)
            yield

    def _request(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        listener: GenerationListener,
        number: int,
    ) -> Request:
        """The request of one of a call's prompts, given its number."""
        matcher = generator = breaker = None
        if sampling.constraint is not None:
            from llguidance import LLMatcher

            grammar = LLMatcher.grammar_from_lark(sampling.constraint)
            matcher = LLMatcher(self._llguidance, grammar)
            breaker = self._loop_breaker
        if sampling.seed is not None:
            generator = torch.Generator(self._model.device).manual_seed(sampling.seed + number)
        ends = frozenset(self._eos) | set(self.tokenizer.stop_token_ids(sampling.stop))
        return Request(prompt, sampling, ends, listener, matcher, breaker, generator)

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> FloatArray:
        return mean_log_probs(
            self._model,
            pairs,
            budget=self._generation_tokens,
            pad=self._pad if self._batch_kind is DecodingBatch else None,
            turn=self._generation_lock,
        )

    @property
    def num_generating(self) -> int:
        return len(self._batcher)

    @contextmanager
    def language_model(self) -> Iterator[Any]:
        """The plain causal language model; see `Gem.language_model`."""
        with self._generation_lock:
            yield self._model

    def close(self) -> None:
        if self._embedder_or_none is None:
            return
        with self._embedder_or_none.lock, self._generation_lock:
            self._embedder_or_none = None
            self._prefixes.store.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _model(self) -> Any:
        return self.encoder.model

    @cached_property
    def _loop_breaker(self) -> LoopBreaker:
        return LoopBreaker(self.tokenizer, self._eos, self.vocab_size)

    @cached_property
    def _llguidance(self) -> Any:
        """The vocabulary as llguidance reads it."""
        import llguidance.hf

        if not self._eos:
            raise InputError(
                "this model has no end token, so no text of it can be held to a schema: set "
                "eos_token_id in its generation_config.json"
            )
        tokenizer = self.tokenizer.hf_tokenizer
        size = max(self.vocab_size, len(tokenizer))
        return llguidance.hf.from_tokenizer(tokenizer, size, eos_token=sorted(self._eos))


def _choose_lowering(
    encoder: GemEncoder, attention: LoweringName | Literal["auto"]
) -> LoweringName:
    """The lowering to use, tried once on this model."""
    if str(attention) == "flex":
        warn_renamed("attention='flex'", "attention='auto'")
        attention = "auto"
    check_choice("attention", attention, ("auto", *get_args(LoweringName)))
    lowering: LoweringName = "split" if attention == "auto" else attention
    check_supported(encoder, lowering)
    return lowering


def _load(
    checkpoint: Checkpoint, dtype: str, model_kwargs: dict[str, Any]
) -> tuple[SafeTokenizer, Any]:
    path = str(checkpoint.path)
    try:
        tokenizer = SafeTokenizer.from_folder(path)
        model, report = load_language_model(
            path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **model_kwargs,
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path} cannot be loaded as a causal language model: {reason}") from error
    if report["missing_keys"]:  # transformers fills them with random numbers
        missing = sorted(report["missing_keys"])
        raise InputError(
            f"{path} cannot be loaded: its weights lack {missing[0]} and {len(missing) - 1} more: "
            "copy it whole"
        )
    return tokenizer, model


def _take_end_tokens(model: Any) -> tuple[set[int], int]:
    """A model's end tokens and its padding token; its other generation settings are dropped.

    `generate` takes what a call leaves open from the model's own settings: without this its
    sampling defaults and penalties would leak in.
    """
    defaults = model.generation_config
    eos = defaults.eos_token_id
    end_tokens = set() if eos is None else {eos} if isinstance(eos, int) else set(eos)
    pad = defaults.pad_token_id
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=defaults.bos_token_id, eos_token_id=eos, pad_token_id=pad
    )
    return end_tokens, int(min(end_tokens, default=0) if pad is None else pad)
