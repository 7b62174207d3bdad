"""The losses, by numbers worked out by hand."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes import pairs_recipe, prepared, recipe, write_rows
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

import gem_rag
from gem_rag.errors import InputError
from gem_rag.evaluation.baselines import MeanPooled
from gem_rag.training import training_model
from gem_rag.training.batches import Contrast, StepDataset
from gem_rag.training.objectives import (
    LogitScale,
    alignment_loss,
    info_nce,
    matryoshka,
    spread_out_loss,
)
from gem_rag.training.recipe import Source, from_state
from gem_rag.training.run import InterruptedRunError, train
from gem_rag.training.schedule import only_aligns
from gem_rag.training.sources import read_source
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


def test_a_pair_that_does_not_count_counts_in_neither_direction() -> None:
    queries, documents = with_cosines((LOG(2), LOG(3)), (0.0, LOG(4)))
    ignored = torch.tensor([[False, True], [False, False]])
    found = info_nce(queries, documents, ONE, false_negatives=ignored, both_ways=True)
    # The first query and the second document have nothing left to be confused with.
    there, back = (0.0 + LOG(5 / 4)) / 2, (LOG(3 / 2) + 0.0) / 2
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
    assert float(scale().detach()) == pytest.approx(20)
    with torch.no_grad():
        scale.s += 5
    assert float(scale().detach()) == pytest.approx(50)


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


def test_the_base_as_teacher_reads_each_text_once(
    plain_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    embed = MeanPooled.embed_documents
    monkeypatch.setattr(
        MeanPooled, "embed_documents", lambda self, texts: read.extend(texts) or embed(self, texts)
    )
    texts = [f"text {number}" for number in range(60)]
    teacher = WhitenedMeanPooling(plain_folder("qwen3"), texts + texts[:9])
    assert teacher.encode([*texts[5:], "one more", "one more"]).shape[0] == 57
    assert read == [*texts, "one more"]
    assert np.array_equal(teacher.encode(texts[:1]), teacher.encode(texts)[:1])


@pytest.mark.parametrize("texts", [["one text"] * 9, ["one", "two and", "three"]])
def test_too_few_texts_to_whiten_are_refused(plain_folder: Any, texts: list[str]) -> None:
    """They would all have the same distance, whatever they say."""
    with pytest.raises(InputError, match=f"teacher: base has {len(set(texts))} different doc"):
        WhitenedMeanPooling(plain_folder("qwen3"), texts)


# -- in a run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(plain_folder: Any) -> Path:
    return plain_folder("qwen3")


ALIGNED = {"teacher": "base", "align": 1.0, "teacher_weight": 0.0}


def test_shortened_vectors_are_aligned_and_spread_too(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each loss is the mean of that of the full vectors and of those cut to one number."""
    settings = {**ALIGNED, "spread": 1.0, "dims": [1]}
    model, _ = prepared(pairs_recipe(tmp_path, contrastive=settings), base)
    model.projection = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.projection.weight.copy_(torch.eye(2))
    queries, documents = [[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]]
    teacher = np.array([[1, 0], [1, 0]], np.float32), np.array([[0, 1], [0, 1]], np.float32)
    monkeypatch.setattr(model, "embed", lambda _: torch.tensor(queries + documents))
    apart = np.zeros((2, 2), dtype=bool)
    parts = model._contrastive_losses(Contrast([], [], 2, np.arange(2), apart, teacher), step=9)
    # Apart: 0 and .6, whose mean is .3; cut, 0 and 1, whose mean is .5.
    assert float(parts["spread"].detach()) == pytest.approx((0.09 + 0.25) / 2)
    # Cosines with the teacher's: 1, .6, 0, 1; cut, 1, 1, 0 and 0, for nothing is left of the last.
    assert float(parts["align"].detach()) == pytest.approx((0.35 + 0.5) / 2)


