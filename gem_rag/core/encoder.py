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
from gem_rag.core.auto_model import without_weights
from gem_rag.core.causal_rows import CausalRows, why_only_causal
from gem_rag.core.config import AdapterConfig, GemConfig, Pooling
from gem_rag.core.halves import PaddedTexts, SpecialHalf, TextHalf
from gem_rag.core.layout import Layout, Role, Row, group_to_fit
from gem_rag.core.packed_texts import PackedTexts
from gem_rag.core.passes import compile_text_half, count_layers, run, run_text, up_to_layer
from gem_rag.core.pooling import pool
from gem_rag.core.rotary import make_rotary_rowwise
from gem_rag.core.special_tokens import EVERYWHERE, Positions, SpecialTokens
from gem_rag.core.transfer import to_device
from gem_rag.errors import GemError, InputError, first_line

_ENDLESS = 2**20  # tokens
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
        only_causal: Why the model cannot be told who attends to whom, so that its own forward pass
            embeds whole texts with one special token each (`causal_rows`); None if it can.
            `check_supported` runs the model to make sure.

    Raises:
        InputError: The model does not have so many layers.
        GemError: The model cannot be told who attends to whom, and k is not 1.
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
        self.layers = count_layers(model.config, layers)
        make_rotary_rowwise(model, unscaled_positions(model.config))
        self.model = model
        self.k = k
        self.pooling = pooling
        self.adapter = adapter
        self.special = SpecialTokens(model, k, adapter)
        self.only_causal: str | None = None
        self._compiled_text: Callable[[TextHalf], Tensor] | None = None
        if reason := why_only_causal(model):
            self.embed_causally(reason)
        else:
            self._own_attention = model.config._attn_implementation
            model.set_attn_implementation(IMPLEMENTATION)

    def embed_causally(self, reason: str) -> None:
        """Embed by the model's own forward pass from now on.

        Args:
            reason: As of `only_causal`.

        Raises:
            GemError: k is not 1.
        """
        name = self.model.config.get_text_config().model_type
        if self.k != 1:
            raise GemError(
                f"{name} {reason}: it can have one special token, so choose k = 1 and not {self.k}"
            )
        if self.model.config._attn_implementation == IMPLEMENTATION:
            self.model.set_attn_implementation(self._own_attention)
        if getattr(self.model.config.get_text_config(), "attn_logit_softcapping", None):
            self.model.set_attn_implementation("eager")  # transformers' SDPA leaves the cap out
        self.special.replace_token_embeddings(self.model.get_input_embeddings())
        self.only_causal = reason

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
    def max_text_tokens(self) -> int:
        """The most tokens of a text; the model's own pass has sliding windows of its own."""
        if self.only_causal:
            return _unscaled_length(self.model.config) - self.k
        return max_text_tokens(self.model.config, self.k)

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
        if self.only_causal:
            return self._embed_causal_rows(layout)
        return self._pool(self._run_layout(self.read_out, layout, how), layout)

    def hidden_states(self, layout: Layout, how: LoweringName = "split") -> Tensor:
        """Outputs of the last of all layers after the final norm: [B, T, hidden]."""
        if not self.only_causal:
            return self._run_layout(self.base, layout, how)
        if ((layout.tokens.role != Role.TEXT) & (layout.tokens.role != Role.PAD)).any():
            raise InputError(
                f"this model {self.only_causal}, so it cannot be trained to predict text from "
                "special tokens: leave next_token out of the recipe"
            )
        output: Tensor = self.base(
            input_ids=to_device(layout.ids, self.device), use_cache=False
        ).last_hidden_state
        return output

    def _embed_causal_rows(self, layout: Layout) -> Tensor:
        """As `forward`, by the model's own forward pass."""
        assert self.only_causal
        rows = CausalRows.of(layout, self.only_causal, self.device)
        with self.special.active(rows.is_special):
            hidden = self.read_out(input_ids=rows.ids, use_cache=False).last_hidden_state
        each = torch.arange(len(rows.ids), device=self.device)
        return pool(hidden[each, rows.places][:, None], self.pooling)

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
        if self.only_causal:
            return torch.cat([self._embed_causal_rows(layout) for layout in layouts])
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
            GemError: The model is spread over devices by hooks, or embeds by its own forward pass.
        """
        if compiled and self.only_causal:
            raise GemError(f"the model {self.only_causal}, and texts go through it uncompiled")
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
        if self.only_causal:
            return False
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


@torch.inference_mode()
def check_supported(encoder: GemEncoder, how: LoweringName = "split") -> None:
    """Run a few tokens through a model to check that it follows the attention rule.

    It does if every layer of an embedding pass uses the lowered attention, the outputs of a text
    are those of the model's own forward pass, and none changes when special tokens are added. If
    layers do not use the lowered attention, the model's own forward pass embeds from now on.

    Raises:
        GemError: It does not; the message says why.
    """
    if encoder.only_causal is None and (reason := _why_not_lowered(encoder)):
        encoder.embed_causally(reason)
    config = encoder.model.config.get_text_config()
    name, text = config.model_type, _some_text(config)
    try:
        with_specials, plain = _outputs_of_text(encoder, text, how)
        ids = torch.tensor([text], device=encoder.device)
        own = encoder.base(input_ids=ids, use_cache=False).last_hidden_state
    except GemError:
        raise
    except Exception as error:  # whatever the architecture's own code runs into
        raise GemError(f"{name} cannot run under GEM attention ({first_line(error)}): choose "
                       "another architecture, or another attention") from error  # fmt: skip
    # Different kernels: in half precision, deep models differ by a few percent.
    change = ((plain - own).norm() / plain.norm()).item()
    if not change <= _OWN_PASS:
        raise GemError(
            f"{name} does not read texts from left to right: GEM's pass gives a text other outputs "
            f"than the model's own ({change:.0%} of their norm); choose a decoder-only model"
        )
    difference = (plain - with_specials).abs().max().item()
    if not difference <= 1e-2 * plain.abs().max().item():
        raise GemError(
            f"{name} lets text tokens see special tokens (outputs differ by {difference:.2g}): "
            "its layers mix tokens outside attention; choose another architecture"
        )


def _some_text(config: Any) -> list[int]:
    return [i % config.vocab_size for i in range(1, 7)]


def _why_not_lowered(encoder: GemEncoder) -> str | None:
    """Why some layer of an embedding pass does not use the lowered attention; None if all do."""
    full = Layout.build([Row(_some_text(encoder.model.config.get_text_config()), ((0, 3), (0, 6)))],
                        encoder.k)  # fmt: skip
    lowered = lower(full, "dense", encoder.device)  # a mask that every attention can take
    try:
        encoder._run(encoder.read_out, lowered, slice(full.rest_start, None))
    except Exception as error:  # whatever the architecture's own code runs into
        return f"cannot run under GEM attention ({first_line(error)})"
    if lowered.calls == encoder.layers:
        return None
    return (
        f"calls transformers' attention interface {lowered.calls} times in {encoder.layers} layers"
    )


def _outputs_of_text(
    encoder: GemEncoder, text: Sequence[int], how: LoweringName
) -> tuple[Tensor, Tensor]:
    """A text's outputs with special tokens after it, and without: [1, T, hidden] each."""
    if encoder.only_causal:
        longer = torch.tensor([[*text, text[0]]], device=encoder.device)
        both = encoder.base(input_ids=longer, use_cache=False).last_hidden_state
        encoder(Layout.build([Row.whole(text)], 1))
    else:
        both = encoder.hidden_states(Layout.build([Row(text, ((0, 3), (0, 6)))], encoder.k), how)
    bare = encoder.hidden_states(Layout.build([Row(text, ())], encoder.k), how)
    return both[:, : len(text)], bare


def max_text_tokens(config: Any, k: int) -> int:
    """The most text tokens that leave room for k special tokens and fit a sliding window."""
    longest, text = _unscaled_length(config), config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if not window or not getattr(text, "use_sliding_window", True):
        return longest - k
    return min(longest, int(window)) - k


def max_text_tokens_before_loading(config: Any, k: int) -> int:
    """As `GemEncoder.max_text_tokens`, by a model's configuration."""
    within_windows, longest = max_text_tokens(config, k), _unscaled_length(config) - k
    if within_windows < longest and k == 1 and why_only_causal(without_weights(config)):
        return longest
    return within_windows


def context_length(config: Any) -> int:
    """Positions of a model; those of a recurrent one have no end."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else _ENDLESS


def _unscaled_length(config: Any) -> int:
    # Beyond, some scalings choose their frequencies by a row's length, which is the text's and not
    # the special tokens': a vector would depend on how its text was batched.
    return min(context_length(config), unscaled_positions(config))


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
    return min(limits, default=context_length(config))
