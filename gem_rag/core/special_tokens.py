"""The special tokens' own weights: input embeddings, and adapters that act on their rows only.

None of it is part of the base model: the embeddings are not in its vocabulary, and the adapters
hook into its linear layers without replacing them. Outside `SpecialTokens.active` the hooks do
nothing, so the base model computes what it always computed, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gem_rag.core.adapter_targets import features, is_linear
from gem_rag.core.config import AdapterConfig
from gem_rag.errors import GemError, InputError

# Where the special tokens are in a batch: a slice of columns, or a [B, T] bool mask.
Positions = slice | Tensor
EVERYWHERE = slice(None)


@dataclass
class _Pass:
    """A GEM pass: where its special tokens are, and what adapters made of the last input.

    Layers that read the same input (q, k and v, say) share one product with their A matrices.
    """

    positions: Positions
    input: Tensor | None = None
    first: LowRankUpdate | None = None
    products: dict[LowRankUpdate, Tensor] = field(default_factory=dict)

    @property
    def everywhere(self) -> bool:
        """Whether every row is a special token's."""
        return isinstance(self.positions, slice) and self.positions == EVERYWHERE

    @property
    def index(self) -> Any:
        """Of the special tokens in a batch, [B, T, ...]."""
        at = self.positions
        return (slice(None), at) if isinstance(at, slice) else at


# The pass that this thread (or task) is running. None: the adapters do nothing.
_pass: ContextVar[_Pass | None] = ContextVar("gem_pass", default=None)


class LowRankUpdate(nn.Module):
    """A low-rank update x -> (x A^T) B^T * scale; zero until trained (arXiv 2106.09685).

    Attributes:
        readers: The updates whose layers read the same input as this one's, this one first. Found
            out by the first pass; every model is run once before it is used.
    """

    def __init__(self, linear: nn.Module, rank: int, alpha: float, dtype: torch.dtype) -> None:
        super().__init__()
        device = next(linear.parameters()).device
        read, written = features(linear)
        self.lora_A = nn.Linear(read, rank, bias=False, device=device, dtype=dtype)
        self.lora_B = nn.Linear(rank, written, bias=False, device=device, dtype=dtype)
        self.scale = alpha / rank
        self.readers: tuple[LowRankUpdate, ...] = (self,)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def update(self, output: Tensor, x: Tensor, now: _Pass) -> Tensor:
        """The layer's output [B, T, out] of x, updated where the special tokens are."""
        product, up = self._product(x, now), self.lora_B.weight
        if now.everywhere:
            flat = output.flatten(0, -2), product.flatten(0, -2)
            return torch.addmm(*flat, up.t(), alpha=self.scale).view_as(output)
        if isinstance(now.positions, slice) and not torch.is_grad_enabled():
            of_batch = up.t().expand(len(output), -1, -1)
            output[now.index].baddbmm_(product, of_batch, alpha=self.scale)
            return output
        output = output.clone() if torch.is_grad_enabled() else output
        output[now.index] += F.linear(product, up) * self.scale
        return output

    def _product(self, x: Tensor, now: _Pass) -> Tensor:
        """x A^T of the special tokens' rows, computed with those of all readers of x at once."""
        if x is not now.input:
            now.input, now.first = x, self
            down = [reader.lora_A.weight for reader in self.readers]
            products = F.linear(x[now.index], torch.cat(down) if len(down) > 1 else down[0])
            parts = products.split([weight.shape[0] for weight in down], dim=-1)
            now.products = dict(zip(self.readers, parts, strict=True))
        elif self not in now.products:  # the first pass: from now on it is among the first's
            assert now.first is not None
            now.first.readers += (self,)
            now.products[self] = F.linear(x[now.index], self.lora_A.weight)
        return now.products[self]


