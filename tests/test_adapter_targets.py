"""Where adapters can be: in every family, what special tokens can be told from text in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
from families import FAMILIES, build_family

import gem_rag
from gem_rag.core.adapter_targets import place_adapters
from gem_rag.core.auto_model import load_language_model
from gem_rag.errors import InputError
from gem_rag.pairs.pair import Pair, write_pairs
from gem_rag.training.recipe import read_recipe
from gem_rag.training.run import train


def last_names(names: tuple[str, ...]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names}


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(
    ("family", "rows", "mixed"),
    [
        ("llama", ATTENTION | {"gate_proj", "up_proj", "down_proj"}, set()),
        ("opt", ATTENTION - {"o_proj"} | {"out_proj"}, {"fc1", "fc2"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}, set()),
        (
            "qwen2_moe",
            ATTENTION,
            {"gate_proj", "up_proj", "down_proj", "shared_expert_gate"},
        ),
    ],
)
def test_adapters_are_put_where_tokens_keep_their_rows(
    family: str, rows: set[str], mixed: set[str]
) -> None:
    placement = place_adapters(build_family(family))
    assert last_names(placement.rows) == rows
    assert last_names(placement.mixed) == mixed
    assert bool(placement.left_out()) == bool(mixed)


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("gemma3 with images", "vision_tower.* are not part of reading a text"),
        ("mixtral", r"mlp.experts are no linear layers"),
        ("phimoe", r"2 such as model.layers.0.mlp.router choose experts"),
        (
            "mamba",
            r"2 such as backbone.layers.0.mixer.out_proj have weights that fast kernels read",
        ),
        ("opt", r"4 such as model.decoder.layers.0.fc1 see tokens in another order"),
    ],
)
def test_what_is_left_out_is_named_with_the_reason(family: str, said: str) -> None:
    assert re.search(said, place_adapters(build_family(family)).left_out())


def test_no_layer_of_a_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InputError, match=r"no linear layer named wq.*name some of .*q_proj"):
        place_adapters(build_family("llama"), last_names=("wq",))


def test_layers_without_rows_only_are_refused_in_scope_special(tmp_path: Path) -> None:
    base = save_family("opt", tmp_path)
    with pytest.raises(
        InputError, match=r"fc1 see tokens in another order.*use scope lora or full"
    ):
        train_family(base, tmp_path, "special", {"adapter.targets": ["fc1", "fc2"]})


# -- five steps of every family -----------------------------------------------------------------


def save_family(family: str, folder: Path) -> Path:
    base = folder / "base"
    build_family(family).save_pretrained(base)
    helpers.build_tokenizer(bos=True).save_pretrained(base)
    return base


def train_family(
    base: Path, folder: Path, scope: str, changes: dict[str, Any] | None = None
) -> Path:
    """Five steps of the bundled recipe `special`, in one of the scopes."""
    texts = [f"text number {n} tells about {n * 7} things" for n in range(16)]
    pairs = [Pair(f"question {n}", text, "made", "doc", "") for n, text in enumerate(texts)]
    write_pairs(folder / "pairs.jsonl", pairs)
    settings = {
        "scope": scope, "schedule.steps": 5, "schedule.batch": 4, "schedule.warmup_steps": 1,
        "schedule.learning_rate": 0.01, "max_length": 32, "query_length": 16, "adapter.rank": 4,
        "trainer.bf16": False, "trainer.save_steps": 5, **(changes or {}),
    }  # fmt: skip
    recipe = read_recipe("special", settings).with_data([str(folder / "pairs.jsonl")])
    train(recipe, base, folder / "trained", report=False)
    return folder / "trained"


@pytest.mark.parametrize("scope", ["special", "lora"])
@pytest.mark.parametrize("family", [*FAMILIES, "qwen3_5_text", "gpt_oss", "mamba", "gemma2"])
def test_a_family_trains_and_is_loaded_again(family: str, scope: str, tmp_path: Path) -> None:
    base = save_family(family, tmp_path)
    trained = train_family(base, tmp_path, scope)
    with gem_rag.load(trained) as gem, gem_rag.load(base) as plain:
        vectors = gem.embed_documents(helpers.SENTENCES)
        alone = np.concatenate([gem.embed_documents([text]) for text in helpers.SENTENCES])
        assert helpers.close_to(vectors, alone)
        head = load_language_model(base).get_output_embeddings()
        assert vectors.shape[1] == head.in_features
        if scope == "special":
            prompts = [gem.tokenize(text) for text in helpers.SENTENCES]
            assert gem.generate(prompts, max_tokens=8) == plain.generate(prompts, max_tokens=8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "family",
    [
        "opt",
        "gpt2",
        "qwen2_moe",
        "deepseek_v3",
        "gemma3 with images",
        "mistral3",
        "qwen3_5_text",
        "gpt_oss",
    ],
)
def test_a_family_trains_on_a_folder_of_documents(family: str, tmp_path: Path) -> None:
    base, folder = save_family(family, tmp_path), tmp_path / "documents"
    folder.mkdir()
    for number in range(24):
        body = f"What item {number} is for, and how {number * 7} of them are kept. " * 4
        (folder / f"{number}.md").write_text(f"# Item number {number}\n\n{body}")
    settings = {
        "schedule.batch": 4, "schedule.warmup_steps": 1, "max_length": 150, "query_length": 32,
        "adapter.rank": 4, "trainer.bf16": False, "data.documents.pairs.passage_tokens": 150,
        "data.documents.pairs.questions": 1, "data.documents.pairs.max_questions": 4,
    }  # fmt: skip
    recipe = read_recipe("domain", settings).scaled(5).with_data([str(folder)])
    report = train(recipe, base, tmp_path / "trained")
    assert report is not None
    assert report.retrieval["documents"]["after"].queries > 1
    with gem_rag.load(tmp_path / "trained") as gem, gem_rag.load(base) as plain:
        prompts = [gem.tokenize(text) for text in helpers.SENTENCES]
        assert gem.generate(prompts, max_tokens=8) == plain.generate(prompts, max_tokens=8)


def test_layers_left_out_are_said_when_a_run_begins(tmp_path: Path) -> None:
    base = save_family("opt", tmp_path)
    with pytest.warns(UserWarning, match="base has layers without adapters: 4 such as"):
        train_family(base, tmp_path, "special")