def test_a_step_adds_up_what_its_recipe_asks_for(base: Path, tmp_path: Path) -> None:
    plain, steps = prepared(pairs_recipe(tmp_path), base)
    parts = plain(steps[0])
    assert set(parts) == {"loss", "contrastive"}
    settings = {**ALIGNED, "spread": 0.5, "both_ways": True, "hardness": 0.3,
                "false_negative_margin": 0.1}  # fmt: skip
    model, steps = prepared(pairs_recipe(tmp_path, contrastive=settings), base)
    parts = model(steps[0])
    assert set(parts) == {"loss", "contrastive", "align", "spread"}
    expected = sum(float(parts[name].detach()) for name in ("contrastive", "align", "spread"))
    assert float(parts["loss"].detach()) == pytest.approx(expected, rel=1e-5)
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
    # Negatives are no pairs of the teacher's: nothing would be learned of them.
    rows = [len(contrast.order) for step in (1, 2) if (contrast := steps[step].contrast)]
    assert rows == [16, 24]


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
    assert [folder.name for folder in folders] == [f"checkpoint-{step}" for step in (3, 4, 5, 6)]
    name = "encoder.special.embeddings"
    states = [load_file(folder / "model.safetensors")[name] for folder in folders[-3:]]
    assert not torch.equal(states[0], states[2])
    [saved] = (tmp_path / "out" / "gem").glob("*.safetensors")
    found = load_file(saved)["special_embeddings"]
    assert torch.allclose(found, (states[0] + states[1] + states[2]) / 3, atol=1e-6)
    with pytest.raises(InputError, match="save_total_limit must be at least 4"):
        train(pairs_recipe(tmp_path, schedule=schedule, trainer={"save_total_limit": 2}), base,
              tmp_path / "other")  # fmt: skip


def test_fewer_states_than_asked_for_are_averaged(base: Path, tmp_path: Path) -> None:
    schedule = {"steps": 2, "batch": 8, "contrastive_from": 0, "average": 5}
    plan = pairs_recipe(tmp_path, scope="special", schedule=schedule, save_dtype="float32",
                        trainer={"save_steps": 1})  # fmt: skip
    train(plan, base, tmp_path / "out", report=False)
    first, last = (
        load_file(folder / "model.safetensors")["encoder.special.embeddings"]
        for folder in complete_checkpoints(tmp_path / "out.run")
    )
    [saved] = (tmp_path / "out" / "gem").glob("*.safetensors")
    found = load_file(saved)["special_embeddings"]
    assert torch.allclose(found, (first + last) / 2, atol=1e-6)


