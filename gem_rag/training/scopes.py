"""The scopes of GEM training, `full`, `lora` and `special`: which weights train.

| scope | trains | generation afterwards |
|---|---|---|
| full | every weight (the paper) | changes |
| lora | low-rank adapters on every token, and the special tokens' embeddings | changes |
| special | the special tokens' embeddings, and adapters on them only | the base's, bit for bit |
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gem_rag.core.adapter_targets import place_adapters
from gem_rag.core.auto_model import load_language_model
from gem_rag.core.checkpoint import Checkpoint
from gem_rag.core.config import AdapterConfig, Pooling, Scope
from gem_rag.core.encoder import GemEncoder, check_supported
from gem_rag.core.passes import up_to_layer
from gem_rag.core.precision import has_bfloat16
from gem_rag.errors import InputError
from gem_rag.training.recipe import Adapter, Recipe

_ADAPTER = Adapter()


@dataclass
class TrainableModel:
    """A model prepared for a scope: what trains is float32 and requires gradients.

    Attributes:
        scope: Which weights train.
        encoder: The model and its special tokens.
        lora: peft's model around the encoder's, in the scope `lora`.
        left_out: Which layers have no adapters though nothing was said against it, and why.
    """

    scope: Scope
    encoder: GemEncoder
    lora: Any = None
    left_out: str = ""
    _base: Any = None

    @contextmanager
    def base(self) -> Iterator[Any]:
        """The causal language model as it was before training."""
        if self.lora is not None:
            with self.lora.disable_adapter():
                yield self.encoder.model
        else:
            yield self._base or self.encoder.model

    def keep_base(self) -> None:
        """Keep the present weights for `base`, at the cost of a copy in the scope `full`."""
        if self.scope == "full":
            self._base = copy.deepcopy(self.encoder.model).requires_grad_(False).eval()

    def save_weights(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the language model's weights; the scope `special` has none of its own.

        Adapters of the scope `lora` are merged, so that the folder is an ordinary model, and also
        saved in peft's format, under lora/.
        """
        model = self.encoder.model
        if self.lora is not None:
            self.lora.save_pretrained(folder / "lora")
            model = self.lora.merge_and_unload()
        model.to(dtype).save_pretrained(folder)


def prepare_special(
    model: Any,
    k: int,
    pooling: Pooling = "mean",
    adapter: Adapter = _ADAPTER,
    layers: int | None = None,
) -> TrainableModel:
    """Train only the special tokens' own weights."""
    model.requires_grad_(False)
    # In later layers than embeddings are read after, adapters would never train.
    placement = place_adapters(up_to_layer(model, model.config, layers), adapter.targets)
    if not placement.rows:
        raise InputError(
            f"{type(model).__name__} has no layer that special tokens alone could have an adapter "
            f"on ({placement.left_out()}): use scope lora or full"
        )
    config = AdapterConfig(adapter.rank, adapter.effective_alpha, placement.rows)
    encoder = GemEncoder(model, k, pooling, config, layers)
    check_supported(encoder)
    encoder.special.to(torch.float32)
    return TrainableModel("special", encoder, left_out=placement.left_out())


def prepare_full(
    model: Any, k: int, pooling: Pooling = "mean", layers: int | None = None
) -> TrainableModel:
    """Train every weight (paper section 4)."""
    encoder = GemEncoder(model.to(torch.float32), k, pooling, layers=layers)
    check_supported(encoder)
    return TrainableModel("full", encoder.requires_grad_(True))


def prepare_lora(
    model: Any,
    k: int,
    pooling: Pooling = "mean",
    adapter: Adapter = _ADAPTER,
    layers: int | None = None,
) -> TrainableModel:
    """Train the special tokens' embeddings, and peft's low-rank adapters on every token."""
    import peft

    placement = place_adapters(model, adapter.targets)
    names = placement.rows + placement.mixed
    config = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.effective_alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(names),
    )
    wrapped = peft.get_peft_model(model, config)
    encoder = GemEncoder(wrapped.get_base_model(), k, pooling, layers=layers)
    check_supported(encoder)
    encoder.special.to(torch.float32)
    left_out = dataclasses.replace(placement, mixed=()).left_out()
    return TrainableModel("lora", encoder, wrapped, left_out)


def load_trainable(recipe: Recipe, base: Checkpoint) -> TrainableModel:
    """Load a base model and prepare it for a recipe's scope.

    Args:
        recipe: The recipe.
        base: The model to start from.

    Returns:
        The model.

    Raises:
        InputError: Special tokens are to be continued, and there are none that fit; or the model
            has fewer layers than embeddings are to be read after.
    """
    # A frozen base computes in the dtype it was saved in; weights that train are float32.
    keeps_dtype = recipe.scope != "full" and trains_in_bfloat16(recipe)
    model = load_language_model(
        base.path, dtype="auto" if keeps_dtype else torch.float32, use_safetensors=True
    )
    if recipe.scope == "full":
        trainable = prepare_full(model, recipe.k, recipe.pooling, recipe.layers)
    else:
        prepare = prepare_lora if recipe.scope == "lora" else prepare_special
        trainable = prepare(model, recipe.k, recipe.pooling, recipe.adapter, recipe.layers)
    if recipe.special_tokens == "continue":
        _continue_special_tokens(trainable, base)
    return trainable


def trains_in_bfloat16(recipe: Recipe) -> bool:
    """Whether a recipe asks for bfloat16, and the device has it."""
    return bool(recipe.trainer.get("bf16")) and has_bfloat16()


def settle_special_tokens(recipe: Recipe, base: Checkpoint) -> Recipe:
    """A recipe whose `special_tokens` is not "auto": they are continued if the base has some of
    the recipe's scope and k, with adapters of their own size."""
    if recipe.special_tokens != "auto":
        return recipe
    own = base.config
    if (own.scope, own.k) != (recipe.scope, recipe.k) or (own.adapter is None) != (
        recipe.scope != "special"
    ):
        return dataclasses.replace(recipe, special_tokens="new")
    adapter = recipe.adapter
    if own.adapter is not None:
        names = sorted({target.rsplit(".", 1)[-1] for target in own.adapter.targets})
        adapter = Adapter(own.adapter.rank, own.adapter.alpha, tuple(names))
    return dataclasses.replace(recipe, special_tokens="continue", adapter=adapter)


def _continue_special_tokens(trainable: TrainableModel, base: Checkpoint) -> None:
    """Start the special tokens from those that the checkpoint has."""
    weights = base.adapter()
    if weights is None:
        raise InputError(
            f"{base.name} has no special tokens to continue: it has not been GEM-trained; set "
            "special_tokens: new"
        )
    try:
        trainable.encoder.special.load_tensors(weights)
    except InputError as error:
        raise InputError(
            f"{base.name}'s special tokens cannot be continued: {error}; use its k, scope, "
            "layers and adapter, or special_tokens: new"
        ) from None


def trainable_state_dict(module: torch.nn.Module) -> dict[str, Tensor]:
    """The weights that train, by name."""
    return {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