class SpecialTokens(nn.Module):
    """k input embeddings and, in the `special` scope, adapters on the special tokens' rows.

    Args:
        model: The causal language model; it gets hooks and is otherwise unchanged.
        k: Special tokens in a group.
        adapter: Which linear layers get adapters of which rank, or None for none.

    Attributes:
        embeddings: The input embeddings, [k, hidden].
        lora: The adapters, by the name of the layer they act on.

    Raises:
        InputError: A target is not a linear layer of the model.
    """

    def __init__(self, model: Any, k: int, adapter: AdapterConfig | None) -> None:
        super().__init__()
        embedding = model.get_input_embeddings()
        device = embedding.weight.device
        initial = initial_special_embeddings(embedding, embedding.num_embeddings, k, device)
        self.embeddings = nn.Parameter(initial)
        self.lora = nn.ModuleDict()
        if adapter is not None:
            for name in adapter.targets:
                linear = _linear_layer(model, name)
                update = LowRankUpdate(linear, adapter.rank, adapter.alpha, self.embeddings.dtype)
                self.lora[_module_key(name)] = update
                linear.register_forward_hook(_adapter_hook(update, name))

    @contextmanager
    def active(self, positions: Positions) -> Iterator[None]:
        """Apply the adapters at these positions of every batch run inside, in this thread only."""
        token = _pass.set(_Pass(positions))
        try:
            yield
        finally:
            _pass.reset(token)

    def replace_token_embeddings(self, embedding: nn.Module) -> None:
        """Let a pass that is given token ids read a special token's embedding where those are.

        Args:
            embedding: Gives the input embeddings; it gets a hook, which acts where `active` is
                given a mask.
        """

        def replace(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            now = _pass.get()
            if now is None or not isinstance(now.positions, Tensor):
                return None
            own = self.embeddings[0].to(output.dtype)
            return torch.where(now.positions[..., None], own, output)

        embedding.register_forward_hook(replace)

    def checkpoint_contexts(
        self,
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts for activation checkpointing: of the forward pass, and of its recomputation,
        which may run in another thread and after `active` has ended."""
        now = _pass.get()
        return nullcontext(), nullcontext() if now is None else self.active(now.positions)

    def tensors(self) -> dict[str, Tensor]:
        """The weights under the names they have on disk; adapters are named as peft names them."""
        named = {"special_embeddings": self.embeddings.detach()}
        for key, update in self.lora.items():
            target = key.replace("/", ".")
            for part in ("lora_A", "lora_B"):
                named[peft_name(target, part)] = getattr(update, part).weight.detach()
        return named

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Load weights named as in `tensors`.

        Raises:
            InputError: Names or shapes differ from the model's.
        """
        expected = self.tensors()
        if tensors.keys() != expected.keys():
            odd = sorted(tensors.keys() ^ expected.keys())[0]
            raise InputError(
                f"adapter weights do not fit the checkpoint: {odd!r} is on one side only"
            )
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape:
                raise InputError(
                    f"adapter weight {name!r} has shape {tuple(tensor.shape)}, the model needs "
                    f"{tuple(expected[name].shape)}: the adapter belongs to another base model"
                )
            expected[name].copy_(tensor)


@torch.no_grad()
def initial_special_embeddings(
    embed: Callable[[Tensor], Tensor], vocab_size: int, k: int, device: torch.device
) -> Tensor:
    """The mean input embedding and a little noise, as is usual for new tokens.

    Args:
        embed: Gives the input embeddings of token ids as the layers see them (some models scale
            them).
        vocab_size: Token ids are below this.
        k: How many.
        device: Where `embed` takes its ids.

    Returns:
        [k, hidden] in the dtype of the embeddings.
    """
    # A few thousand rows are enough for the mean.
    ids = torch.linspace(0, vocab_size - 1, min(vocab_size, 4096), device=device)
    sample = embed(ids.long())
    rows = sample.float()
    noise = torch.randn(k, rows.shape[1], generator=torch.Generator().manual_seed(0))
    initial = rows.mean(dim=0) + 0.1 * rows.std() * noise.to(rows.device)
    return initial.to(sample.dtype)


def peft_name(target: str, part: str) -> str:
    """Name on disk of an adapter's "lora_A" or "lora_B", as peft writes it."""
    return f"base_model.model.{target}.{part}.weight"


def _adapter_hook(update: LowRankUpdate, name: str) -> Callable[..., Tensor | None]:
    def add_update(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        now = _pass.get()
        if now is None:
            return None
        if not isinstance(output, Tensor) or output.ndim != 3:
            raise GemError(
                f"the adapter of {name} cannot tell special tokens from text: the model gives that "
                "layer no [batch, tokens, features]; leave it out of the adapter's targets"
            )
        return update.update(output, inputs[0], now)

    return add_update


def _module_key(target: str) -> str:
    return target.replace(".", "/")  # ModuleDict keys may not hold dots


def _linear_layer(model: nn.Module, name: str) -> nn.Module:
    try:
        module: nn.Module | None = model.get_submodule(name)
    except AttributeError:
        module = None
    if module is None or not is_linear(module):
        raise InputError(
            f"adapter target {name!r} is not a linear layer of {type(model).__name__}: the "
            "adapter belongs to another base model"
        )
    return module
