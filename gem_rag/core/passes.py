"""A forward pass of a model's layers, or of the first of them, under an attention rule; plainly or
compiled."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gem_rag.core.attention import GemAttention, model_kwargs
from gem_rag.core.halves import TextHalf
from gem_rag.errors import GemError, InputError

Place = tuple[str, ...]  # of a module in another: names of attributes


def run(
    model: nn.Module, attention: GemAttention, mask: Tensor | None = None, **inputs: Any
) -> Tensor:
    """One forward pass.

    Args:
        model: A model without its head.
        attention: How its layers attend.
        mask: What they are given for a mask.
        **inputs: Ids or embeddings, and positions.

    Returns:
        Outputs of the last layer after the final norm: [B, T, hidden].
    """
    output: Tensor = model(
        use_cache=False, **inputs, **model_kwargs(attention, mask)
    ).last_hidden_state
    return output


def run_text(model: nn.Module, text: TextHalf) -> Tensor:
    """The text half of a pass, which keeps its keys and values: as `run`."""
    return run(model, text, input_ids=text.ids, position_ids=text.position)


def count_layers(config: Any, layers: int | None = None) -> int:
    """Layers of an embedding pass.

    Args:
        config: The model's configuration.
        layers: As of `GemConfig`.

    Raises:
        InputError: The model does not have so many.
    """
    every = int(config.get_text_config().num_hidden_layers)
    if layers is None:
        return every
    if not 1 <= layers <= every:
        raise InputError(
            f"layers is {layers}, and the model has {every} layers: set it to a number from 1 to "
            f"{every}, or to null for all"
        )
    return layers


def up_to_layer(model: Any, config: Any, layers: int | None) -> Any:
    """A model of the same weights and hooks that ends after its first layers.

    The model itself stays as it is, so that another thread may run all of it meanwhile. The copy
    is of a few attributes: take a new one for each pass, since what wraps a model for training
    replaces its layers.

    Args:
        model: A model, with or without its head.
        config: Its configuration.
        layers: How many stay; None for all.

    Returns:
        The copy, or the model itself where nothing is left out.

    Raises:
        InputError: The model does not have so many layers.
        GemError: Its layers cannot be told from the rest.
    """
    every, layers = count_layers(config), count_layers(config, layers)
    if layers == every:
        return model
    places = list(_find_lists(model, every))
    if len(places) != 1:
        raise GemError(
            f"{type(model).__name__} has {len(places)} lists of {every} layers and not one, so "
            "embeddings cannot be read before the last layer: set layers to null, or choose "
            "another architecture"
        )
    return _cut(model, places[0], layers)


def _find_lists(module: nn.Module, length: int, place: tuple[str, ...] = ()) -> Iterator[Place]:
    """Where in a module there are lists of so many modules; lists in those do not count."""
    if isinstance(module, nn.ModuleList) and len(module) == length:
        yield place
        return
    for name, child in module.named_children():
        yield from _find_lists(child, length, (*place, name))


def _cut(module: Any, place: Place, layers: int) -> Any:
    """A copy of a module whose list at `place` ends after so many layers."""
    if not place:
        return module[:layers]
    name, *rest = place
    child = _cut(module._modules[name], tuple(rest), layers)
    cut = _with_modules(module, {**module._modules, name: child})
    # accelerate, where it spreads a model over devices, puts a forward there that is bound to the
    # whole model; the layers have their own.
    cut.__dict__.pop("forward", None)
    return cut


def _with_modules(module: nn.Module, modules: dict[str, nn.Module | None]) -> nn.Module:
    """A module of the same weights and hooks, with other modules in it."""
    twin = copy.copy(module)
    twin.__dict__ = {**module.__dict__, "_modules": modules}
    return twin


def compile_text_half(model: nn.Module) -> Callable[[TextHalf], Tensor]:
    """`run_text` of a model, compiled for texts of any shape by the first call.

    The model itself stays as it is, so that whatever else it does is not changed by a bit.

    Raises:
        GemError: The model is spread over devices by hooks, which a compiled copy would not have.
    """
    plain = _without_hooks(model)
    compiled: Callable[[TextHalf], Tensor] = torch.compile(
        lambda text: run_text(plain, text), dynamic=True
    )
    return compiled


def _without_hooks(module: nn.Module) -> nn.Module:
    """A module of the same weights whose layers have no hooks: those of adapters do nothing for
    texts, and would cut a compiled layer in pieces."""
    if hasattr(module, "_hf_hook"):
        raise GemError("a model that device_map spreads over devices cannot be compiled: load it "
                       "with compile=False, or on one device")  # fmt: skip
    children = module._modules.items()
    plain = _with_modules(
        module, {name: None if child is None else _without_hooks(child) for name, child in children}
    )
    plain._forward_hooks = OrderedDict()
    return plain
