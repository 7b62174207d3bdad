"""The losses, by numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes import pairs_recipe, prepared, write_rows
from safetensors.torch import load_file
from torch import Tensor

import gem_rag
from gem_rag.errors import InputError
from gem_rag.training.objectives import (
    LogitScale,
    alignment_loss,
    info_nce,
    matryoshka,
    spread_out_loss,
)
from gem_rag.training.recipe import from_state
from gem_rag.training.run import train
from gem_rag.training.schedule import only_aligns
from gem_rag.training.teacher import WhitenedMeanPooling
from gem_rag.training.trainer import complete_checkpoints

LOG = math.log


def with_cosines(*rows: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Queries and documents that have these cosines (they need not be unit vectors here)."""
    cosines = torch.tensor(rows)
    return cosines, torch.eye(cosines.shape[1])


ONE = torch.tensor(1.0)


# -- contrast ----------------------------------------------------------------------------------


def test_a_query_chooses_its_document_among_all() -> None:
    queries, documents = with_cosines((LOG(2), 0.0), (0.0, LOG(6)))
    # 2 / (2 + 1) and 6 / (1 + 6)
    expected = (LOG(3 / 2) + LOG(7 / 6)) / 2
    assert float(info_nce(queries, documents, ONE)) == pytest.approx(expected)
    # With a scale of 2: 4 / 5 and 36 / 37.
    expected = (LOG(5 / 4) + LOG(37 / 36)) / 2
    assert float(info_nce(queries, documents, 2 * ONE)) == pytest.approx(expected)


def test_both_ways_is_the_mean_of_queries_and_documents() -> None:
    queries, documents = with_cosines((LOG(2), LOG(3), 0.0), (0.0, LOG(4), 0.0))
    # Rows: 2 / (2 + 3 + 1) and 4 / (1 + 4 + 1); documents' columns: 2 / (2 + 1) and 4 / (3 + 4).
    there = (LOG(3) + LOG(6 / 4)) / 2
    back = (LOG(3 / 2) + LOG(7 / 4)) / 2
    found = info_nce(queries, documents, ONE, both_ways=True)
    assert float(found) == pytest.approx((there + back) / 2)


def test_both_ways_with_documents_in_other_columns() -> None:
    queries, documents = with_cosines((0.0, LOG(2), 0.0), (LOG(4), 0.0, 0.0))
    positive = torch.tensor([1, 0])
    found = info_nce(queries, documents, ONE, positive, both_ways=True)
    there = (LOG(4 / 2) + LOG(6 / 4)) / 2
    back = (LOG(3 / 2) + LOG(5 / 4)) / 2
    assert float(found) == pytest.approx((there + back) / 2)


def test_negatives_above_the_positive_by_more_than_the_margin_do_not_count() -> None:
    queries, documents = with_cosines((0.5, 0.61, 0.6, 0.1))
    found = info_nce(queries, documents, ONE, margin=0.1)  # without .61; .6 is within the margin
    expected = LOG(1 + math.exp(0.1) + math.exp(-0.4))
    assert float(found) == pytest.approx(expected)
    assert float(info_nce(queries, documents, ONE, margin=None)) > float(found)
    # A margin of 0 leaves those below, and never takes the positive away.
    found = info_nce(queries, documents, ONE, margin=0.0)
    assert float(found) == pytest.approx(LOG(1 + math.exp(-0.4)))


def test_a_margin_decides_and_has_no_gradient_of_its_own() -> None:
    queries, documents = with_cosines((0.5, 0.9, 0.1))
    queries.requires_grad_()
    info_nce(queries, documents, ONE, margin=0.1).backward()
    assert queries.grad is not None
    assert queries.grad[0, 1] == 0


def test_hard_negatives_weigh_more_and_one_on_average() -> None:
    # Weights exp(beta s) of the negatives are 3 and 1, by their mean 2: 1.5 and .5.
    queries, documents = with_cosines((0.0, LOG(3), 0.0))
    found = info_nce(queries, documents, ONE, hardness=1.0)
    assert float(found) == pytest.approx(LOG(1 + 1.5 * 3 + 0.5 * 1))
    # What does not count has no part in the mean.
    ignored = torch.tensor([[False, True, False]])
    found = info_nce(queries, documents, ONE, false_negatives=ignored, hardness=1.0)
    assert float(found) == pytest.approx(LOG(2))
    nothing_left = torch.tensor([[False, True, True]])
    found = info_nce(queries, documents, ONE, false_negatives=nothing_left, hardness=1.0)
    assert float(found) == 0


