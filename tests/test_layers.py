"""Embeddings read before the last layer are those of a model that has no more layers; generation
never notices."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from flash_stand_in import use_packed_texts
from helpers import (
    ARCHITECTURES,
    build_model,
    close_to,
    edit_json,
    random_ids,
    randomise,
    save_gem,
    save_plain,
    tiny_encoder,
)
from recipes import pairs_recipe, prepared, recipe
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.core import attention
from gem_rag.core.adapter_targets import place_adapters
from gem_rag.core.checkpoint import CONFIG_NAME, open_checkpoint, save_checkpoint
from gem_rag.core.config import AdapterConfig, GemConfig
from gem_rag.core.encoder import GemEncoder, check_supported
from gem_rag.core.layout import Layout, Row
from gem_rag.core.passes import up_to_layer
from gem_rag.engines import batch_embedder, query_graphs
from gem_rag.engines.query_graphs import QueryGraphs
from gem_rag.errors import GemError, InputError
from gem_rag.interop.export import to_sentence_transformers
from gem_rag.training import scopes
from gem_rag.training.recipe import Adapter, from_state
from gem_rag.training.run import train

LAYERS, KEPT = 4, 3
LENGTHS = (9, 40, 1, 33)


def rows_of(*lengths: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    return [Row.whole(random_ids(length, generator)) for length in lengths]


@torch.inference_mode(False)
def short_copy(model: Any, layers: int) -> Any:
    """A model that has the first layers and nothing else, with weights of its own."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    short = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = model.state_dict()
    short.load_state_dict({name: weights[name] for name in short.state_dict()})
    return short.eval()


