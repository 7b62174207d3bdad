"""Checkpoints without their base, GGUF files, and models of installed distributions."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml
from helpers import CHAT_TEMPLATE, build_model, build_tokenizer, close_to, edit_json
from recipes import pairs_recipe
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.core import composed, locate, model_packages
from gem_rag.core.base_model import BaseModel
from gem_rag.core.checkpoint import ADAPTER_NAME, open_checkpoint, save_adapter
from gem_rag.core.model_packages import ModelPackage
from gem_rag.errors import InputError
from gem_rag.training.run import train

TEXTS = ["a quick fox", "an index of vectors", "x"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEM_RAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def base(plain_folder: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_folder("llama"), tmp_path / "base"))


@pytest.fixture
def whole(gem_folder: Any) -> Path:
    return gem_folder("llama", k=2)


@pytest.fixture
def adapter(whole: Path, base: Path, tmp_path: Path) -> Path:
    """`whole` without its base."""
    checkpoint = open_checkpoint(whole)
    special = checkpoint.adapter()
    assert special is not None
    folder = tmp_path / "adapter"
    save_adapter(folder, open_checkpoint(base), checkpoint.config, special)
    return folder


def vectors(model: Any, **options: Any) -> np.ndarray:
    with gem_rag.load(model, **options) as gem:
        return gem.embed_documents(TEXTS)


# -- an adapter alone --------------------------------------------------------------------------


def test_an_adapter_beside_its_base_is_the_whole_model(adapter: Path, whole: Path) -> None:
    assert sorted(p.relative_to(adapter).as_posix() for p in adapter.rglob("*.*")) == [
        "adapter_config.json",
        ADAPTER_NAME,
        "gem_config.json",
    ]
    assert np.array_equal(vectors(adapter), vectors(whole))
    assert open_checkpoint(adapter).fingerprint() == open_checkpoint(whole).fingerprint()
    with gem_rag.load(adapter) as one, gem_rag.load(whole) as other:
        texts = [gem.generate(["a fox"], max_tokens=9)[0].text for gem in (one, other)]
        assert texts[0] == texts[1]


def test_the_base_may_lie_elsewhere(adapter: Path, base: Path, tmp_path: Path) -> None:
    wanted = vectors(adapter)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"is an adapter for .*base, which .* or give another pla"):
        gem_rag.load(adapter)
    assert np.array_equal(vectors(adapter, base=moved), wanted)


def test_a_base_that_is_nowhere_is_named_with_where_it_was_looked_for(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="nobody/nothing")
    with pytest.raises(InputError, match="nobody/nothing, which is not installed, and .*the hub"):
        gem_rag.load(adapter)


def test_other_weights_are_told_once(adapter: Path, base: Path) -> None:
    told = BaseModel.read(adapter)
    assert told is not None
    weights = load_file(base / "model.safetensors")
    weights = {name: tensor * 1.01 for name, tensor in weights.items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=rf"with weights {str(told.weights)[:12]}, and .* has "):
        found = open_checkpoint(adapter).fingerprint()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = open_checkpoint(adapter)
    assert again.fingerprint() == found  # of the weights that run


def test_an_adapter_of_another_width_is_refused(adapter: Path, plain_folder: Any) -> None:
    wide = plain_folder("qwen3")
    special = load_file(adapter / ADAPTER_NAME)
    name = next(n for n in special if special[n].ndim == 2)
    special[name] = torch.zeros(special[name].shape[0], special[name].shape[1] + 8)
    save_file(special, adapter / ADAPTER_NAME)
    with pytest.raises(InputError, match=name.split(".")[0]):
        gem_rag.load(adapter)
    with pytest.raises(InputError, match="needs no base: leave base out"):
        gem_rag.load(wide, base=wide)


def test_a_base_that_is_an_adapter_is_refused(adapter: Path) -> None:
    with pytest.raises(InputError, match="is no base model for .*: give a whole one"):
        gem_rag.load(adapter, base=adapter)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ('{"peft_type": "GEM"}', "does not say which model"),
        ('{"peft_type": "GEM", "base_model_name_or_path": "x", "revision": 3}', "must be text"),
    ],
)
def test_a_broken_description_is_refused(adapter: Path, text: str, message: str) -> None:
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        gem_rag.load(adapter)


def test_code_that_a_description_names_is_not_run(adapter: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit_json(
        adapter / "adapter_config.json",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
        trust_remote_code=True,
    )
    vectors(adapter)
    assert not (tmp_path / "ran").exists()


def test_where_links_cannot_be_made_files_are_copied(
    adapter: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*about: Any) -> None:
        raise OSError("no right to make links")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert np.array_equal(vectors(adapter), vectors(whole))


# -- training ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["special", "lora"])
def test_training_writes_adapters_alone(scope: str, base: Path, tmp_path: Path) -> None:
    schedule = {"steps": 3, "batch": 8, "contrastive_from": 0}
    plan = pairs_recipe(tmp_path, scope=scope, schedule=schedule)
    train(plan, base, tmp_path / "alone", report=False)
    train(plan, base, tmp_path / "whole", report=False, full=True)
    size = sum(file.stat().st_size for file in (tmp_path / "alone").rglob("*.safetensors"))
    assert size < (base / "model.safetensors").stat().st_size
    assert np.array_equal(vectors(tmp_path / "alone"), vectors(tmp_path / "whole"))
    _, front, text = (tmp_path / "alone" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == str(base)
    assert f"scope `{scope}`" in text
    prints = [open_checkpoint(tmp_path / name).fingerprint() for name in ("alone", "whole")]
    assert prints[0] == prints[1]


@pytest.mark.slow
def test_an_adapter_is_trained_further_on_the_same_base(adapter: Path, tmp_path: Path) -> None:
    schedule = {"steps": 2, "batch": 8, "contrastive_from": 0}
    plan = pairs_recipe(tmp_path, scope="special", k=2, schedule=schedule)
    plan = dataclasses.replace(plan, special_tokens="continue")
    train(plan, adapter, tmp_path / "further", report=False)
    assert BaseModel.read(tmp_path / "further") == BaseModel.read(adapter)
    assert not close_to(vectors(tmp_path / "further"), vectors(adapter))


@pytest.mark.slow
def test_what_is_trained_on_merged_weights_is_whole(base: Path, tmp_path: Path) -> None:
    """Nobody else has those weights, so that an adapter alone would have no base."""
    schedule = {"steps": 2, "batch": 8, "contrastive_from": 0}
    plan = pairs_recipe(tmp_path, scope="lora", schedule=schedule)
    train(plan, base, tmp_path / "first", report=False)
    train(plan, tmp_path / "first", tmp_path / "second", report=False)
    assert BaseModel.read(tmp_path / "second") is None
    assert not close_to(vectors(tmp_path / "second"), vectors(tmp_path / "first"))


# -- installed models --------------------------------------------------------------------------


class Point:
    """What an entry point is."""

    value, dist = "somewhere:MODEL", None

    def __init__(self, model: Any) -> None:
        self.model = model

    def load(self) -> Any:
        if isinstance(self.model, Exception):
            raise self.model
        return self.model


def offer(monkeypatch: pytest.MonkeyPatch, **models: Any) -> None:
    points = {name: Point(model) for name, model in models.items()}
    monkeypatch.setattr(model_packages, "_offered", lambda: points)


def test_a_distribution_offers_an_adapter_and_its_base(
    adapter: Path, base: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="some/base")
    offer(monkeypatch, mine=ModelPackage(adapter, {"some/base": lambda: base}))
    assert open_checkpoint("mine").name == "mine"
    assert np.array_equal(vectors("mine"), vectors(whole))
    found = open_checkpoint("some/base")
    assert (found.name, found.path) == ("some/base", base.resolve())
    offer(monkeypatch, mine=ModelPackage(adapter, {"some/base": lambda: None}))
    with pytest.raises(InputError, match="mine is an adapter for some/base, which is not inst"):
        gem_rag.load("mine")


def test_a_broken_distribution_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, mine=ImportError("no module x"), other=3)
    with pytest.raises(InputError, match=r"model 'mine' cannot be imported \(no module x\)"):
        gem_rag.load("mine")
    with pytest.raises(InputError, match="somewhere:MODEL of gem_rag.models is no ModelPackage"):
        gem_rag.load("other")


def test_gem_tiny_is_an_installed_model() -> None:
    assert "gem-tiny" in model_packages.model_names()


# -- GGUF --------------------------------------------------------------------------------------


def write_gguf(file: Path, *, bos: bool | None = None) -> Any:
    """A random Llama as llama.cpp would keep it; returns the model.

    bos: whether the file says that texts begin with the token for it.
    """
    model, tokenizer = build_model("llama"), build_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    vocabulary = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if n < 5 else 1 for n in range(len(vocabulary))])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    if bos is not None:
        writer.add_add_bos_token(bos)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "model.layers.": "blk.", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        for ours, theirs in sorted(names.items(), key=lambda pair: -len(pair[0])):
            name = name.replace(ours, theirs)
        array = tensor.numpy()
        if "attn_q." in name or "attn_k." in name:  # llama.cpp rotates neighbouring numbers
            heads = array.shape[0] // config.head_dim
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2)
            array = array.reshape(tensor.shape)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(file)
    return file


def test_a_gguf_file_is_a_model(gguf_file: Path, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "again.gguf")
    with pytest.warns(UserWarning, match="has not been GEM-trained"):
        gem = gem_rag.load(gguf_file, dtype="float32")
    with gem, gem.language_model() as found, torch.inference_mode():
        ids = torch.tensor([[9, 30, 41, 7, 200]])
        assert (found(ids).logits - model(ids).logits).abs().max() < 0.1  # they are in bfloat16
        assert gem.has_chat_template
        assert gem.tokenize("a fox") == build_tokenizer()("a fox").input_ids


@pytest.mark.parametrize(("bos", "added"), [(True, True), (False, False), (None, False)])
def test_texts_begin_as_the_gguf_file_says(bos: bool | None, added: bool, tmp_path: Path) -> None:
    """Gemma writes nonsense without its first token, which transformers' reader leaves out."""
    write_gguf(tmp_path / "tiny.gguf", bos=bos)
    with pytest.warns(UserWarning, match="has not been GEM-trained"):
        gem = gem_rag.load(tmp_path / "tiny.gguf")
    with gem:
        ids = gem.tokenize("a fox")
        first = gem.tokenizer.token_to_id(gem.hf_tokenizer.bos_token)
        assert (ids[0] == first) is added
        assert ids[added:] == build_tokenizer()("a fox").input_ids