def test_shortened_vectors_have_the_same_losses() -> None:
    queries = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    documents = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])

    def first_cosine(queries: Tensor, documents: Tensor) -> Tensor:
        return (queries @ documents.T)[0, 0]

    # .6 in full; alone, the first number is 1.
    assert float(matryoshka(first_cosine, queries, documents, [1])) == pytest.approx((0.6 + 1) / 2)


# -- temperature, spread, alignment ------------------------------------------------------------


def test_the_temperature_starts_and_ends_where_the_recipe_says() -> None:
    scale = LogitScale(1 / 0.05, 1 / 0.02)
    assert float(scale()) == pytest.approx(20)
    with torch.no_grad():
        scale.s += 5
    assert float(scale()) == pytest.approx(50)


def test_vectors_that_do_not_belong_together_are_spread_out() -> None:
    # Apart: .4, .2, .6, 0; their mean is .3 and their mean square .14, of 1 / 4 that is allowed.
    queries = torch.tensor([[1.0, 0.4, 0.2, 0.0], [0.6, 1.0, 0.0, 0.0]])
    documents, positive = torch.eye(4)[:3], torch.tensor([0, 1])
    assert float(spread_out_loss(queries, documents, positive)) == pytest.approx(0.09)
    # In two dimensions: .9 and .9, whose mean square is .81, .31 too much.
    queries, documents = torch.tensor([[1.0, 0.9], [0.9, 1.0]]), torch.eye(2)
    found = spread_out_loss(queries, documents, torch.tensor([0, 1]))
    assert float(found) == pytest.approx(0.81 + 0.31)
    # Without .6 the mean is .2, and without all of them there is nothing to spread.
    ignored = torch.tensor([[False, False, False], [True, False, False]])
    queries = torch.tensor([[1.0, 0.4, 0.2, 0.0], [0.6, 1.0, 0.0, 0.0]])
    found = spread_out_loss(queries, torch.eye(4)[:3], positive, ignored)
    assert float(found) == pytest.approx(0.04)
    every = torch.ones(2, 3, dtype=torch.bool)
    assert float(spread_out_loss(queries, torch.eye(4)[:3], positive, every)) == 0


def test_alignment_is_one_minus_the_cosine() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    teacher = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    assert float(alignment_loss(vectors, teacher)) == pytest.approx((0.4 + 0.0) / 2)


def test_whitened_vectors_have_no_mean_and_variance_one(plain_folder: Any) -> None:
    texts = [f"text {number} about {number * 7 % 13} things" for number in range(60)]
    teacher = WhitenedMeanPooling(plain_folder("qwen3"), texts)
    found = teacher.encode(texts)
    assert found.dtype == np.float32
    assert np.abs(found.mean(axis=0)).max() < 1e-3
    assert np.abs(found.T @ found / len(texts) - np.eye(found.shape[1])).max() < 1e-2


# -- in a run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(plain_folder: Any) -> Path:
    return plain_folder("qwen3")


ALIGNED = {"teacher": "base", "align": 1.0, "teacher_weight": 0.0}


def test_a_step_adds_up_what_its_recipe_asks_for(base: Path, tmp_path: Path) -> None:
    plain, steps = prepared(pairs_recipe(tmp_path), base)
    parts = plain(steps[0])
    assert set(parts) == {"loss", "contrastive"}
    settings = {**ALIGNED, "spread": 0.5, "both_ways": True, "hardness": 0.3,
                "false_negative_margin": 0.1}  # fmt: skip
    model, steps = prepared(pairs_recipe(tmp_path, contrastive=settings), base)
    parts = model(steps[0])
    assert set(parts) == {"loss", "contrastive", "align", "spread"}
    expected = sum(float(parts[name]) for name in ("contrastive", "align", "spread"))
    assert float(parts["loss"]) == pytest.approx(expected, rel=1e-5)
    parts["loss"].backward()
    assert model.projection is not None
    assert model.projection.weight.grad.abs().max() > 0


def test_first_steps_may_only_align(base: Path, tmp_path: Path) -> None:
    schedule = {"steps": 6, "batch": 8, "align": 2, "contrastive_from": 0}
    plan = pairs_recipe(tmp_path, contrastive=ALIGNED, schedule=schedule)
    assert [only_aligns(plan, step) for step in range(4)] == [True, True, False, False]
    assert plan.scaled(12).schedule.align == 4
    model, steps = prepared(plan, base)
    assert [set(model(steps[step])) - {"loss"} for step in (1, 2)] == [
        {"align"}, {"align", "contrastive"},
    ]  # fmt: skip


