"""Special-row adapters on vLLM's linear layers, which are fused (qkv, gate/up) and sharded.

They are attached for the length of a pass that holds special rows only, and gone afterwards, so
generation never meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

from gem_rag.core.config import AdapterConfig
from gem_rag.core.special_tokens import peft_name
from gem_rag.core.tensors import read_weight
from gem_rag.errors import GemError

_ALIKE = 0.05  # of the largest output: quantised weights differ by less, other orders by more


@dataclass(frozen=True)
class _Place:
    """Where a checkpoint's linear layer is in vLLM: a module, and its part of a fused one."""

    module: nn.Module
    shard: int | str | None


class SpecialRowAdapters:
    """The low-rank updates of a `special` checkpoint, cut to this worker's shards.

    model: vLLM's model.
    adapter: rank, scale and targets.
    tensors: the adapter's weights under the names they have on disk.
    folder: the checkpoint's, where weights are looked up whose order in vLLM is not known.

    Raises GemError naming a target that vLLM has in a form that no adapter can act on.
    """

    def __init__(
        self, model: nn.Module, adapter: AdapterConfig, tensors: dict[str, Tensor], folder: Path
    ) -> None:
        updates: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        dtype, device = tensors["special_embeddings"].dtype, _device(model)
        modules = dict(model.named_modules())
        for target in adapter.targets:
            place = _find(model, modules, target, folder)
            down, up = (
                tensors[peft_name(target, part)].to(device, dtype) for part in ("lora_A", "lora_B")
            )
            scaled = up * (adapter.alpha / adapter.rank)
            updates.setdefault(place.module, []).append(
                (_shard_of_input(place.module, down), _shard_of_output(place, scaled))
            )
        # The parts of a fused layer (q, k and v, say) as one update: [parts x rank, in] and
        # [out, parts x rank], whose columns are zero outside their part's outputs.
        self._updates = {
            module: (torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1))
            for module, parts in updates.items()
        }

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Every row that passes the layers inside is updated."""
        handles = [
            module.register_forward_hook(_hook(*update)) for module, update in self._updates.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _hook(down: Tensor, up: Tensor) -> Callable[..., Any]:
    def add_update(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        inner = inputs[0] @ down.T
        if isinstance(module, RowParallelLinear) and module.reduce_results and module.tp_size > 1:
            inner = tensor_model_parallel_all_reduce(inner)
        update = inner @ up.T
        if isinstance(output, tuple):  # vLLM's layers give (output, bias)
            return output[0] + update, *output[1:]
        return output + update

    return add_update


def _find(model: nn.Module, modules: dict[str, nn.Module], target: str, folder: Path) -> _Place:
    """A target's place. Raises GemError where vLLM has no such layer, or stores it in an order of
    its own."""
    name, shard = _vllm_name(model, target)
    module = modules.get(name)
    last = name.rpartition(".")[2]
    packed = getattr(model, "packed_modules_mapping", None) or {}
    plain = isinstance(module, ReplicatedLinear | RowParallelLinear)
    plain = plain or type(module) is ColumnParallelLinear or packed.get(last) == [last]
    plain = plain or shard is not None or _keeps_order(module, read_weight(folder, target))
    if module is None or not plain:
        kind = "no layer of its own" if module is None else type(module).__name__
        raise GemError(
            f"the checkpoint adapts {target}, which in vLLM's {type(model).__name__} is {kind}, so "
            "its adapter cannot act there: use the transformers engine, or train with other "
            "targets"
        )
    return _Place(module, shard)


@torch.inference_mode()
def _keeps_order(module: nn.Module | None, weight: Tensor | None) -> bool:
    """Whether a layer that is fused in the checkpoint too computes what the weight there does, cut
    by the layer's loader, which then cuts an adapter right: some models reorder heads."""
    if weight is None or not isinstance(module, ColumnParallelLinear):
        return False
    if weight.shape[1] != module.input_size:  # GPT-2 stores its layers the other way round
        weight = weight.T
    if weight.shape != (module.output_size, module.input_size):
        return False
    like = next(module.parameters())
    part = _loaded(module, (module.output_size_per_partition, module.input_size), weight,
                   output_dim=0).to(like.device)  # fmt: skip
    dtype = like.dtype if like.is_floating_point() else torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(8, module.input_size, generator=generator).to(like.device, dtype)
    rows = torch.cat([probes, torch.zeros_like(probes[:1])])  # the last one gives the bias
    output = module(rows)
    output = (output[0] if isinstance(output, tuple) else output).float()
    wanted = probes.float() @ part.float().T
    difference = (output[:-1] - output[-1:] - wanted).abs().max()
    return bool(difference <= _ALIKE * wanted.abs().max())


def _vllm_name(model: nn.Module, target: str) -> tuple[str, int | str | None]:
    """A layer's name in vLLM and, in a fused layer, the part of it, as vLLM loads its weight."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is not None:
        for name, weight in mapper.apply([(f"{target}.weight", torch.empty(0))]):
            target, shard = name.removesuffix(".weight"), getattr(weight, "shard_id", None)
            if shard is not None:
                return target, shard
    parent, _, last = target.rpartition(".")
    for fused, parts in (getattr(model, "packed_modules_mapping", None) or {}).items():
        if last in parts and len(parts) > 1:
            index = parts.index(last)
            return f"{parent}.{fused}", "qkv"[index] if len(parts) == 3 else index
    return target, None


def _shard_of_input(module: nn.Module, down: Tensor) -> Tensor:
    """This worker's columns of A, [rank, in]: all of them, except where the input is sharded."""
    if not isinstance(module, RowParallelLinear):
        return down
    return _loaded(module, (down.shape[0], module.input_size_per_partition), down, input_dim=1)


def _shard_of_output(place: _Place, up: Tensor) -> Tensor:
    """This worker's rows of B, [out, rank], for all of a fused layer's outputs."""
    module = place.module
    if not isinstance(module, ColumnParallelLinear):
        return up
    shape = (module.output_size_per_partition, up.shape[1])
    shard = () if place.shard is None else (place.shard,)
    return _loaded(module, shape, up, *shard, output_dim=0)


def _loaded(
    module: Any, shape: tuple[int, int], full: Tensor, *shard: int | str, **dims: int
) -> Tensor:
    """A worker's part of a full matrix, cut by the layer's own loader as its weight was."""
    part = nn.Parameter(full.new_zeros(shape), requires_grad=False)
    for name, value in dims.items():
        setattr(part, name, value)
    # By class: an instance may carry the loader of a quantised weight.
    type(module).weight_loader(module, part, full, *shard)
    return part.data


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