def pair_of_encoders(
    architecture: str, k: int, adapters: bool = True
) -> tuple[GemEncoder, GemEncoder]:
    """One that reads embeddings early, and one of a model that has no more layers."""
    model = build_model(architecture, num_hidden_layers=LAYERS)
    short = short_copy(model, KEPT)
    adapter = AdapterConfig(4, 8.0, place_adapters(short).rows) if adapters else None
    early = GemEncoder(model, k, adapter=adapter, layers=KEPT)
    whole = GemEncoder(short, k, adapter=adapter)
    randomise(early.special)
    whole.special.load_tensors(early.special.tensors())
    for encoder in (early, whole):
        encoder.requires_grad_(False)
        check_supported(encoder)
    return early, whole


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the layers whose attention runs under the rule, call after call."""
    seen: list[int] = []
    plain = attention._attend

    def attend(gem: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(module.layer_idx)
        return plain(gem, module, *args, **kwargs)

    monkeypatch.setattr(attention, "_attend", attend)
    return seen


# -- vectors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["dense", "split", "padded", "packed"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_vectors_are_those_of_a_shorter_model(
    architecture: str, k: int, how: Any, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    early, whole = pair_of_encoders(architecture, k)
    if how == "packed":
        use_packed_texts(monkeypatch)
    layouts = [Layout.build(rows_of(*LENGTHS), k), Layout.build(rows_of(5, 17), k)]

    def vectors(encoder: GemEncoder) -> Tensor:
        if how in ("padded", "packed"):
            return encoder.embed_in_halves(layouts)
        return torch.cat([encoder(layout, how) for layout in layouts])

    wanted = vectors(whole)
    calls.clear()
    found = vectors(early)
    assert (found - wanted).abs().max() < 1e-5
    passes = {"dense": 2, "split": 2, "padded": 3, "packed": 2}[how]
    assert len(calls) == passes * KEPT
    assert set(calls) == set(range(KEPT))
    early.layers = LAYERS
    assert (vectors(early) - wanted).abs().max() > 1e-3


@torch.inference_mode()
def test_layers_of_an_inner_module_are_found_too() -> None:
    """OPT has its layers, its embeddings and its norm in a decoder below the base model."""
    model = build_model(
        "opt", num_hidden_layers=LAYERS, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0
    )
    layout = Layout.build(rows_of(*LENGTHS), 2)
    short = tiny_encoder(short_copy(model, KEPT), 2)
    early = GemEncoder(model, 2, layers=KEPT)
    early.special.load_tensors(short.special.tensors())
    check_supported(early)
    assert (early(layout) - short(layout)).abs().max() < 1e-5


def test_gradients_are_those_of_a_shorter_model() -> None:
    early, whole = pair_of_encoders("qwen3", 2)
    layouts = [Layout.build(rows_of(*LENGTHS), 2)]
    found = []
    for encoder in (early, whole):
        encoder.special.requires_grad_(True)
        vectors = encoder.embed_in_halves(layouts, frozen_texts=True)
        (vectors @ torch.linspace(-1, 1, encoder.dim)).square().sum().backward()
        found.append({n: p.grad for n, p in encoder.special.named_parameters()})
    for name, gradient in found[1].items():
        assert (gradient - found[0][name]).abs().max() <= 1e-4 * gradient.abs().max()
        assert gradient.abs().max() > 0


@torch.inference_mode()
def test_what_stands_around_layers_is_never_out_of_date(calls: list[int]) -> None:
    """Sharded training puts wrappers in the places of layers, after the encoder has been made."""

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.inner(*args, **kwargs)

    early, whole = pair_of_encoders("llama", 1)
    layout = Layout.build(rows_of(*LENGTHS), 1)
    wanted = whole(layout)
    wrappers = [Wrapper(layer) for layer in early.base.layers]
    early.base.layers = torch.nn.ModuleList(wrappers)
    assert (early(layout) - wanted).abs().max() < 1e-5
    assert [wrapper.calls for wrapper in wrappers] == [1, 1, 1, 0]


@torch.inference_mode()
def test_a_model_spread_over_devices_ends_early_too(calls: list[int]) -> None:
    """accelerate gives each of its modules a forward that is bound to that module."""
    early, whole = pair_of_encoders("llama", 2)
    layout = Layout.build(rows_of(*LENGTHS), 2)
    wanted = whole(layout)
    for module in (early.base, *early.base.layers):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    calls.clear()
    assert (early(layout) - wanted).abs().max() < 1e-5
    assert len(calls) == KEPT


# -- generation --------------------------------------------------------------------------------


@torch.inference_mode()
def test_generation_uses_all_layers_bit_for_bit() -> None:
    ids = torch.tensor([random_ids(30, torch.Generator().manual_seed(1))])
    plain = build_model("llama", num_hidden_layers=LAYERS)
    early, _ = pair_of_encoders("llama", 1)
    wanted = plain(ids).logits
    assert torch.equal(early.model(ids).logits, wanted)
    early(Layout.build(rows_of(*LENGTHS), 1))
    assert torch.equal(early.model(ids).logits, wanted)
    assert len(early.base.layers) == early.model.config.num_hidden_layers == LAYERS


def test_threads_embed_and_generate_at_the_same_time() -> None:
    early, _ = pair_of_encoders("llama", 1)
    ids = torch.tensor([random_ids(30, torch.Generator().manual_seed(1))])
    layout = Layout.build(rows_of(*LENGTHS), 1)
    with torch.inference_mode():
        logits, vectors = early.model(ids).logits, early(layout)
    wrong: list[str] = []

    def repeat(name: str, run: Callable[[], Tensor], wanted: Tensor) -> None:
        with torch.inference_mode():
            wrong.extend(name for _ in range(40) if not torch.equal(run(), wanted))

    threads = [
        threading.Thread(target=repeat, args=("logits", lambda: early.model(ids).logits, logits)),
        threading.Thread(target=repeat, args=("vectors", lambda: early(layout), vectors)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- checkpoints -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, bos_tokenizer: Any) -> Path:
    """A plain model of four layers."""
    folder = tmp_path_factory.mktemp("models") / "base"
    return save_plain(folder, "phi", bos_tokenizer, num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def early_folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that reads embeddings early, with adapters on every layer all the same."""
    return save_gem(tmp_path_factory.mktemp("models") / "early", base, k=2, layers=KEPT)


@pytest.fixture
def folder(early_folder: Path, tmp_path: Path) -> Path:
    config = GemConfig.read(early_folder)
    adapter = open_checkpoint(early_folder).adapter()
    assert config is not None
    assert adapter is not None
    return save_checkpoint(tmp_path / "model", early_folder, config, adapter).path


@pytest.fixture(scope="module")
def wanted(early_folder: Path) -> Callable[..., np.ndarray]:
    """Vectors of rows by the plain reference, each alone."""

    def vectors(*rows: Row) -> np.ndarray:
        with gem_rag.load(early_folder, attention="dense") as gem:
            return np.concatenate([gem._engine.embed([row]) for row in rows])

    return vectors


