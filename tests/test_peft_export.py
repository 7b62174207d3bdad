"""Checkpoints in plain peft, and without GEM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import close_to
from peft import PeftModel
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer

import gem_rag
from gem_rag.cli import main
from gem_rag.errors import InputError
from gem_rag.interop.peft_export import to_peft, to_plain

TEXTS = ("a quick fox", "x", "an index of vectors, and what comes from text")


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "gpt_neox"])
def test_plain_peft_gives_the_same_vectors(
    architecture: str, gem_folder: Any, plain_folder: Any, tmp_path: Path
) -> None:
    folder = gem_folder(architecture, prompts={"query": "", "document": "text: "})
    out = to_peft(folder, tmp_path / "out")
    with gem_rag.load(folder) as gem:
        wanted = gem.embed_documents(list(TEXTS))
    tokenizer = AutoTokenizer.from_pretrained(out)
    plain = AutoModelForCausalLM.from_pretrained(plain_folder(architecture))
    rows = plain.get_input_embeddings().num_embeddings
    plain.resize_token_embeddings(rows + 1, mean_resizing=False)
    model = PeftModel.from_pretrained(plain, out).eval()
    for text, vector in zip(TEXTS, wanted, strict=True):
        ids = tokenizer("text: " + text, return_tensors="pt").input_ids
        ids = torch.cat([ids, torch.tensor([[rows]])], dim=1)
        assert tokenizer.convert_ids_to_tokens(rows) == "<|gem_1|>"
        with torch.inference_mode():
            output = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][:, -1]
        assert close_to(normalize(output, dim=-1).numpy()[0], vector)


def test_the_card_says_how_to_load_it(gem_folder: Any, tmp_path: Path) -> None:
    to_peft(gem_folder("llama"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    state = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert f"base_model: {state['base_model_name_or_path']}" in card
    assert state["alora_invocation_tokens"] == [320]
    assert "resize_token_embeddings(321" in card


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"k": 2}, "it has 2 special tokens"), ({"layers": 1}, "it is read after 1 layers")],
)
def test_what_peft_cannot_compute_is_refused(
    settings: dict[str, Any], reason: str, gem_folder: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason):
        to_peft(gem_folder("llama", **settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plain_model_is_refused(plain_folder: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="because it has not been GEM-trained"):
        to_peft(plain_folder("llama"), tmp_path / "out")


def test_gem_is_taken_off(gem_folder: Any, plain_folder: Any, tmp_path: Path) -> None:
    out = to_plain(gem_folder("llama"), tmp_path / "out")
    base = plain_folder("llama")
    names = {file.name for file in out.iterdir()}
    assert names == {file.name for file in base.iterdir()} - {"README.md"}
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    with pytest.warns(UserWarning, match="has not been GEM-trained"):
        gem_rag.load(out).close()
    with pytest.raises(InputError, match="exists already"):
        to_plain(base, out)


@pytest.mark.parametrize("to", ["peft", "plain"])
def test_the_command(to: str, gem_folder: Any, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "export",
                "--model",
                str(gem_folder("llama")),
                "--to",
                to,
                "--out",
                str(tmp_path / "o"),
            ]
        )
    assert not stopped.value.code
    assert "wrote" in capsys.readouterr().out
    assert any(file.suffix == ".safetensors" for file in (tmp_path / "o").iterdir())
