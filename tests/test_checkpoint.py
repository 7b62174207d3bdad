"""Checkpoint folders: what is refused and how, what the fingerprint names, writing without loss."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import edit_json
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.core.checkpoint import ADAPTER_NAME, open_checkpoint, replace_folder, save_checkpoint
from gem_rag.core.config import CONFIG_NAME, GemConfig
from gem_rag.errors import GemError, InputError


@pytest.fixture
def folder(trained_folder: Path, tmp_path: Path) -> Path:
    """A GEM checkpoint that the test may change."""
    return Path(shutil.copytree(trained_folder, tmp_path / "model"))


def change_weight(file: Path) -> None:
    """Change the last weight of a safetensors file."""
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})


# -- fingerprint -------------------------------------------------------------------------------


def test_the_fingerprint_does_not_depend_on_the_path(folder: Path, trained_folder: Path) -> None:
    fingerprint = open_checkpoint(folder).fingerprint()
    assert fingerprint == open_checkpoint(trained_folder).fingerprint()
    assert len(bytes.fromhex(fingerprint)) == 32


def test_the_fingerprint_does_not_depend_on_sharding(folder: Path, trained_folder: Path) -> None:
    expected = open_checkpoint(trained_folder).fingerprint()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for number in range(3):
        shard = dict(sorted(tensors.items())[number::3])
        save_file(shard, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
    assert open_checkpoint(folder).fingerprint() == expected
    for file in folder.glob("model-*.safetensors"):
        file.unlink()
    model = AutoModelForCausalLM.from_pretrained(trained_folder)
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert open_checkpoint(folder).fingerprint() == expected


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f: change_weight(f / "model.safetensors"), id="weight"),
        pytest.param(lambda f: change_weight(f / ADAPTER_NAME), id="adapter"),
        pytest.param(
            lambda f: edit_json(f / "tokenizer.json", normalizer={"type": "NFC"}), id="tokenizer"
        ),
        pytest.param(lambda f: edit_json(f / "config.json", rms_norm_eps=1e-3), id="model config"),
        pytest.param(
            lambda f: edit_json(f / CONFIG_NAME, prompts={"query": "q", "document": ""}),
            id="prompts",
        ),
        pytest.param(lambda f: edit_json(f / CONFIG_NAME, pooling="concat"), id="pooling"),
        pytest.param(lambda f: edit_json(f / CONFIG_NAME, k=3, tokens=[]), id="k"),
        pytest.param(lambda f: edit_json(f / CONFIG_NAME, max_length=9), id="max_length"),
    ],
)
def test_what_changes_vectors_changes_the_fingerprint(
    change: Callable[[Path], None], folder: Path, trained_folder: Path
) -> None:
    change(folder)
    assert open_checkpoint(folder).fingerprint() != open_checkpoint(trained_folder).fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda f: edit_json(f / CONFIG_NAME, answer_prompt="{passages} {question}"),
            id="answer prompt",
        ),
        pytest.param(lambda f: edit_json(f / CONFIG_NAME, answer_margin=0.1), id="answer margin"),
        pytest.param(lambda f: edit_json(f / CONFIG_NAME, answer_min_score=0.1), id="min score"),
        pytest.param(lambda f: edit_json(f / CONFIG_NAME, base_model="other"), id="base model"),
        pytest.param(
            lambda f: edit_json(f / CONFIG_NAME, tokens=["<|a|>", "<|b|>"]), id="token names"
        ),
        pytest.param(lambda f: (f / "README.md").write_text("hello"), id="readme"),
        pytest.param(
            lambda f: edit_json(f / "config.json", transformers_version="9"), id="transformers"
        ),
    ],
)
def test_what_does_not_change_vectors_does_not_change_the_fingerprint(
    change: Callable[[Path], None], folder: Path, trained_folder: Path
) -> None:
    change(folder)
    assert open_checkpoint(folder).fingerprint() == open_checkpoint(trained_folder).fingerprint()


def test_a_gem_has_its_checkpoints_fingerprint(gem: Any, trained_folder: Path) -> None:
    assert gem.fingerprint == open_checkpoint(trained_folder).fingerprint()


# -- folders that are no models ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer.json"),
        ("model.safetensors", "no .*safetensors weights"),
        (ADAPTER_NAME, f"no {ADAPTER_NAME}"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(missing: str, message: str, folder: Path) -> None:
    (folder / missing).unlink()
    with pytest.raises(InputError, match=message):
        gem_rag.load(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a model folder.*gem-tiny"):
        open_checkpoint(tmp_path)


def test_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="is a file: give the folder"):
        open_checkpoint(folder / "config.json")


@pytest.mark.parametrize("path", ["./nowhere", "/no/where", "~/no-such-model", "a/b/c"])
def test_a_path_that_does_not_exist_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="there is no model folder"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model"])
def test_a_hub_name_that_cannot_be_had_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"model '{name}' is not installed.*check the name"):
        open_checkpoint(name)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "model.safetensors", ADAPTER_NAME]
)
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_file_is_refused(file: str, damage: str, folder: Path) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2] if damage == "cut" else b"{}")
    with pytest.raises(InputError, match=r"cannot be loaded|cannot be read"):
        gem_rag.load(folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "config.json",
            {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}},
            "names code of the model's own .* never run",
        ),
        (
            "config.json",
            {"model_type": "mine"},
            "model type 'mine', which transformers .* not know",
        ),
        ("config.json", {"model_type": "clip"}, "'clip', which is no causal language model"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Slow", "code.Fast"]}},
            "tokenizer in .* cannot be loaded",
        ),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "code.Model"}}, ""),
    ],
)
def test_a_folders_code_is_never_run_nor_asked_about(
    file: str, changes: dict[str, Any], message: str, folder: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    (folder / "code.py").write_text("raise SystemExit('the code was run')\n")
    edit_json(folder / file, **changes)
    if message:
        with pytest.raises(InputError, match=message):
            gem_rag.load(folder)
    else:
        with gem_rag.load(folder) as gem:
            assert gem.embed_queries(["text"]).shape == (1, gem.dim)


def test_weights_that_lack_a_tensor_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="q_proj"):
        gem_rag.load(folder)


# -- gem_config.json ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / CONFIG_NAME).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        GemConfig.read(tmp_path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"pooing": "mean"}, "unknown key 'pooing'.*did you mean 'pooling'"),
        ({"k": 0}, "k must be a whole number from 1 to 16, not 0"),
        ({"k": 17}, "k must be a whole number from 1 to 16, not 17"),
        ({"k": True}, "k must be a whole number"),
        ({"k": "2"}, "k must be a whole number"),
        ({"pooling": "max"}, "pooling must be one of mean, concat, not 'max'"),
        ({"scope": "some"}, "scope must be one of full, lora, special, not 'some'"),
        ({"format_version": 2}, "format version 2"),
        ({"k": 2, "tokens": ["<a>"]}, "2 different names"),
        ({"k": 2, "tokens": ["<a>", "<a>"]}, "2 different names"),
        ({"tokens": 5}, "tokens must be texts, not 5"),
        ({"tokens": [5]}, "tokens must be texts"),
        ({"prompts": {"query": ""}}, "'query' and 'document'"),
        ({"prompts": None}, "'query' and 'document'"),
        ({"prompts": ["query", "document"]}, "'query' and 'document'"),
        ({"prompts": {"query": 1, "document": ""}}, "prompts must be texts"),
        ({"max_length": 0}, "max_length must be a whole number, at least 1, or None, not 0"),
        ({"max_length": "many"}, "max_length must be a whole number"),
        ({"max_length": 2.5}, "max_length must be a whole number"),
        ({"layers": "2"}, "layers must be a whole number"),
        ({"answer_prompt": ["a"]}, "answer_prompt must be a text"),
        ({"answer_margin": "wide"}, "answer_margin must be a number"),
        ({"answer_min_score": 2}, "answer_min_score must be a cosine, from -1 to 1, not 2"),
        ({"base_model": {}}, "base_model must be a text"),
        ({"adapter": {"rank": 4}}, "cannot be used"),
        ({"adapter": {"rank": 0, "alpha": 1, "targets": []}}, "rank must be a whole number from 1"),
        (
            {"adapter": {"rank": 3_000_000, "alpha": 1, "targets": []}},
            "from 1 to 4096, not 3000000",
        ),
        ({"adapter": {"rank": "8", "alpha": 1, "targets": []}}, "rank must be a whole number"),
        ({"adapter": {"rank": 4, "alpha": "1", "targets": []}}, "alpha must be a number above 0"),
        ({"adapter": {"rank": 4, "alpha": 1, "targets": "q_proj"}}, "targets must be texts"),
        (
            {"adapter": {"rank": 4, "alpha": 1, "target": []}},
            "adapter has an unknown key 'target'.*did you mean 'targets'",
        ),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_used_is_refused(
    state: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / CONFIG_NAME).write_text(json.dumps(state))
    with pytest.raises(InputError, match=message):
        GemConfig.read(tmp_path)


def test_a_config_survives_saving_and_reading(folder: Path, tmp_path: Path) -> None:
    config = GemConfig.read(folder)
    assert config is not None
    assert (config.k, config.scope, config.tokens) == (2, "special", ("<|gem_1|>", "<|gem_2|>"))
    config.save(tmp_path)
    assert GemConfig.read(tmp_path) == config


def test_another_k_than_the_trained_one_is_refused(gem_folder: Any) -> None:
    with pytest.raises(InputError, match=r"GEM-trained with k = 1, not 4.*leave k out"):
        gem_rag.load(gem_folder("llama", k=1), k=4)


# -- writing -----------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder that stands where a new one shall go."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("old")
    return tmp_path / "old"


def names_and_texts(folder: Path) -> dict[str, str]:
    """All files below a folder, hidden ones too."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_text() for file in files}


