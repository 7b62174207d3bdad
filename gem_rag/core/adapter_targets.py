"""Which linear layers can have adapters on special-token rows: found out by running the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gem_rag.errors import InputError

_SHAPE = (2, 3)  # texts and tokens of the pass that shows what each layer is given


@dataclass(frozen=True)
class AdapterPlacement:
    """Where adapters can be.

    Attributes:
        rows: Names of linear layers that see [texts, tokens, features]: special tokens can be told
            from text in them.
        mixed: Of those that see tokens in another order, such as a mixture's experts: adapters on
            every token can be there, those on special tokens only cannot.
        routers: Of those that choose experts, and give more than features.
        bypassed: Of those whose weights fast kernels of recurrent layers read themselves.
        unread: Of those that texts do not go through, such as a vision tower's.
        fused: Of experts whose weights are in no linear layer.
    """

    rows: tuple[str, ...]
    mixed: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    bypassed: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()

    def left_out(self) -> str:
        """What has no adapters of special tokens, and why; empty if nothing."""
        reasons = {
            "see tokens in another order": self.mixed,
            "choose experts": self.routers,
            "have weights that fast kernels read themselves": self.bypassed,
            "are not part of reading a text": self.unread,
            "are no linear layers": self.fused,
        }
        return "; ".join(
            f"{len(names)} such as {names[0]} {reason}"
            for reason, names in reasons.items()
            if names
        )


def place_adapters(model: Any, last_names: Sequence[str] = ()) -> AdapterPlacement:
    """Find the linear layers below a model's head that can have adapters.

    Args:
        model: A causal language model; one pass of a few tokens is run.
        last_names: Only layers whose last name is among these; default all.

    Returns:
        Where adapters can be.

    Raises:
        InputError: They can be nowhere.
    """
    layers = linear_layers(model)
    probe = _Probe()
    hooks = [layer.register_forward_hook(probe.hook(name)) for name, layer in layers.items()]
    ids = torch.arange(6, device=model.get_input_embeddings().weight.device).view(_SHAPE)
    try:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    named = [name for name in layers if not last_names or _last(name) in last_names]
    chosen = [name for name in named if not _is_bypassed(model, name)]
    placement = AdapterPlacement(
        bypassed=tuple(name for name in named if name not in chosen),
        rows=tuple(name for name in chosen if probe.seen.get(name) == "rows"),
        mixed=tuple(name for name in chosen if probe.seen.get(name) == "mixed"),
        routers=tuple(name for name in chosen if probe.seen.get(name) == "router"),
        unread=tuple(name for name in chosen if name not in probe.seen),
        fused=() if last_names else tuple(_fused_experts(model)),
    )
    if not placement.rows + placement.mixed:
        there = sorted({_last(name) for name, kind in probe.seen.items() if kind != "router"})
        asked = f" named {', '.join(last_names)}" if last_names else ""
        remedy = f"name some of {', '.join(there)}" if there else "choose another model"
        raise InputError(
            f"{type(model).__name__} reads texts through no linear layer{asked} that could have an "
            f"adapter: {remedy}"
        )
    return placement


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """The linear layers below a model's head, by name."""
    head = model.get_output_embeddings()
    return {n: m for n, m in model.named_modules() if is_linear(m) and m is not head}


def is_linear(module: nn.Module | None) -> bool:
    """Whether a module is a linear layer; GPT-2 and its like have transformers' own."""
    return isinstance(module, nn.Linear | Conv1D)


def features(linear: nn.Module) -> tuple[int, int]:
    """Features that a linear layer reads and writes."""
    if isinstance(linear, Conv1D):
        return int(linear.nx), int(linear.nf)
    assert isinstance(linear, nn.Linear)
    return linear.in_features, linear.out_features


class _Probe:
    """What each layer was given in a pass: tokens in "rows" or "mixed", or it is a "router"."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def hook(self, name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                self.seen[name] = "router"
            elif inputs[0].shape[:-1] == output.shape[:-1] == _SHAPE:
                self.seen.setdefault(name, "rows")
            else:
                self.seen[name] = "mixed"

        return note


def _fused_experts(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if any(p.ndim == 3 for p in module.parameters(recurse=False)) and "expert" in _last(name):
            yield name


def _is_bypassed(model: nn.Module, name: str) -> bool:
    """Whether a layer is the last of a state space's, which mamba_ssm computes along with the
    states where a model is trained on a GPU."""
    parent = model.get_submodule(name.rpartition(".")[0])
    return _last(name) == "out_proj" and hasattr(parent, "A_log") and hasattr(parent, "D")


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