def test_a_projection_is_resumed_and_not_part_of_the_model(base: Path, tmp_path: Path) -> None:
    schedule = {"steps": 4, "batch": 8, "contrastive_from": 0}
    plan = pairs_recipe(tmp_path, contrastive=ALIGNED, schedule=schedule,
                        trainer={"save_steps": 2})  # fmt: skip
    train(plan, base, tmp_path / "out", report=False)
    last = complete_checkpoints(tmp_path / "out.run")[-1]
    assert "projection.weight" in load_file(last / "model.safetensors")
    for file in (tmp_path / "out").rglob("*.safetensors"):
        assert not any("projection" in name for name in load_file(file))
    with gem_rag.load(tmp_path / "out") as gem:
        assert gem.embed_documents(["the fox"]).shape == (1, gem.dim)


def test_the_trained_weights_are_the_mean_of_the_last_states(base: Path, tmp_path: Path) -> None:
    schedule = {"steps": 6, "batch": 8, "contrastive_from": 0, "average": 3}
    plan = pairs_recipe(tmp_path, scope="special", schedule=schedule, save_dtype="float32",
                        trainer={"save_steps": 1})  # fmt: skip
    train(plan, base, tmp_path / "out", report=False)
    folders = complete_checkpoints(tmp_path / "out.run")
    assert [folder.name for folder in folders] == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
    name = "encoder.special.embeddings"
    states = [load_file(folder / "model.safetensors")[name] for folder in folders]
    assert not torch.equal(states[0], states[2])
    [saved] = (tmp_path / "out" / "gem").glob("*.safetensors")
    found = load_file(saved)["special_embeddings"]
    assert torch.allclose(found, (states[0] + states[1] + states[2]) / 3, atol=1e-6)
    with pytest.raises(InputError, match="save_total_limit must be at least 3"):
        train(pairs_recipe(tmp_path, schedule=schedule, trainer={"save_total_limit": 2}), base,
              tmp_path / "other")  # fmt: skip


def test_few_rows_are_not_trained_on_more_often_than_allowed(base: Path, tmp_path: Path) -> None:
    schedule = {"steps": 40, "batch": 8, "contrastive_from": 0, "warmup_steps": 20, "epochs": 0.2}
    report = train(pairs_recipe(tmp_path, schedule=schedule), base, tmp_path / "out")
    assert report is not None
    rows = report.record["data"]["pairs"]["rows"]
    assert report.steps == int(0.2 * rows / 8) < 40
    assert report.record["recipe"]["schedule"]["warmup_steps"] == round(20 * report.steps / 40)


def test_documents_of_one_source_are_no_negatives(base: Path, tmp_path: Path) -> None:
    rows = [
        {"query": f"query {n}", "document": f"document {n} says so", "source": f"file {n % 4}"}
        for n in range(12)
    ]
    file = write_rows(tmp_path / "sourced.jsonl", rows)
    state = {
        "scope": "special", "max_length": 40, "adapter": {"rank": 4},
        "data": {"own": {"kind": "pairs", "path": str(file)}},
        "schedule": {"steps": 2, "batch": 12, "contrastive_from": 0},
        "evaluation": {"held_out": 0},
    }  # fmt: skip
    plain = prepared(from_state({**state, "contrastive": {}}, "recipe"), base)[1][0].contrast
    assert plain is not None
    assert not plain.false_negatives.any()
    plan = from_state({**state, "contrastive": {"mask_same_source": True}}, "recipe")
    contrast = prepared(plan, base)[1][0].contrast
    assert contrast is not None
    # Two others have each one's source, and nobody's own document is masked.
    assert contrast.false_negatives.sum(axis=1).tolist() == [2] * 12
    assert not contrast.false_negatives[np.arange(12), contrast.positive].any()
    for row in rows:
        del row["source"]
    write_rows(file, rows)
    with pytest.raises(InputError, match="has no column 'source', which contrastive.mask_same"):
        prepared(plan, base)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"contrastive": {"align": 1}}, "contrastive.align needs a teacher"),
        ({"contrastive": {}, "schedule": {"align": 3}}, "schedule.align needs contrastive.align"),
        ({"contrastive": {"temperature": {"initial": 0.01, "least": 0.02}}},
         "temperature.initial is 0.01: it must be from least"),
        ({"contrastive": {"temprature": {}}}, "did you mean 'temperature'"),
        ({"contrastive": {"temperature": {"leest": 0.1}}}, "did you mean 'least'"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(state: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_state(state, "recipe")