@pytest.mark.parametrize("options", [{}, {"compile": True}, {"attention": "dense"}], ids=str)
def test_an_engine_reads_embeddings_early(
    options: dict[str, Any],
    early_folder: Path,
    wanted: Callable[..., np.ndarray],
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_embedder, "_ONE_PASS_TOKENS", 0)
    rows = rows_of(*LENGTHS)
    with gem_rag.load(early_folder, **options) as gem:
        assert gem._engine.encoder.compiled == bool(options.get("compile"))
        calls.clear()
        found = gem._engine.embed(rows)
        assert set(calls) == set(range(KEPT))
    torch._dynamo.reset()  # it compiles a function for so many models and no more
    assert close_to(found, wanted(*rows))


def test_recorded_queries_read_embeddings_early(
    early_folder: Path, wanted: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_graphs, "record", lambda run: run)
    rows = rows_of(5, 20)
    with gem_rag.load(early_folder) as gem:
        gem._engine._embedder._graphs = QueryGraphs(gem._engine.encoder)
        found = np.concatenate([gem._engine.embed([row]) for row in rows])
    assert close_to(found, wanted(*rows))


@pytest.mark.filterwarnings("ignore:.*has not been GEM-trained")
def test_a_loaded_model_writes_as_the_plain_one(base: Path, early_folder: Path) -> None:
    with gem_rag.load(early_folder) as gem:
        gem.embed_documents(["a text", "and another one"])
        [written] = gem.generate(["The index"], max_tokens=12)
    with gem_rag.load(base, attention="dense") as plain:
        assert plain.generate(["The index"], max_tokens=12) == [written]


def test_the_layer_is_part_of_what_identifies_vectors(folder: Path) -> None:
    fingerprints = {open_checkpoint(folder).fingerprint()}
    for layers in (None, 1, 2):
        edit_json(folder / CONFIG_NAME, layers=layers)
        fingerprints.add(open_checkpoint(folder).fingerprint())
    assert len(fingerprints) == 4


def test_checkpoints_without_the_key_are_as_before() -> None:
    state = GemConfig().fingerprint_state()
    assert list(state) == ["k", "pooling", "prompts", "max_length", "adapter", "format_version"]
    assert "layers" in GemConfig(layers=2).fingerprint_state()


@pytest.mark.parametrize("layers", [0, -1, LAYERS + 1])
def test_a_layer_that_the_model_does_not_have_is_refused(layers: int, folder: Path) -> None:
    edit_json(folder / CONFIG_NAME, layers=layers)
    with pytest.raises(InputError, match=f"layers is {layers}, and the model has 4 layers"):
        gem_rag.load(folder, batch_tokens=77)


@pytest.mark.parametrize("layers", ["2", 1.5, True])
def test_what_is_no_number_of_layers_is_refused(layers: Any, folder: Path) -> None:
    edit_json(folder / CONFIG_NAME, layers=layers)
    with pytest.raises(InputError, match=f"layers must be a whole number.*not {layers!r}"):
        open_checkpoint(folder)


def test_all_layers_by_number_are_all_layers() -> None:
    model = build_model("llama")
    assert GemEncoder(model, 1, layers=2).read_out is model.base_model


def test_layers_that_cannot_be_told_from_the_rest_are_refused() -> None:
    model = build_model("llama", num_hidden_layers=LAYERS)
    model.base_model.others = torch.nn.ModuleList(torch.nn.Identity() for _ in range(LAYERS))
    with pytest.raises(GemError, match="LlamaModel has 2 lists of 4 layers and not one"):
        check_supported(GemEncoder(model, 1, layers=2))
    model.base_model.layers = model.base_model.others = None
    with pytest.raises(GemError, match="LlamaModel has 0 lists"):
        up_to_layer(model.base_model, model.config, 2)


def test_closing_frees_the_model(early_folder: Path) -> None:
    gem = gem_rag.load(early_folder, batch_tokens=513)
    weight = weakref.ref(gem._engine.encoder.base.get_input_embeddings().weight)
    gem.embed_documents(["a text", "another text"])
    gem.close()
    del gem
    gc.collect()
    assert weight() is None


