"""Tiny tokenizers, models and model folders, and the GEM rule written out a second time.

Nothing here uses gem_rag's own layouts or masks, so that tests can compare against it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from gem_rag.core.adapter_targets import place_adapters
from gem_rag.core.auto_model import load_language_model
from gem_rag.core.checkpoint import save_checkpoint
from gem_rag.core.config import AdapterConfig, GemConfig
from gem_rag.core.encoder import GemEncoder
from gem_rag.core.layout import Arrangement, Row
from gem_rag.core.special_tokens import SpecialTokens
from gem_rag.model import Gem

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "gpt_neox")
SPECIAL_TOKENS = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
BOS, EOS, PAD = 0, 1, 2
VOCABULARY = 320
CONTEXT = 256
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = (
    "A model that embeds and generates reads every token once.",
    "The quick brown fox jumps over the lazy dog.",
    "Indexes hold vectors, and vectors come from text.",
    "def add(first, second):\n    return first + second\n",
    "Retrieval finds the passage; generation answers the question.",
    "Whitespace   matters,\tand so do\n\nempty lines.",
)

# -- tokenizers --------------------------------------------------------------------------------


def build_tokenizer(
    *,
    bos: bool = False,
    extra_tokens: Sequence[str] = (),
    chat_template: str | None = CHAT_TEMPLATE,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `bos` puts <s> before every text, extra tokens are not special."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(extra_tokens),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 2, trainer)
    backend.add_tokens(list(extra_tokens))
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


# -- models ------------------------------------------------------------------------------------


@torch.inference_mode(False)  # models are shared, and some tests need gradients
def build_model(architecture: str, **settings: Any) -> Any:
    """A random causal language model whose weights are all far enough from zero to matter."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if architecture in ("phi", "gpt_neox") else 2,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    torch.manual_seed(0)
    if "head_dim" in settings and settings["head_dim"] is None:  # no setting of its own
        del shape["head_dim"], settings["head_dim"]
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **{**shape, **settings}), dtype=torch.float32
    )
    randomise(model)
    return model.eval()


def randomise(module: nn.Module, std: float = 0.1, seed: int = 1) -> None:
    """Add noise to every weight."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(std * torch.randn(weight.shape, generator=noise))


@torch.inference_mode(False)
def reference_copy(model: Any) -> Any:
    """The same weights with transformers' own eager attention, and a configuration of its own."""
    config = copy.deepcopy(model.config)
    reference = type(model)._from_config(config, attn_implementation="eager")
    reference.load_state_dict(model.state_dict())
    return reference.eval()


def tiny_encoder(model: Any, k: int, pooling: Any = "mean") -> GemEncoder:
    """An encoder with clearly different special tokens and no adapter."""
    encoder = GemEncoder(model, k, pooling)
    randomise(encoder.special, std=0.3)
    return encoder.requires_grad_(False)


def random_ids(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(len(SPECIAL_TOKENS), VOCABULARY, (count,), generator=generator).tolist()


# -- model folders -----------------------------------------------------------------------------


def make_talkative(model: Any, tokenizer: Any) -> None:
    """Let a model with a head bias generate printable ASCII only, and never end."""
    tokens = tokenizer.convert_ids_to_tokens(range(VOCABULARY))
    silent = [
        i
        for i, token in enumerate(tokens)
        if token is None or token in SPECIAL_TOKENS or not token.replace("Ġ", " ").isascii()
    ]
    with torch.no_grad():
        model.lm_head.bias[silent] = -1e4


def save_plain(folder: Path, architecture: str, tokenizer: Any, **settings: Any) -> Path:
    """A plain language model's folder."""
    model = build_model(architecture, **settings)
    if architecture == "phi":
        make_talkative(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def special_config(base: Path, **settings: Any) -> GemConfig:
    """A `special`-scope configuration with adapters on all linear layers of a plain folder."""
    adapter = AdapterConfig(4, 8.0, place_adapters(load_language_model(base)).rows)
    return GemConfig(**{"scope": "special", "adapter": adapter, **settings})


def special_tensors(base: Path, config: GemConfig) -> dict[str, Tensor]:
    """Random special-token weights for a plain folder; no adapter is zero."""
    special = SpecialTokens(load_language_model(base), config.k, config.adapter)
    randomise(special)
    return special.tensors()


def save_gem(folder: Path, base: Path, **settings: Any) -> Path:
    """A `special`-scope checkpoint made from a plain folder."""
    config = special_config(base, **settings)
    save_checkpoint(folder, base, config, special_tensors(base, config))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**state, **changes}), encoding="utf-8")


