"""Attention of the texts by vLLM's own kernel, over a scratch cache of one layer.

Under the rule of `attention.py` texts attend causally to themselves: what vLLM's kernels do for
a prompt, for texts of any lengths at once. They read keys and values from a paged cache, so the
texts get one that lives for a step and that every layer uses in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.attention.backend import CommonAttentionMetadata, MultipleOf

AttendTexts = Callable[[Any, Tensor, Tensor, Tensor, Tensor], None]


class Prefill:
    """Layers whose texts attend by their own kernel.

    layers: vLLM's attention layers by name, with their caches.
    """

    def __init__(self, layers: dict[str, Any], vllm_config: Any, device: torch.device) -> None:
        self._device = device
        alike: dict[Any, list[str]] = {}
        for name, layer in layers.items():
            what = (layer.attn_backend, layer.get_kv_cache_spec(vllm_config))
            alike.setdefault(what, []).append(name)
        self._kinds: dict[str, _LayerKind] = {}
        for (backend, spec), names in alike.items():
            sizes = backend.get_supported_kernel_block_sizes(spec)
            block = min(size.base if isinstance(size, MultipleOf) else size for size in sizes)
            spec = spec.copy_with_new_block_size(block)
            builder = backend.get_builder_cls()(spec, names, vllm_config, device)
            self._kinds |= dict.fromkeys(
                names, _LayerKind(builder, block, layers[names[0]].kv_cache)
            )
        self.block = max(kind.block for kind in self._kinds.values())

    def step(self, lengths: Sequence[int]) -> AttendTexts:
        """How layers attend in a step of texts of these lengths, which lie one after another:
        called with a layer, [tokens, heads, width] of query, key and value, and where to write."""
        prepared = {id(kind): kind.prepare(lengths, self._device)
                    for kind in set(self._kinds.values())}  # fmt: skip

        def attend(layer: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
            cache, slots, metadata = prepared[id(self._kinds[layer.layer_name])]
            impl = layer.impl
            if not layer.attn_backend.forward_includes_kv_cache_update:
                impl.do_kv_cache_update(layer, key, value, cache, slots)
            # Its class's, since its own is replaced while texts are embedded.
            type(impl).forward(impl, layer, query, key, value, cache, metadata, output)

        return attend


@dataclass(frozen=True, eq=False)
class _LayerKind:
    """Layers alike: what vLLM's metadata for them is made by.

    block: tokens in a block of the scratch cache.
    cache: a layer's own cache [blocks, heads, tokens, width], for its shape and order in memory.
    """

    builder: Any
    block: int
    cache: Tensor

    def prepare(self, lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Any]:
        """A scratch cache, the texts' places in it, and the backend's own metadata."""
        table, slots = assign_blocks(np.asarray(lengths), self.block)
        starts = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
        sizes = torch.tensor(lengths, dtype=torch.int32)
        on_device = torch.as_tensor(slots, device=device)
        common = CommonAttentionMetadata(
            query_start_loc=starts.to(device),
            query_start_loc_cpu=starts,
            seq_lens=sizes.to(device),
            seq_lens_cpu_upper_bound=sizes,
            num_reqs=len(lengths),
            num_actual_tokens=len(slots),
            max_query_len=max(lengths),
            max_seq_len=max(lengths),
            block_table_tensor=torch.as_tensor(table, device=device),
            slot_mapping=on_device,
            causal=True,
            is_prefilling=torch.ones(len(lengths), dtype=torch.bool),
        )
        scratch = self._scratch(1 + int(table.max()))
        return scratch, on_device, self.builder.build(0, common)

    def _scratch(self, blocks: int) -> Tensor:
        """Blocks ordered in memory as the layer's own are; of zeros, since kernels read a block to
        its end and a NaN would show through a mask."""
        _, heads, _, width = self.cache.shape
        shape = (blocks, heads, self.block, width)
        order = sorted(range(4), key=self.cache.stride, reverse=True)
        ordered = self.cache.new_zeros([shape[dim] for dim in order])
        return ordered.permute(*np.argsort(order).tolist())


def assign_blocks(lengths: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Each text in blocks of its own: block numbers, int32 [texts, most blocks], and the places of
    the tokens, int64 [tokens]."""
    counts = -(-lengths // block)
    first = np.cumsum(counts) - counts
    table = first[:, None] + np.arange(counts.max())
    table = np.where(np.arange(counts.max()) < counts[:, None], table, 0).astype(np.int32)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return table, np.repeat(first * block, lengths) + within
