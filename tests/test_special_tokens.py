"""Adapters change embeddings and nothing else: the base model stays what it was, bit for bit."""

from __future__ import annotations

import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.core import special_tokens
from gem_rag.core.adapter_targets import place_adapters
from gem_rag.core.checkpoint import ADAPTER_NAME, open_checkpoint, save_checkpoint
from gem_rag.core.config import AdapterConfig
from gem_rag.core.encoder import GemEncoder
from gem_rag.core.layout import Layout, Row
from gem_rag.core.special_tokens import SpecialTokens
from gem_rag.errors import GemError, InputError
from gem_rag.model import Gem

ARCHITECTURES = ("llama", "phi")
IDS = torch.tensor([[9, 10, 11, 12, 13, 14, 15]])


def adapted_encoder(architecture: str = "llama", k: int = 2) -> GemEncoder:
    """An encoder whose special tokens and adapters are all random."""
    model = helpers.build_model(architecture)
    encoder = GemEncoder(model, k, adapter=AdapterConfig(4, 8.0, place_adapters(model).rows))
    helpers.randomise(encoder.special)
    return encoder.requires_grad_(False)


# -- the base model ----------------------------------------------------------------------------


@pytest.fixture(params=ARCHITECTURES)
def base_and_gem(request: Any, plain_folder: Any, gem_folder: Any) -> Iterator[tuple[Any, Gem]]:
    """A plain model as transformers loads it, and the GEM checkpoint made from its folder."""
    base = AutoModelForCausalLM.from_pretrained(plain_folder(request.param)).eval()
    with gem_rag.load(gem_folder(request.param, k=2)) as gem:
        yield base, gem


def outputs(model: Any) -> tuple[Tensor, Tensor]:
    """Logits, and the tokens of a greedy continuation."""
    with torch.inference_mode():
        logits = model(IDS).logits
        tokens = model.generate(IDS, do_sample=False, max_new_tokens=12, pad_token_id=helpers.PAD)
    return logits, tokens


def test_generation_is_the_base_models_bit_for_bit(base_and_gem: tuple[Any, Gem]) -> None:
    base, gem = base_and_gem
    assert base.config._attn_implementation == "sdpa"
    expected = outputs(base)
    for number in range(101):
        if number in (0, 1, 25, 50, 75, 100):
            for found, wanted in zip(outputs(gem._engine._model), expected, strict=True):
                assert torch.equal(found, wanted)
        gem.embed_documents([f"text number {number}"])


def test_generation_within_an_embedding_pass_is_the_base_models(
    base_and_gem: tuple[Any, Gem],
) -> None:
    """Another thread that generates while adapters are active does not meet them."""
    base, gem = base_and_gem
    engine = gem._engine
    with ThreadPoolExecutor(1) as pool, engine.encoder.special.active(slice(0, None)):
        here = engine._model(IDS).logits
        there = pool.submit(lambda: outputs(engine._model)[0]).result()
    assert torch.equal(there, outputs(base)[0])
    assert not torch.equal(here, there)


# -- embeddings --------------------------------------------------------------------------------


def test_every_adapter_changes_vectors(gem_folder: Any) -> None:
    with gem_rag.load(gem_folder("llama")) as gem:
        before = gem.embed_documents(["some text"])
        for update in gem._engine.encoder.special.lora.values():
            update.lora_B.weight.mul_(-1)
            changed = gem.embed_documents(["some text"])
            assert abs(changed - before).max() > 1e-5
            update.lora_B.weight.mul_(-1)
        assert abs(gem.embed_documents(["some text"]) - before).max() < 1e-6


def test_an_adapter_adds_its_scaled_low_rank_update() -> None:
    encoder = adapted_encoder()
    layer = encoder.model.model.layers[1].mlp.up_proj
    update = encoder.special.lora["model/layers/1/mlp/up_proj"]
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([[True, False, False], [False, True, True]])
    with torch.inference_mode():
        plain = layer(x)
        with encoder.special.active(rows):
            adapted = layer(x)
    folded = 8.0 / 4 * x @ (update.lora_B.weight @ update.lora_A.weight).T
    assert (adapted - plain - folded * rows[..., None]).abs().max() < 1e-5