# -- the rule, written out a second time -------------------------------------------------------


class Place(NamedTuple):
    """What stands at one place: the row's number, a kind, an index within the kind, a span."""

    row: int
    kind: str  # "text", "special" or "suffix"
    index: int  # of a text or suffix token, or a special token's slot
    span: tuple[int, int] = (0, 0)


Grid = list[list[Place | None]]


def placed(rows: Sequence[Row], k: int, arrangement: Arrangement) -> Grid:
    """Where every token of every row stands; None is padding."""
    texts: Grid = [
        [Place(r, "text", i) for i in range(len(row.text))] for r, row in enumerate(rows)
    ]
    rests: Grid = [
        [Place(r, "special", slot, span) for span in row.spans for slot in range(k)]
        + [Place(r, "suffix", i) for i in range(len(row.suffix))]
        for r, row in enumerate(rows)
    ]
    joined = [text + rest for text, rest in zip(texts, rests, strict=True)]
    if arrangement == "right":
        return padded_right(joined)
    both = zip(padded_right(texts), padded_right(rests), strict=True)
    return [text + rest for text, rest in both]


def padded_right(rows: Grid) -> Grid:
    width = max(map(len, rows))
    return [row + [None] * (width - len(row)) for row in rows]


def sees(q: Place, kv: Place) -> bool:
    """The table of the design, for kv before q; that every place sees itself is left out."""
    if q.row != kv.row:
        return False
    if q.kind == "text":
        return kv.kind == "text"
    if q.kind == "special":
        return kv.kind == "text" and kv.index in range(*q.span)
    return kv.kind != "text"


def naive_mask(grid: Grid) -> Tensor:
    """Who sees whom, [B, T, T] bool; a padding place sees itself only."""
    width = len(grid[0])
    mask = torch.eye(width, dtype=torch.bool).repeat(len(grid), 1, 1)
    for b, row in enumerate(grid):
        for q in range(width):
            for kv in range(q):
                here, there = row[q], row[kv]
                if here is not None and there is not None:
                    mask[b, q, kv] = sees(here, there)
    return mask


def is_real(grid: Grid) -> Tensor:
    """Which places are not padding, [B, T]."""
    return torch.tensor([[place is not None for place in row] for row in grid])


def position_of(place: Place | None, rows: Sequence[Row], k: int) -> int:
    """Position ids count on: text, special tokens right behind their span, suffix."""
    if place is None:
        return 0
    if place.kind == "text":
        return place.index
    if place.kind == "special":
        return place.span[1] + place.index
    return len(rows[place.row].text) + k + place.index


def reference_hidden_states(
    model: Any, special: Tensor, rows: Sequence[Row], arrangement: Arrangement
) -> Tensor:
    """Hidden states by a model's own forward under the naive mask, [B, T, hidden].

    special: input rows of the special tokens, [k, hidden].
    """
    k = len(special)
    grid = placed(rows, k, arrangement)
    vocabulary = model.get_input_embeddings()(torch.arange(VOCABULARY))

    def input_row(place: Place | None) -> Tensor:
        if place is None:
            return vocabulary[0]
        if place.kind == "special":
            return special[place.index]
        row = rows[place.row]
        return vocabulary[(row.text if place.kind == "text" else row.suffix)[place.index]]

    embeds = torch.stack([torch.stack([input_row(place) for place in row]) for row in grid])
    positions = torch.tensor([[position_of(place, rows, k) for place in row] for row in grid])
    hidden: Tensor = model.base_model(
        inputs_embeds=embeds,
        position_ids=positions,
        attention_mask=torch.where(naive_mask(grid), 0.0, torch.finfo(torch.float32).min)[:, None],
        use_cache=False,
    ).last_hidden_state
    return hidden


# -- loaded models -------------------------------------------------------------------------------


def vectors_of(gem: Gem, *rows: Row) -> np.ndarray:
    """Vectors of rows, each embedded alone."""
    return np.concatenate([gem._engine.embed([row]) for row in rows])


def close_to(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> bool:
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() < tolerance)


def written(gem: Gem, tokens: Sequence[int]) -> list[str]:
    """What each token says."""
    return [gem._tokenizer.decode([token]) for token in tokens]


def run_out(stream: Generator[str, None, Any]) -> tuple[list[str], Any]:
    """The pieces that a generator yields, and what it returns."""
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value
