"""`GemEncoder`: one forward pass of a transformers model under a GEM layout.

The transformers engine and training share it, so both compute the same vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gem_rag.core import varlen
from gem_rag.core.attention import (
    IMPLEMENTATION,
    Lowered,
    LoweringName,
    head_dim,
    lower,
)
from gem_rag.core.config import AdapterConfig, GemConfig, Pooling
from gem_rag.core.halves import PaddedTexts, SpecialHalf, TextHalf
from gem_rag.core.layout import Layout, Role, Row, group_to_fit
from gem_rag.core.packed_texts import PackedTexts
from gem_rag.core.passes import compile_text_half, count_layers, run, run_text, up_to_layer
from gem_rag.core.pooling import pool
from gem_rag.core.rotary import make_rotary_rowwise
from gem_rag.core.special_tokens import EVERYWHERE, Positions, SpecialTokens
from gem_rag.core.transfer import to_device
from gem_rag.errors import GemError

_OWN_PASS = 0.1  # of the outputs' norm that a pass of ours may differ by from the model's own


class GemEncoder(nn.Module):
    """A causal language model and its special tokens.

    Args:
        model: Any transformers causal LM; its attention implementation is set to "gem", which is
            plain SDPA for everything but GEM passes.
        k: Special tokens in a group.
        pooling: How their outputs become one vector.
        adapter: The adapters on special-token rows, or None.
        layers: Embeddings are read after so many of the model's layers; None means all.

    Attributes:
        layers: How many of its layers texts and special tokens go through.

    Raises:
        InputError: The model does not have so many layers.
        GemError: The model's configuration says that it cannot follow the attention rule
            (`check_supported` runs it to make sure).
    """

    def __init__(
        self,
        model: Any,
        k: int,
        pooling: Pooling = "mean",
        adapter: AdapterConfig | None = None,
        layers: int | None = None,
    ) -> None:
        super().__init__()
        check_config(model)
        self.layers = count_layers(model.config, layers)
        make_rotary_rowwise(model, unscaled_positions(model.config))
        model.set_attn_implementation(IMPLEMENTATION)
        self.model = model
        self.k = k
        self.pooling = pooling
        self.adapter = adapter
        self.special = SpecialTokens(model, k, adapter)
        self._compiled_text: Callable[[TextHalf], Tensor] | None = None

    @property
    def base(self) -> Any:
        """The model without its language-modelling head."""
        return self.model.base_model

    @property
    def read_out(self) -> Any:
        """As `base`, up to the layer that embeddings are read after; for one pass."""
        return up_to_layer(self.base, self.model.config, self.layers)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return GemConfig(k=self.k, pooling=self.pooling).dim(output_width(self.model))

    @property
    def device(self) -> torch.device:
        return self.special.embeddings.device

    def forward(self, layout: Layout, how: LoweringName = "split") -> Tensor:
        """Embed a batch.

        Args:
            layout: The batch.
            how: Which lowering of the attention rule to use.

        Returns:
            Unit vectors, one for each group of special tokens: float32 [groups, dim].
        """
        return self._pool(self._run_layout(self.read_out, layout, how), layout)

    def hidden_states(self, layout: Layout, how: LoweringName = "split") -> Tensor:
        """Outputs of the last of all layers after the final norm: [B, T, hidden]."""
        return self._run_layout(self.base, layout, how)

    def _run_layout(self, model: Any, layout: Layout, how: LoweringName) -> Tensor:
        special: Positions
        if layout.rest_start is not None and not (layout.tokens.role == Role.SUFFIX).any():
            special = slice(layout.rest_start, layout.shape[1])
        else:
            special = to_device(layout.tokens.role == Role.SPECIAL, self.device)
        return self._run(model, lower(layout, how, self.device), special)

    def embed_lowered(self, lowered: Lowered) -> Tensor:
        """As `forward`, of rows in the split lowering that have one group of special tokens each.

        It launches the same operations for all rows of a shape, without waiting for any.
        """
        specials = slice(lowered.rest_start, None)
        return pool(self._run(self.read_out, lowered, specials)[:, specials], self.pooling)

    def _run(self, model: Any, lowered: Lowered, special: Positions) -> Tensor:
        with self.special.active(special):
            return run(
                model,
                lowered,
                lowered.mask,
                inputs_embeds=self._embed(lowered),
                position_ids=lowered.tokens.position,
            )

    def _embed(self, lowered: Lowered) -> Tensor:
        """Input embeddings [B, T, hidden]: the vocabulary's, and the special tokens' own."""
        ids, is_special = lowered.ids, lowered.tokens.role == Role.SPECIAL
        text: Tensor = self.base.get_input_embeddings()(ids.masked_fill(is_special, 0))
        special = self.special.embeddings[ids.clamp(max=self.k - 1)].to(text.dtype)
        return torch.where(is_special[..., None], special, text)

    def embed_in_halves(
        self, layouts: Sequence[Layout], frozen_texts: bool = False, pass_tokens: int = 2**17
    ) -> Tensor:
        """As `forward`, for any number of batches whose special tokens run together.

        Args:
            layouts: "Aligned" batches without suffixes.
            frozen_texts: Whether texts need no gradients, as in the `special` scope, where nothing
                that a text token computes can change.
            pass_tokens: Text tokens in one pass, where batches can be packed together.

        Returns:
            Unit vectors of all groups, batch after batch: float32 [groups, dim].
        """
        layouts = [layout for layout in layouts if (layout.tokens.role == Role.SPECIAL).any()]
        if not layouts:
            return torch.zeros(0, self.dim, device=self.device)
        texts = list(self._text_halves(layouts, pass_tokens))
        model = self.read_out
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen_texts):
            for text in texts:
                (self._compiled_text or partial(run_text, model))(text)
        half = SpecialHalf(texts, self.device)
        embeds = self.special.embeddings[half.slots]
        with self.special.active(EVERYWHERE):
            hidden = run(
                model,
                half,
                inputs_embeds=embeds[None].to(self.base.get_input_embeddings().weight.dtype),
                position_ids=half.position[None],
            )
        return pool(hidden[0, half.places].unflatten(0, (-1, self.k)), self.pooling)

    @property
    def compiled(self) -> bool:
        """Whether texts go through compiled layers."""
        return self._compiled_text is not None

    def compile_texts(self, compiled: bool = True) -> None:
        """Run the texts of `embed_in_halves` through compiled layers, or plain ones again.

        Raises:
            GemError: The model is spread over devices by hooks.
        """
        self._compiled_text = compile_text_half(self.read_out) if compiled else None

    def _text_halves(self, layouts: Sequence[Layout], pass_tokens: int) -> Iterator[TextHalf]:
        """The passes that some batches' texts take."""
        if not self.packs_texts:
            yield from (PaddedTexts(layout, self.device) for layout in layouts)
            return
        for together in group_to_fit(layouts, pass_tokens):
            yield PackedTexts(together, self.device, self._attention_dtype)

    @property
    def packs_texts(self) -> bool:
        """Whether texts of any lengths run in one pass without padding."""
        width = head_dim(self.model.config.get_text_config())
        return varlen.is_supported(self.device, self._attention_dtype, width)

    @property
    def _attention_dtype(self) -> torch.dtype:
        device = self.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        dtype: torch.dtype = self.base.get_input_embeddings().weight.dtype
        return dtype

    def _pool(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Pool outputs, [B, T, hidden]."""
        rows, columns = (to_device(i, self.device) for i in layout.specials)
        return pool(hidden[rows, columns].unflatten(0, (-1, self.k)), self.pooling)


def output_width(model: Any) -> int:
    """Features of a causal language model's output, which a projection may follow the layers of."""
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        return head.in_features
    return int(model.config.get_text_config().hidden_size)


def check_config(model: Any) -> None:
    """Raise GemError, with the reason, for architectures known to break the attention rule."""
    config = model.config.get_text_config()
    if not model._can_set_attn_implementation():
        raise GemError(
            f"{config.model_type} does not use transformers' attention interface, so GEM cannot "
            "set who attends to whom: choose another architecture"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention", "sliding_attention"
    }  # fmt: skip
    if kinds:
        raise GemError(
            f"{config.model_type} has layers of kind {', '.join(sorted(kinds))}, which carry text "
            "past an attention mask: choose a model whose layers all use softmax attention"
        )
    if getattr(config, "hidden_size_per_layer_input", None):
        raise GemError(
            f"{config.model_type} feeds token ids into every layer, and GEM's special tokens have "
            "none: choose a model with one input embedding"
        )


@torch.inference_mode()
def check_supported(encoder: GemEncoder, how: LoweringName = "split") -> None:
    """Run a few tokens through a model to check that it follows the attention rule.

    It does if every layer of an embedding pass uses the lowered attention, the outputs of a text
    are those of the model's own forward pass, and none changes when special tokens are added.

    Raises:
        GemError: It does not; the message says why.
    """
    config = encoder.model.config.get_text_config()
    name = config.model_type
    text = [i % config.vocab_size for i in range(1, 7)]
    bare = Layout.build([Row(text, ())], encoder.k)
    full = Layout.build([Row(text, ((0, 3), (0, 6)))], encoder.k)
    lowered = lower(full, "dense", encoder.device)  # a mask that every attention can take
    try:
        encoder._run(encoder.read_out, lowered, slice(full.rest_start, None))
        if lowered.calls == encoder.layers:
            with_specials = encoder.hidden_states(full, how)
            plain = encoder.hidden_states(bare, how)
            ids = torch.tensor([text], device=encoder.device)
            own = encoder.base(input_ids=ids, use_cache=False).last_hidden_state
    except GemError:
        raise
    except Exception as error:  # whatever the architecture's own code runs into
        reason = str(error).strip().split("\n")[0]
        raise GemError(f"{name} cannot run under GEM attention ({reason}): choose another "
                       "architecture, or another attention") from error  # fmt: skip
    if lowered.calls != encoder.layers:
        raise GemError(
            f"{name} runs {lowered.calls} of its {encoder.layers} layers through transformers' "
            "attention interface, so GEM cannot set who attends to whom: choose another "
            "architecture"
        )
    # Different kernels: in half precision, deep models differ by a few percent.
    change = ((plain - own).norm() / plain.norm()).item()
    if not change <= _OWN_PASS:
        raise GemError(
            f"{name} does not read texts from left to right: GEM's pass gives a text other outputs "
            f"than the model's own ({change:.0%} of their norm); choose a decoder-only model"
        )
    difference = (plain - with_specials[:, : len(text)]).abs().max().item()
    if not difference <= 1e-2 * plain.abs().max().item():
        raise GemError(
            f"{name} lets text tokens see special tokens (outputs differ by {difference:.2g}): "
            "its layers mix tokens outside attention; choose another architecture"
        )


def max_text_tokens(config: Any, k: int) -> int:
    """The most text tokens that leave room for k special tokens and fit a sliding window."""
    config = config.get_text_config()
    limits = [int(config.max_position_embeddings)]
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        limits.append(int(window))
    # Beyond, some scalings choose their frequencies by a row's length, which is the text's and not
    # the special tokens': a vector would depend on how its text was batched.
    limits.append(unscaled_positions(config))
    return min(limits) - k


def unscaled_positions(config: Any) -> int:
    """Positions below which no scaling of rotary embeddings changes its frequencies."""
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    by_kind = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    limits = [
        int(part.get("original_max_position_embeddings") or config.max_position_embeddings)
        for part in by_kind
        if part.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=int(config.max_position_embeddings))