def test_a_replaced_folder_holds_only_what_is_new(old: Path, tmp_path: Path) -> None:
    with replace_folder(old) as new:
        (new / "other").write_text("new")
        assert names_and_texts(old) == {"file": "old"}
    assert names_and_texts(tmp_path) == {"old/other": "new"}
    assert os.listdir(tmp_path) == ["old"]


def test_a_new_folder_appears_with_its_parents(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "a" / "b") as new:
        (new / "file").write_text("new")
    assert names_and_texts(tmp_path) == {"a/b/file": "new"}


@pytest.mark.parametrize(
    ("error", "raised"), [(ValueError, ValueError), (KeyboardInterrupt, KeyboardInterrupt),
                          (OSError, GemError)]
)  # fmt: skip
def test_a_failure_leaves_the_old_folder(
    old: Path, tmp_path: Path, error: Any, raised: Any
) -> None:
    with pytest.raises(raised), replace_folder(old) as new:  # noqa: PT012
        (new / "file").write_text("half")
        raise error("no")
    assert names_and_texts(tmp_path) == {"old/file": "old"}
    assert os.listdir(tmp_path) == ["old"]


def test_a_failure_of_the_last_step_puts_the_old_folder_back(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(target) == old and Path(source, "new").exists():
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(GemError, match="what was there is unchanged"), replace_folder(old) as new:
        (new / "new").write_text("new")
    assert names_and_texts(tmp_path) == {"old/file": "old"}
    assert os.listdir(tmp_path) == ["old"]


def test_a_saved_checkpoint_has_the_bases_files_byte_for_byte(
    plain_folder: Any, trained_folder: Path
) -> None:
    for file in plain_folder("llama").iterdir():
        assert (trained_folder / file.name).read_bytes() == file.read_bytes()


def test_a_checkpoint_can_be_saved_over_its_own_base(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    adapter = checkpoint.adapter()
    assert adapter is not None
    before = checkpoint.fingerprint()
    adapter["special_embeddings"] = torch.zeros_like(adapter["special_embeddings"])
    saved = save_checkpoint(folder, folder, checkpoint.config, adapter)
    assert saved.fingerprint() != before
    assert saved.config == checkpoint.config
