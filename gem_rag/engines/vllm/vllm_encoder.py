"""One embedding pass on vLLM's own layers, in the two halves of `core/halves.py`.

1. The texts, packed in flat sequences no longer than vLLM's own steps, go through its compiled
   graph and attend by its own kernel, like a prefill. Their keys and values are kept.
2. The special tokens, a few for each text, go through the same layers once, uncompiled, with their
   own input embeddings and adapters, over the kept keys and values.

Where embeddings are read before the last layer (`GemConfig.layers`), both halves run a copy of the
model that shares its layers and ends early. vLLM's compiled graph is of all layers, so texts go
uncompiled then too; they still attend by vLLM's kernel.

The engine's key/value cache is neither read nor written. Runs inside vLLM's workers; knows
nothing about requests or transport.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionType

from gem_rag.core import varlen
from gem_rag.core.arrays import FloatArray
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.encoder import max_text_tokens
from gem_rag.core.halves import PaddedTexts, SpecialHalf
from gem_rag.core.layout import (
    Layout,
    Role,
    Row,
    group_to_fit,
    plan_batches,
    vector_places,
)
from gem_rag.core.packed_texts import PackedTexts
from gem_rag.core.passes import count_layers, up_to_layer
from gem_rag.core.pooling import pool
from gem_rag.core.special_tokens import initial_special_embeddings
from gem_rag.engines.vllm.flat_texts import FlatTexts
from gem_rag.engines.vllm.prefill import Prefill
from gem_rag.engines.vllm.sharded_adapters import SpecialRowAdapters
from gem_rag.errors import GemError, InputError

logger = init_logger("vllm.gem_rag")

_PADDING = 0.2  # the largest share of kept keys and values that may be padding


class VllmEncoder:
    """A vLLM model, its special tokens, and how to embed with them.

    Args:
        model: vLLM's model.
        vllm_config: The engine's configuration.
        checkpoint: Whose special tokens and adapters are used.

    Attributes:
        model: vLLM's model, or a copy of the layers that embeddings need, on the same weights.

    Raises:
        InputError: The model does not have the layer that embeddings are read after.
        GemError: The model cannot follow the attention rule.
    """

    def __init__(self, model: nn.Module, vllm_config: Any, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._vllm_config = vllm_config
        model_config = vllm_config.model_config.hf_config
        layers = count_layers(model_config, self.config.layers)
        self.model = up_to_layer(model, model_config, layers)
        self._ends_early = self.model is not model
        self._attention_layers = attention_layers(self.model, vllm_config, layers)
        self.device = next(model.parameters()).device
        tensors = checkpoint.adapter()
        self._special = self._special_embeddings(tensors)
        self._adapters = None
        if self.config.adapter is not None and tensors is not None:
            tensors["special_embeddings"] = self._special  # of the model's dtype
            self._adapters = SpecialRowAdapters(
                model, self.config.adapter, tensors, checkpoint.path
            )
        self._packs_texts = all(
            varlen.is_supported(self.device, self._special.dtype, layer.head_size)
            for layer in self._attention_layers.values()
        )
        self._compiled = False
        self._prefill: Prefill | None = None
        self._try_vllm_kernels()

    @torch.inference_mode()
    def embed(self, rows: Sequence[Row]) -> FloatArray:
        """Embed rows.

        Returns:
            Unit vectors, one for each span, in order: float32 [spans, dim].
        """
        k = self.config.k
        lengths = [row.length(k) for row in rows]
        batches = list(plan_batches(lengths, self.max_step_tokens, _PADDING))
        layouts = [Layout.build([rows[i] for i in batch], k) for batch in batches]
        texts: list[FlatTexts] = []
        for step in group_to_fit(layouts, self.max_step_tokens, self._step_tokens):
            of_step = self._flat_texts(step)
            self._run_texts(of_step)
            texts += of_step
        hidden = self._run_specials(SpecialHalf([text.half for text in texts], self.device))
        vectors = pool(hidden.unflatten(0, (-1, k)), self.config.pooling)
        ordered: FloatArray = vectors.cpu().numpy()[vector_places(rows, batches)]
        return ordered

    @property
    def hidden(self) -> int:
        """Length of one special token's output."""
        return int(self._special.shape[1])

    @property
    def max_step_tokens(self) -> int:
        """Most tokens in one of vLLM's own steps, which its graph is compiled for."""
        return int(self._vllm_config.scheduler_config.max_num_batched_tokens)

    def bytes_per_token(self) -> int:
        """Memory that a pass needs for each token beyond what vLLM's own passes do."""
        layers = self._attention_layers.values()
        kept = sum(2 * layer.num_kv_heads * layer.head_size for layer in layers)
        # One layer's query, key, value and output as rectangles, or its scratch cache.
        widest = max(
            max(4 * layer.num_heads, 8 * layer.num_kv_heads) * layer.head_size for layer in layers
        )
        return int((kept + widest) * (1 + _PADDING)) * self._special.element_size()

    def free_bytes(self) -> int:
        """What vLLM has left free on this worker's device."""
        if self.device.type == "cpu":
            return int(psutil.virtual_memory().available)
        free, _ = torch.cuda.mem_get_info(self.device)
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(free + cached)

    @property
    def max_text_tokens(self) -> int:
        """Most text tokens in one pass: the transformers engine's bound, within vLLM's own."""
        model, k = self._vllm_config.model_config, self.config.k
        windows = [layer.sliding_window for layer in self._attention_layers.values()]
        longest = min([model.max_model_len, *filter(None, windows)])
        return min(max_text_tokens(model.hf_config, k), longest - k)

    # -- the two halves of a pass ------------------------------------------------------------

    def _flat_texts(self, layouts: Sequence[Layout]) -> list[FlatTexts]:
        """The texts of a step."""
        if self._packs_texts:
            packed = PackedTexts(layouts, self.device, self._special.dtype)
            return [FlatTexts(packed, self.device)]
        return [FlatTexts(PaddedTexts(layout, self.device), self.device) for layout in layouts]

    def _step_tokens(self, layout: Layout) -> int:
        """What a layout's texts count for in a step: whole blocks of the scratch cache, so that
        short ones fill it sooner."""
        lengths = (layout.tokens.role == Role.TEXT).sum(axis=1)
        return int(lengths.clip(min=self._prefill.block // 4 if self._prefill else 1).sum())

    def _run_texts(self, texts: Sequence[FlatTexts]) -> Tensor:
        """Run the texts of a step, which keep their keys and values.

        Returns:
            Their output after the final norm: [tokens, hidden].
        """
        ids = torch.cat([text.ids for text in texts])
        positions = torch.cat([text.positions for text in texts])
        compiled = self._compiled and len(ids) <= self.max_step_tokens  # what it is compiled for
        counts = [len(text) for text in texts]
        prefill = None
        if self._prefill is not None:
            prefill = self._prefill.step([n for text in texts for n in text.half.lengths.tolist()])

        def attend(layer: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
            parts = zip(*(x.split(counts) for x in (query, key, value, output)), strict=True)
            for text, (*qkv, out) in zip(texts, parts, strict=True):
                text.keep(*qkv[1:])
                if prefill is None:
                    text.attend((qkv[0], qkv[1], qkv[2]), layer.impl.scale, out)
            if prefill is not None:
                prefill(layer, query, key, value, output)

        with self._attention(attend):
            # int32 as vLLM's own runner has it: the graph has no guards, and with int64 it reads
            # wrong tokens without an error.
            return self._forward(ids.int(), positions, compiled=compiled)

    def _run_specials(self, half: SpecialHalf) -> Tensor:
        """The special tokens' output after the final norm: [specials, hidden]."""

        def attend(layer: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
            half.calls += 1
            query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
            attended, _ = half.attend(layer, (query, key, value), None, layer.impl.scale)
            output.copy_(attended[0])

        adapters = self._adapters.attached() if self._adapters else nullcontext()
        with self._attention(attend), adapters:
            embeds = self._special[half.slots]
            return self._forward(None, half.position, embeds, compiled=False)[half.places]

    def _forward(
        self,
        ids: Tensor | None,
        positions: Tensor,
        embeds: Tensor | None = None,
        *,
        compiled: bool,
    ) -> Tensor:
        """The output after the final norm: [tokens, hidden].

        There are no metadata and no slots: vLLM's own attention does not run, and nothing is
        written to its cache.
        """
        with (
            set_current_vllm_config(self._vllm_config),
            set_forward_context(
                None,
                self._vllm_config,
                num_tokens=len(positions),
                slot_mapping={},
                skip_compiled=not compiled,
            ),
        ):
            output = self.model(
                input_ids=ids, positions=positions, intermediate_tensors=None, inputs_embeds=embeds
            )
        return output[0] if isinstance(output, tuple) else output

    @contextmanager
    def _attention(self, attend: Callable[..., None]) -> Iterator[None]:
        """Put `attend` in the place of every layer's own attention.

        Args:
            attend: Called with a layer, its query, key and value, and the output to write:
                [tokens, heads, width] each.
        """

        def forward(
            layer: Any, query: Tensor, key: Tensor, value: Tensor, kv_cache: Any, metadata: Any,
            output: Tensor, output_scale: Any = None, output_block_scale: Any = None,
        ) -> Tensor:  # fmt: skip
            if output_scale is not None or output_block_scale is not None:
                raise GemError(
                    "vLLM quantises attention's output here, which GEM attention does not do: "
                    "switch off pass_config.fuse_attn_quant"
                )
            attend(layer, query, key, value, output)
            return output

        impls = [layer.impl for layer in self._attention_layers.values()]
        for impl in impls:
            impl.forward = forward
        try:
            yield
        finally:
            for impl in impls:
                del impl.forward  # its class's own again

    # -- setting up --------------------------------------------------------------------------

    def _special_embeddings(self, tensors: dict[str, Tensor] | None) -> Tensor:
        """The special tokens' input rows in the model's dtype: [k, hidden]."""
        with torch.inference_mode(), set_current_vllm_config(self._vllm_config):
            if tensors is None:
                vocabulary = self._vllm_config.model_config.get_vocab_size()
                return initial_special_embeddings(
                    self.model.embed_input_ids, vocabulary, self.config.k, self.device
                )
            one = self.model.embed_input_ids(torch.zeros(1, dtype=torch.long, device=self.device))
        rows = tensors["special_embeddings"]
        if rows.shape != (self.config.k, one.shape[1]):
            raise InputError(
                f"adapter weight 'special_embeddings' has shape {tuple(rows.shape)}, the model "
                f"needs {(self.config.k, one.shape[1])}: the adapter belongs to another base model"
            )
        return rows.to(self.device, one.dtype)

    @torch.inference_mode()
    def _try_vllm_kernels(self) -> None:
        """Use vLLM's attention kernels and its compiled graph, which has no guards, if texts then
        come out as by its layers under `attention.py`."""
        vocabulary = self._vllm_config.model_config.get_vocab_size()
        lengths = [min(length, self.max_text_tokens) for length in (8, 13, 39)]
        layouts = [
            Layout.build([Row([i % vocabulary for i in range(1, length + 1)], ())], self.config.k)
            for length in lengths
        ]

        def outputs() -> Tensor:
            return self._run_texts(self._flat_texts(layouts)).float()

        plain = outputs()

        def agrees(what: str) -> bool:
            try:
                difference = (outputs() - plain).abs().max().item()
            except Exception as error:  # a backend that wants more than we know to give it
                logger.warning("embedding without %s: %r", what, error)
                return False
            if difference <= 0.05 * plain.abs().max().item():
                return True
            logger.warning("embedding without %s, which gives other outputs (by %.2g)", what,
                           difference)  # fmt: skip
            return False

        if all(_caches_exactly(layer) for layer in self._attention_layers.values()):
            self._prefill = Prefill(self._attention_layers, self._vllm_config, self.device)
            self._prefill = self._prefill if agrees("vLLM's attention kernel") else None
        if self._ends_early:
            return  # the graph is of all layers
        self._compiled = True
        self._compiled = agrees("vLLM's compiled graph")


def attention_layers(model: nn.Module, vllm_config: Any, wanted: int) -> dict[str, Any]:
    """The model's attention layers by name, of which there must be so many.

    Raises GemError naming the first layer whose attention cannot be replaced.
    """
    own = {id(module) for module in model.modules()}  # a draft model's layers are registered too
    registered = vllm_config.compilation_config.static_forward_context
    layers = {
        name: layer
        for name, layer in registered.items()
        if id(layer) in own and isinstance(layer, AttentionLayerBase)
    }
    name = type(model).__name__
    for place, layer in layers.items():
        if (reason := _unsupported_reason(layer)) is not None:
            raise GemError(f"{name} cannot give GEM embeddings on vLLM: {place} {reason}; load it "
                           'with engine="transformers"')  # fmt: skip
    if len(layers) != wanted:
        raise GemError(
            f"{name} has {wanted} layers and vLLM's attention in {len(layers)} of them, so GEM "
            'cannot set who attends to whom: load it with engine="transformers"'
        )
    return layers


def _unsupported_reason(layer: Any) -> str | None:
    """Why GEM attention cannot take a layer's place, if it cannot."""
    if type(layer) is not Attention:
        return f"is {type(layer).__name__}, not plain softmax attention"
    if layer.attn_type != AttentionType.DECODER:
        return f"is {layer.attn_type} attention"
    if layer.kv_sharing_target_layer_name is not None:
        return "borrows the keys and values of another layer"
    if layer.query_quant is not None:
        return f"quantises its queries (kv_cache_dtype={layer.kv_cache_dtype})"
    for name in ("logits_soft_cap", "alibi_slopes", "sinks"):
        value = getattr(layer.impl, name, None)
        if value is not None and not (isinstance(value, int | float) and value == 0):
            return f"uses attention with {name}"
    return None


def _caches_exactly(layer: Any) -> bool:
    """Whether keys and values go through the layer's cache unchanged."""
    return bool(layer.kv_cache.dtype == layer.dtype)