# -- exports -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "gpt_neox"])
def test_an_export_has_only_the_layers_that_embeddings_need(
    architecture: str, tmp_path: Path, tokenizer: Any
) -> None:
    base = save_plain(tmp_path / "base", architecture, tokenizer, num_hidden_layers=LAYERS)
    special = {"special_embeddings": torch.randn(1, 32, generator=torch.Generator().manual_seed(0))}
    config = GemConfig(scope="full", layers=KEPT)
    folder = save_checkpoint(tmp_path / "full", base, config, special).path
    exported = to_sentence_transformers(folder, tmp_path / "out")
    model = SentenceTransformer(str(exported), device="cpu")
    assert model[0].auto_model.config.num_hidden_layers == KEPT
    texts = ["a text", "Indexes hold vectors, and vectors come from text."]
    with gem_rag.load(folder) as gem:
        assert close_to(model.encode_document(texts), gem.embed_documents(texts))


def test_an_export_that_needs_gem_rag_reads_embeddings_early(
    early_folder: Path, tmp_path: Path
) -> None:
    exported = to_sentence_transformers(early_folder, tmp_path / "out")
    model = SentenceTransformer(str(exported), trust_remote_code=True, device="cpu")
    with gem_rag.load(early_folder) as gem:
        texts = ["a text", "another text"]
        assert close_to(model.encode_document(texts), gem.embed_documents(texts))


# -- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["special", "lora", "full"])
def test_training_reads_embeddings_early_and_says_so(
    scope: str, base: Path, tmp_path: Path
) -> None:
    plan = recipe(tmp_path, scope=scope, layers=KEPT, schedule__steps=6)
    train(plan, base, tmp_path / "out", report=False)
    config = GemConfig.read(tmp_path / "out")
    assert config is not None
    assert config.layers == KEPT
    if scope == "special":
        assert config.adapter is not None
        numbers = {int(name.split(".layers.")[1].split(".")[0]) for name in config.adapter.targets}
        assert numbers == set(range(KEPT))
    with gem_rag.load(tmp_path / "out") as gem:
        assert gem._engine.encoder.layers == KEPT
        assert np.isfinite(gem.embed_documents(["a text"])).all()


@pytest.mark.parametrize("caching", [False, True])
def test_contrast_trains_the_first_layers_and_next_tokens_all(
    caching: bool, base: Path, tmp_path: Path, calls: list[int]
) -> None:
    changes = {"layers": KEPT, "memory__gradient_caching": caching}
    for kind, (make, layers) in {
        "contrastive": (pairs_recipe, KEPT), "next_token": (recipe, LAYERS)
    }.items():  # fmt: skip
        more = {"contrastive": None} if kind == "next_token" else {}
        model, steps = prepared(make(tmp_path, **changes, **more), base)
        calls.clear()
        parts = model(steps[0])
        parts["loss"].backward()
        assert kind in parts
        assert set(calls) == set(range(layers))
        trained = [
            any(p.grad is not None for p in layer.parameters())
            for layer in model.encoder.base.layers
        ]
        assert trained == [number < layers for number in range(LAYERS)]


def test_next_token_predictions_are_those_of_all_layers() -> None:
    model = build_model("llama", num_hidden_layers=LAYERS)
    trainable = scopes.prepare_special(model, 1, adapter=Adapter(rank=4), layers=KEPT)
    layout = Layout.build([Row(random_ids(20, torch.Generator().manual_seed(0)), ())], 1)
    hidden = trainable.encoder.hidden_states(layout, "dense")
    with torch.inference_mode():
        plain = model.base_model(torch.as_tensor(layout.ids)).last_hidden_state
    assert (hidden - plain).abs().max() < 1e-5


@pytest.mark.parametrize("scope", ["special", "lora", "full"])
def test_training_refuses_a_layer_that_the_model_does_not_have(
    scope: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="layers is 5, and the model has 4 layers"):
        prepared(recipe(tmp_path, scope=scope, layers=5), base)


@pytest.mark.parametrize("layers", [0, -1, "half", 1.5])
def test_a_recipe_with_another_value_is_refused(layers: Any) -> None:
    with pytest.raises(InputError, match=f"layers is {layers!r}"):
        from_state({"layers": layers, "contrastive": {}}, "recipe")


def test_special_tokens_of_other_layers_are_not_continued(
    early_folder: Path, tmp_path: Path
) -> None:
    plan = recipe(
        tmp_path, scope="special", k=2, layers=2, special_tokens="continue", adapter__rank=4
    )
    with pytest.raises(InputError, match="use its k, scope, layers and adapter"):
        prepared(plan, early_folder)
