"""The special tokens' own weights: their input rows, and adapters that act on their rows only.

None of it is part of the base model: the input rows are not in its vocabulary, and the adapters
hook into its linear layers without replacing them. Outside `SpecialTokens.active` the hooks do
nothing, so the base model computes what it always computed, bit for bit.

Knows nothing about attention, tokenizers or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from gem_rag.core.config import AdapterConfig
from gem_rag.errors import GemError, InputError

# Where special tokens stand in the batch that this thread (or task) is running: a slice of
# columns, or a [B, T] bool mask. None: no GEM pass is running, the adapters keep silent.
Rows = slice | Tensor
_rows: ContextVar[Rows | None] = ContextVar("gem_special_rows", default=None)


class LowRank(nn.Module):
    """A low-rank update x -> (x A^T) B^T * scale; zero until trained (arXiv 2106.09685)."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dtype: torch.dtype) -> None:
        super().__init__()
        device = linear.weight.device
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, device=device, dtype=dtype)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, device=device, dtype=dtype)
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.lora_B(self.lora_A(x)) * self.scale
        return update


class SpecialTokens(nn.Module):
    """k input rows and, in the `special` scope, adapters on special-token rows.

    model: the causal language model; it is hooked, never changed.
    k: special tokens in a group.
    adapter: which linear layers get adapters of which rank, or None for none.

    Raises InputError if a target is not a linear layer of the model.
    """

    def __init__(self, model: Any, k: int, adapter: AdapterConfig | None) -> None:
        super().__init__()
        embedding = model.get_input_embeddings()
        self.embeddings = nn.Parameter(
            initial_special_embeddings(
                embedding, embedding.num_embeddings, k, embedding.weight.device
            )
        )
        self.lora = nn.ModuleDict()
        if adapter is not None:
            for name in adapter.targets:
                linear = _linear(model, name)
                update = LowRank(linear, adapter.rank, adapter.alpha, self.embeddings.dtype)
                self.lora[_key(name)] = update
                linear.register_forward_hook(_hook(update, name))

    @contextmanager
    def active(self, rows: Rows) -> Iterator[None]:
        """Adapters act on these rows of every batch run inside, in this thread only."""
        token = _rows.set(rows)
        try:
            yield
        finally:
            _rows.reset(token)

    def recomputed(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts for activation checkpointing: of the pass, and of its recomputation, which may
        run in another thread and after `active` has ended."""
        rows = _rows.get()
        return nullcontext(), nullcontext() if rows is None else self.active(rows)

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
        """Take weights as `tensors` gives them. Raises InputError where names or shapes differ."""
        own = self.tensors()
        if tensors.keys() != own.keys():
            odd = sorted(tensors.keys() ^ own.keys())[0]
            raise InputError(
                f"adapter weights do not fit the checkpoint: {odd!r} is on one side only"
            )
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                raise InputError(
                    f"adapter weight {name!r} has shape {tuple(tensor.shape)}, the model needs "
                    f"{tuple(own[name].shape)}: the adapter belongs to another base model"
                )
            own[name].copy_(tensor)


def linear_targets(model: Any, only: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the linear layers below the head, or of those whose last name is among `only`."""
    head = model.get_output_embeddings()
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and (not only or name.rsplit(".", 1)[-1] in only)
    )


@torch.no_grad()
def initial_special_embeddings(
    embed: Callable[[Tensor], Tensor], vocabulary: int, k: int, device: torch.device
) -> Tensor:
    """The mean input row and a little noise, as is usual for tokens never seen: [k, hidden].

    embed: gives the input rows of token ids, as the layers see them (some models scale them).
    """
    # A few thousand rows tell the mean.
    ids = torch.linspace(0, vocabulary - 1, min(vocabulary, 4096), device=device)
    own = embed(ids.long())
    rows = own.float()
    noise = torch.randn(k, rows.shape[1], generator=torch.Generator().manual_seed(0))
    start = rows.mean(dim=0) + 0.1 * rows.std() * noise.to(rows.device)
    return start.to(own.dtype)


def _hook(update: LowRank, name: str) -> Callable[..., Tensor | None]:
    def add_update(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        rows = _rows.get()
        if rows is None:
            return None
        if not isinstance(output, Tensor) or output.ndim != 3:
            raise GemError(
                f"the adapter of {name} cannot tell special tokens from text: the model gives that "
                "layer no [batch, tokens, features]; leave it out of the adapter's targets"
            )
        index = (slice(None), rows) if isinstance(rows, slice) else rows
        output = output.clone() if torch.is_grad_enabled() else output
        output[index] += update(inputs[0][index])
        return output

    return add_update


def _key(target: str) -> str:
    return target.replace(".", "/")  # ModuleDict keys may not hold dots


def peft_name(target: str, part: str) -> str:
    """Name on disk of an adapter's "lora_A" or "lora_B", as peft writes it."""
    return f"base_model.model.{target}.{part}.weight"


def _linear(model: nn.Module, name: str) -> nn.Linear:
    try:
        module: nn.Module | None = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise InputError(
            f"adapter target {name!r} is not a linear layer of {type(model).__name__}: the "
            "adapter belongs to another base model"
        )
    return module