def test_a_new_adapter_changes_nothing() -> None:
    model = helpers.build_model("llama")
    layout = Layout.build([Row.whole([9, 10, 11])], 1)
    with torch.no_grad():
        before = GemEncoder(model, 1)(layout)
        adapter = AdapterConfig(4, 8.0, place_adapters(model).rows)
        assert torch.equal(GemEncoder(model, 1, adapter=adapter)(layout), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_text_rows_do_not_meet_adapters(architecture: str) -> None:
    encoder = adapted_encoder(architecture)
    text = list(range(9, 20))
    plain = helpers.build_model(architecture).base_model(torch.tensor([text])).last_hidden_state
    hidden = encoder.hidden_states(Layout.build([Row(text, ((0, 4), (0, 11)))], 2))
    assert (hidden[:, :11] - plain).abs().max() < 1e-6


def test_adapters_are_given_special_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where suffixes stand among the special tokens' columns; layers that read the same input
    share one product."""
    encoder = adapted_encoder(k=2)
    rank = encoder.adapter.rank
    rows = [Row.whole([9, 10, 11], [12, 13]), Row.whole([9, 10, 11, 12])]
    encoder.hidden_states(Layout.build(rows, 2))
    seen = []
    linear = special_tokens.F.linear

    def watched(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if weight.shape[0] % rank == 0 and weight.shape[1] > rank:
            seen.append((x.shape, weight.shape[0] // rank))
        return linear(x, weight)

    monkeypatch.setattr(special_tokens, "F", types.SimpleNamespace(linear=watched))
    encoder.hidden_states(Layout.build(rows, 2))
    assert {shape[:-1].numel() for shape, _ in seen} == {2 * len(rows)}
    layers = encoder.model.config.num_hidden_layers
    assert [shared for _, shared in seen] == [3, 1, 2, 1] * layers  # q, k, v; o; gate, up; down


def test_gradients_reach_adapters_through_an_output_changed_in_place() -> None:
    encoder = adapted_encoder().requires_grad_(True)
    encoder(Layout.build([Row.whole([9, 10, 11])], 2)).sum().backward()
    for name, weight in encoder.special.named_parameters():
        assert weight.grad.abs().max() > 0, name


# -- weights on disk ---------------------------------------------------------------------------


def test_weights_survive_saving_and_loading(plain_folder: Any, tmp_path: Path) -> None:
    base = plain_folder("llama")
    config = helpers.special_config(base, k=2)
    encoder = GemEncoder(AutoModelForCausalLM.from_pretrained(base), 2, adapter=config.adapter)
    helpers.randomise(encoder.special)
    save_checkpoint(tmp_path / "gem", base, config, encoder.special.tensors())
    with gem_rag.load(tmp_path / "gem") as gem, torch.inference_mode():
        ids = gem.tokenize("a text")
        expected = encoder(Layout.build([Row.whole(ids)], 2))
        assert abs(gem.embed_documents(["a text"]) - expected.numpy()).max() < 1e-6


def test_adapter_names_are_those_of_peft() -> None:
    names = set(adapted_encoder().special.tensors())
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert not any("lm_head" in name for name in names)


@pytest.mark.parametrize(
    "settings",
    [{"hidden_size": 48}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}],
    ids=["wider", "shallower", "deeper"],
)
def test_an_adapter_of_another_model_is_refused(
    settings: dict[str, int], plain_folder: Any, bos_tokenizer: Any, tmp_path: Path
) -> None:
    base = plain_folder("llama")
    other = helpers.save_plain(tmp_path / "other", "llama", bos_tokenizer, **settings)
    config = helpers.special_config(base)
    tensors = helpers.special_tensors(other, helpers.special_config(other))
    save_checkpoint(tmp_path / "gem", base, config, tensors)
    with pytest.raises(InputError, match="adapter"):
        gem_rag.load(tmp_path / "gem")


def test_an_adapter_for_layers_the_model_lacks_is_refused() -> None:
    model = helpers.build_model("gpt_neox")
    targets = place_adapters(helpers.build_model("llama")).rows
    with pytest.raises(InputError, match="belongs to another base model"):
        SpecialTokens(model, 1, AdapterConfig(4, 8.0, targets))


def test_missing_adapter_weights_are_refused(gem_folder: Any) -> None:
    folder = gem_folder("llama")
    (folder / ADAPTER_NAME).unlink()
    with pytest.raises(InputError, match=f"no {ADAPTER_NAME}"):
        open_checkpoint(folder).adapter()


def test_an_adapter_where_tokens_lose_their_rows_is_refused() -> None:
    """OPT runs its feed-forward layers over all tokens of a batch in one long row."""
    model = helpers.build_model("opt", ffn_dim=64, word_embed_proj_dim=32)
    layout = Layout.build([Row.whole([9, 10, 11])], 1)
    assert place_adapters(model, last_names=("fc1",)).rows == ()
    by_hand = tuple(f"model.decoder.layers.{layer}.fc1" for layer in range(2))
    for targets, refused in ((place_adapters(model).rows, False), (by_hand, True)):
        adapter = AdapterConfig(4, 8.0, targets)
        encoder = GemEncoder(model, 1, adapter=adapter)
        if refused:
            with pytest.raises(GemError, match=r"fc1 cannot tell special tokens from text"):
                encoder(layout)
        else:
            assert encoder(layout).isfinite().all()


def test_targets_can_be_chosen_by_name() -> None:
    model = helpers.build_model("llama")
    targets = place_adapters(model, last_names=("q_proj", "v_proj")).rows
    assert [name.rsplit(".", 1)[1] for name in targets] == ["q_proj", "v_proj"] * 2
