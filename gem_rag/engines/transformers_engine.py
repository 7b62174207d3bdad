"""The transformers engine: any causal language model on CPU or GPU.

Embeds with `encoder.GemEncoder` and generates with the model's own `generate`; both run on the
same weights. Knows nothing about prompts, long texts or batches (see `model.py`).
"""

from __future__ import annotations

import gc
import queue
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers.generation import (
    BaseStreamer,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from gem_rag._utils.suggestions import check_choice
from gem_rag.core.arrays import FloatArray
from gem_rag.core.attention import IMPLEMENTATION, LoweringName
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.encoder import GemEncoder, check_supported, longest_text
from gem_rag.core.layout import Arrangement, Layout, Row, plan_batches
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.engines.engine import Engine
from gem_rag.engines.micro_batching import MicroBatcher
from gem_rag.errors import GemError, InputError
from gem_rag.generation.sampling import FinishReason, Generation, Sampling
from gem_rag.generation.stop_strings import StopStringBuffer, cut_at_stop


class TransformersEngine(Engine):
    """A transformers model on one device.

    checkpoint: the folder to load.
    device: a torch device, or "auto" for CUDA where there is a GPU.
    dtype: a torch dtype's name, or "auto": float32 on CPU, the checkpoint's own elsewhere.
    attention: a lowering of the attention rule, or "auto": flex on CUDA, split elsewhere.
    model_kwargs: passed on to `AutoModelForCausalLM.from_pretrained`.

    Raises InputError if the folder cannot be loaded, GemError if the architecture cannot follow
    the attention rule.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "auto",
        attention: LoweringName | Literal["auto"] = "auto",
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_cpu = torch.device(device).type == "cpu"
        path = str(checkpoint.path)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                dtype=("float32" if on_cpu else "auto") if dtype == "auto" else dtype,
                attn_implementation=IMPLEMENTATION,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **(model_kwargs or {}),
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"{path} cannot be loaded as a causal language model: {reason}"
            ) from error
        if report["missing_keys"]:  # transformers fills them with random numbers
            missing = sorted(report["missing_keys"])
            raise InputError(
                f"{path} cannot be loaded: its weights lack {missing[0]} and {len(missing) - 1} "
                "more: copy it whole"
            )
        config = checkpoint.config
        if "device_map" not in (model_kwargs or {}):
            model = model.to(device)
        encoder = GemEncoder(model, config.k, config.pooling, config.adapter)
        adapter = checkpoint.adapter()
        if adapter is not None:
            encoder.special.load_tensors(adapter)
        self._encoder_or_none: GemEncoder | None = encoder.eval().requires_grad_(False)
        self._how = self._checked_lowering(attention, on_cpu)

        self.text = SafeTokenizer(tokenizer)
        self.dim = self._encoder.dim
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)
        self.context = int(model.config.get_text_config().max_position_embeddings)
        self.longest_text = longest_text(model.config, config.k)
        self.batch_tokens = 4096 if on_cpu else 8192
        self._eos, self._pad = _take_ends(model)
        # One pass of each kind at a time bounds memory; an embedding never waits for a long
        # generation to end.
        self._embedding = threading.Lock()
        self._generating = threading.Lock()
        # A seed belongs to one call's sampling.
        self._gathered = MicroBatcher(
            self._generate, 4 * self.batch_tokens, alone=lambda s: s.seed is not None
        )

    def _checked_lowering(
        self, attention: LoweringName | Literal["auto"], on_cpu: bool
    ) -> LoweringName:
        """The lowering to use, run once on this model."""
        check_choice("attention", attention, ("auto", *get_args(LoweringName)))
        how: LoweringName = ("split" if on_cpu else "flex") if attention == "auto" else attention
        try:
            check_supported(self._encoder, how)
        except GemError as error:
            # FlexAttention compiles for the GPU at hand, or does not.
            if attention != "auto" or how == "split":
                raise
            how = "split"
            check_supported(self._encoder, how)
            warnings.warn(f"using SDPA, since FlexAttention fails here: {error}", stacklevel=4)
        return how

    def embed(self, rows: Sequence[Row]) -> FloatArray:
        arrangement: Arrangement = "packed" if self._how == "flex" else "aligned"
        layout = Layout.build(rows, self._encoder.k, arrangement)
        with self._embedding, torch.inference_mode():
            vectors: FloatArray = self._encoder(layout, self._how).cpu().numpy()
        return vectors

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generation]:
        cost = (max(map(len, prompts)) + sampling.max_tokens) * len(prompts)
        return self._gathered(prompts, sampling, cost)

    def _generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Generation]:
        output = self._run(prompts, sampling)
        start = max(map(len, prompts))
        return [
            self._generation(row[start:], prompt, sampling)
            for row, prompt in zip(output.tolist(), prompts, strict=True)
        ]

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Generator[str, None, Generation]:
        sink = _Sink(len(prompt))

        def work() -> None:
            try:
                self._run([prompt], sampling, sink)
            except BaseException as error:  # carried to the consumer's thread
                sink.pieces.put(error)
            finally:
                sink.pieces.put(None)

        threading.Thread(target=work, name="gem-rag-stream", daemon=True).start()
        try:
            return (yield from self._shown(sink.pieces, prompt, sampling))
        finally:  # also when the consumer walks away; the worker then ends at its next token
            sink.cancelled.event.set()

    def score(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> FloatArray:
        scores = np.empty(len(continuations), dtype=np.float32)
        lengths = [len(prompt) + len(tokens) for tokens in continuations]
        for batch in plan_batches(lengths, self.batch_tokens):
            width = max(lengths[i] for i in batch)
            ids = torch.full((len(batch), width), self._pad, dtype=torch.long)
            for row, i in enumerate(batch):
                ids[row, : lengths[i]] = torch.tensor([*prompt, *continuations[i]])
            ids = ids.to(self._model.device)
            # Padding is on the right, where no scored token sees it. Only the places that
            # predict a continuation go through the head, whose output is large.
            places = torch.arange(len(prompt) - 1, width - 1, device=ids.device)
            with self._generating, torch.inference_mode():
                logits = self._model(ids, logits_to_keep=places, use_cache=False).logits
                likely = logits.float().log_softmax(-1)
                likely = likely.gather(-1, ids[:, len(prompt) :, None])[..., 0]
            for row, i in enumerate(batch):
                scores[i] = float(likely[row, : len(continuations[i])].mean())
        return scores

    @contextmanager
    def language_model(self) -> Iterator[Any]:
        """The plain causal language model itself, for libraries that measure one.

        It is what `generate` runs: special tokens and their adapters act in embedding passes only.
        Other threads' generations wait until the block ends; one in the block never would.
        """
        with self._generating:
            yield self._model

    def close(self) -> None:
        with self._embedding, self._generating:
            self._encoder_or_none = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _encoder(self) -> GemEncoder:
        if self._encoder_or_none is None:  # another thread closed the engine meanwhile
            raise GemError("this Gem has been closed: load the model again")
        return self._encoder_or_none

    @property
    def _model(self) -> Any:
        return self._encoder.model

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        sink: _Sink | None = None,
    ) -> Tensor:
        """Prompts, left-padded, and their continuations: [prompts, width]."""
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        device = self._model.device
        criteria: list[StoppingCriteria] = [sink.cancelled] if sink else []
        if sampling.stop:
            criteria.append(_StopStrings(self.text, sampling.stop, width))
        processors = []
        if sampling.constraint is not None:
            processors.append(_GrammarConstraint(self._grammar_tokens, sampling.constraint, width))
        with self._generating, torch.inference_mode(), _seeded(sampling.seed, device):
            output: Tensor = self._model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._generation_config(sampling),
                stopping_criteria=StoppingCriteriaList(criteria),
                logits_processor=LogitsProcessorList(processors),
                streamer=sink,
            )
        return output.cpu()

    @cached_property
    def _grammar_tokens(self) -> Any:
        """The vocabulary as llguidance reads it."""
        import llguidance.hf

        if not self._eos:
            raise InputError(
                "this model has no end token, so no text of it can be held to a schema: set "
                "eos_token_id in its generation_config.json"
            )
        tokenizer = self.text.tokenizer
        vocabulary = max(self.vocabulary, len(tokenizer))
        return llguidance.hf.from_tokenizer(tokenizer, vocabulary, eos_token=sorted(self._eos))

    def _ends(self, sampling: Sampling) -> set[int]:
        """Tokens that end a text: the model's own, and special tokens named as stop strings,
        which no decoded text shows."""
        return self._eos | {self.text.markers[s] for s in sampling.stop if s in self.text.markers}

    def _generation_config(self, sampling: Sampling) -> transformers.GenerationConfig:
        sample = sampling.temperature > 0
        return transformers.GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=sample,
            temperature=sampling.temperature if sample else None,
            top_p=sampling.top_p if sample else None,
            top_k=sampling.top_k if sample else None,
            eos_token_id=sorted(self._ends(sampling)) or None,
            pad_token_id=self._pad,
        )

    def _generation(
        self, tokens: list[int], prompt: Sequence[int], sampling: Sampling
    ) -> Generation:
        ends = self._ends(sampling)
        end = next((at for at, token in enumerate(tokens) if token in ends), None)
        tokens = tokens[:end]
        text, stopped = cut_at_stop(self.text.decode(tokens), sampling.stop)
        while stopped and tokens[-1] == self._pad:  # only a row that has ended is padded
            tokens.pop()
        ended = stopped or end is not None
        return Generation(text, tuple(tokens), "stop" if ended else "length", len(prompt))

    def _shown(
        self,
        pieces: queue.Queue[list[int] | BaseException | None],
        prompt: Sequence[int],
        sampling: Sampling,
    ) -> Generator[str, None, Generation]:
        ends, ended = self._ends(sampling), False
        writing = StopStringBuffer(self.text.decode, sampling.stop)
        while (piece := pieces.get()) is not None:
            if isinstance(piece, GemError):
                raise piece
            if isinstance(piece, BaseException):
                raise GemError(f"generation failed: {piece}") from piece
            ended = ended or not ends.isdisjoint(piece)
            if shown := writing.add([i for i in piece if i not in ends]):
                yield shown
        if shown := writing.rest():
            yield shown
        why: FinishReason = "stop" if writing.stopped or ended else "length"
        return Generation(writing.text, tuple(writing.tokens), why, len(prompt))


class _GrammarConstraint(LogitsProcessor):
    """Leaves each row only the tokens that its grammar allows next."""

    def __init__(self, tokens: Any, grammar: str, start: int) -> None:
        self._tokens, self._grammar, self._start = tokens, grammar, start
        self._rows: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        from llguidance import LLMatcher
        from llguidance.torch import allocate_token_bitmask, fill_next_token_bitmask

        if not self._rows:
            grammar = LLMatcher.grammar_from_lark(self._grammar)
            self._rows = [LLMatcher(self._tokens, grammar) for _ in input_ids]
        allowed = allocate_token_bitmask(len(self._rows), self._tokens.vocab_size)
        for number, (row, ids) in enumerate(zip(self._rows, input_ids.tolist(), strict=True)):
            if len(ids) > self._start and not row.is_stopped():
                row.consume_token(ids[-1])
            if row.is_error():
                raise GemError(f"the text left its grammar: {row.get_error()}")
            fill_next_token_bitmask(row, allowed, number)  # the end tokens, once it has stopped
        return scores.masked_fill(~_bits(allowed, scores.shape[1]).to(scores.device), -torch.inf)


def _bits(mask: Tensor, width: int) -> Tensor:
    """int32 [rows, words] as bool [rows, width], the lowest bit of a word first."""
    places = torch.arange(32, dtype=torch.int32)
    return (mask[..., None] >> places & 1).bool().flatten(1)[:, :width]


class _StopStrings(StoppingCriteria):
    """Ends each row whose own generated text holds a stop string; prompts do not count."""

    def __init__(self, text: SafeTokenizer, stop: Sequence[str], start: int) -> None:
        self.text, self.stop, self.start = text, stop, start

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = (self.text.decode(row) for row in input_ids[:, self.start :].tolist())
        done = [any(s in text for s in self.stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


class _Cancelled(StoppingCriteria):
    """Ends generation when nobody listens any more."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class _Sink(BaseStreamer):
    """Takes token ids from `generate` and queues all but the prompt."""

    def __init__(self, prompt_tokens: int) -> None:
        self.pieces: queue.Queue[list[int] | BaseException | None] = queue.Queue()
        self.cancelled = _Cancelled()
        self._skip = prompt_tokens

    def put(self, value: Tensor) -> None:
        tokens = value.flatten().tolist()
        skipped, self._skip = min(self._skip, len(tokens)), max(0, self._skip - len(tokens))
        if tokens[skipped:]:
            self.pieces.put(tokens[skipped:])

    def end(self) -> None:
        """The worker thread says when it is done, also when it fails."""


def _take_ends(model: Any) -> tuple[set[int], int]:
    """A model's end tokens and padding token; its other generation settings are dropped.

    What a call leaves open, `generate` takes from the model's own settings: without this its
    sampling defaults and penalties would leak in.
    """
    own = model.generation_config
    eos = own.eos_token_id
    ends = set() if eos is None else {eos} if isinstance(eos, int) else set(eos)
    pad = own.pad_token_id if own.pad_token_id is not None else min(ends, default=0)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=eos, pad_token_id=own.pad_token_id
    )
    return ends, int(pad)


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