def test_a_gguf_file_is_converted_once(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_checkpoint(gguf_file)
    monkeypatch.setattr(composed, "convert_gguf", None)
    assert open_checkpoint(gguf_file) == first
    assert first.name == str(gguf_file)


@pytest.mark.slow
def test_a_gguf_file_is_trained_and_is_its_adapters_base(gguf_file: Path, tmp_path: Path) -> None:
    schedule = {"steps": 2, "batch": 8, "contrastive_from": 0}
    plan = pairs_recipe(tmp_path, scope="special", schedule=schedule)
    train(plan, gguf_file, tmp_path / "out", report=False)
    about = BaseModel.read(tmp_path / "out")
    assert about is not None
    assert about.name == str(gguf_file)
    assert vectors(tmp_path / "out").shape == (3, 32)


def test_a_broken_gguf_file_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf_file.read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"cut.gguf cannot be read by transformers \(.*download"):
        gem_rag.load(cut)
    cut.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(InputError, match="is not a GGUF file"):
        gem_rag.load(cut)
    with pytest.raises(InputError, match="there is no file 'nowhere.gguf'"):
        gem_rag.load("nowhere.gguf")


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "nobody-knows")
    writer.add_block_count(2)
    writer.add_tensor("x", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="odd.gguf cannot be read by transformers"):
        gem_rag.load(tmp_path / "odd.gguf")
    assert locate.SUFFIX == ".gguf"


def test_the_plain_model_is_what_transformers_reads(adapter: Path) -> None:
    """A composed folder is an ordinary one."""
    model = AutoModelForCausalLM.from_pretrained(open_checkpoint(adapter).path)
    assert model.config.model_type == "llama"