def test_an_interrupted_run_averages_the_states_of_an_unbroken_one(
    base: Path, tmp_path: Path
) -> None:
    """With a projection and a teacher too; what was saved out of turn is in no mean."""
    schedule = {"steps": 8, "batch": 8, "contrastive_from": 0, "average": 3, "align": 2}
    plan = pairs_recipe(tmp_path, scope="special", schedule=schedule, contrastive=ALIGNED,
                        save_dtype="float32", trainer={"save_steps": 2})  # fmt: skip
    train(plan, base, tmp_path / "whole", report=False)
    for step in (5, 7):
        with pytest.raises(InterruptedRunError):
            train(plan, base, tmp_path / "broken", resume=step > 5, callbacks=[StopAt(step)])
    train(plan, base, tmp_path / "broken", resume=True, report=False)
    whole, broken = (complete_checkpoints(tmp_path / f"{n}.run") for n in ("whole", "broken"))
    assert [folder.name for folder in broken[-3:]] == [f"checkpoint-{step}" for step in (4, 6, 8)]
    ends = [load_file(folders[-1] / "model.safetensors") for folders in (whole, broken)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    saved = [load_file(next((tmp_path / name / "gem").glob("*.safetensors")))
             for name in ("whole", "broken")]  # fmt: skip
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


class StopAt(TrainerCallback):
    """Interrupts a run after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_two_processes_have_the_losses_of_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And, on average, its gradients; negatives and the teacher's vectors are of both."""
    every = {**ALIGNED, "teacher_weight": 0.5, "spread": 0.5, "both_ways": True, "hardness": 2.0,
             "false_negative_margin": 0.05, "dims": [8]}  # fmt: skip
    model, one = prepared(pairs_recipe(tmp_path, scope="special", contrastive=every), base)
    assert one[0].contrast is not None
    assert one[0].contrast.teacher is not None
    whole = losses_and_gradients(model, one[0])
    shares = [StepDataset(one.recipe, one._contrast.corpora, 2, rank)[0] for rank in (0, 1)]
    local = []
    for batch in shares:
        assert batch.contrast is not None
        vectors = model.embed(batch.contrast).detach()
        queries = batch.contrast.num_queries
        local.append((vectors[:queries], vectors[queries:]))
    found = []
    for rank, batch in enumerate(shares):
        turns = iter((0, 1))  # queries are gathered first, then documents

        def gather(own: Tensor, rank: int = rank, turns: Any = turns) -> Tensor:
            turn = next(turns)
            parts = [vectors[turn] for vectors in local]
            assert torch.allclose(parts[rank], own)
            parts[rank] = own + (own - own.detach())  # as among two processes
            return torch.cat(parts)

        monkeypatch.setattr(training_model, "_gather", gather)
        found.append(losses_and_gradients(model, batch))
    for losses, _ in found:
        assert losses == pytest.approx(whole[0], abs=1e-5)
    for name, gradient in whole[1].items():
        mean = (found[0][1][name] + found[1][1][name]) / 2
        limit = 1e-5 * max(1.0, float(gradient.abs().max()))
        assert torch.allclose(mean, gradient, atol=limit), name


def losses_and_gradients(model: Any, batch: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    model.zero_grad()
    parts = model(batch)
    parts["loss"].backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: float(part.detach()) for name, part in parts.items()}, gradients


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
    write_rows(file, [*rows, {**rows[0], "source": None}])
    with pytest.raises(InputError, match="data 'own', row 13 of .*: 'source' is empty"):
        prepared(plan, base)
    for row in rows:
        del row["source"]
    write_rows(file, rows)
    with pytest.raises(InputError, match="has no column 'source', which contrastive.mask_same"):
        prepared(plan, base)


def test_a_column_called_source_may_be_something_else(tmp_path: Path) -> None:
    """As in translations."""
    file = write_rows(tmp_path / "rows.jsonl", [{"source": "a", "target": "b"}])
    names = {"query": "source", "document": "target"}
    found = read_source("mine", Source(path=str(file), kind="pairs", columns=names))
    assert (found["query"], found["document"]) == (["a"], ["b"])
    assert "source" not in found.column_names


def test_vectors_that_nothing_is_aligned_with_may_have_any_length(
    base: Path, tmp_path: Path
) -> None:
    """Or be missing, where there is no teacher."""
    texts = [f"text number {n} of some" for n in range(10)]
    data = {}
    for name, vectors in (("a", [None] * 10), ("b", [[1.0]] * 10), ("c", [[1.0, 2.0]] * 10)):
        rows = [{"text": t, "vector": v} for t, v in zip(texts, vectors, strict=True)]
        data[name] = {"path": str(write_rows(tmp_path / f"{name}.jsonl", rows))}
    schedule = {"steps": 1, "batch": 4, "contrastive_from": 0}
    common = {"next_token": None, "scope": "special", "schedule": schedule,
              "evaluation": {"held_out": 0.0}}  # fmt: skip
    train(recipe(tmp_path, data=data, **common), base, tmp_path / "none", report=False)
    columns = {"teacher": "columns"}
    lengths = {name: data[name] for name in ("b", "c")}
    plan = recipe(tmp_path, data=lengths, contrastive=columns, **common)
    train(plan, base, tmp_path / "columns", report=False)
    plan = recipe(tmp_path, data=lengths, contrastive={**columns, "align": 1.0}, **common)
    with pytest.raises(InputError, match="vectors have one length, and not 1 in b, 2 in c"):
        train(plan, base, tmp_path / "aligned")


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
