"""Losses, scopes and the training model: what is computed, and what may move."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
import torch.nn.functional as F
from recipes import pairs_recipe, prepared, recipe
from transformers import AutoModelForCausalLM

from gem_rag.training import scopes
from gem_rag.training.objectives import (
    LogitScale,
    distillation_loss,
    info_nce,
    matryoshka,
    teacher_loss,
)

SCOPES = ("full", "lora", "special")


@pytest.fixture
def base(plain_folder: Any) -> Path:
    return plain_folder("qwen3")


# -- objectives --------------------------------------------------------------------------------


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_info_nce_is_the_cross_entropy_of_the_right_document() -> None:
    torch.manual_seed(0)
    queries, documents = torch.randn(3, 8), torch.randn(5, 8)
    by_hand = 0.0
    for i in range(3):
        scores = [7.0 * float(queries[i] @ documents[j]) for j in range(5)]
        by_hand -= scores[i] - math.log(sum(map(math.exp, scores)))
    assert float(info_nce(queries, documents, torch.tensor(7.0))) == pytest.approx(by_hand / 3)


def test_info_nce_leaves_out_documents_that_say_the_same() -> None:
    torch.manual_seed(0)
    queries, documents = unit(2, 8), unit(3, 8)
    scale, positive = torch.tensor(5.0), torch.tensor([1, 2])
    same = torch.tensor([[True, False, False], [False, False, False]])
    by_hand = 0.0
    for i, (right, columns) in enumerate([(1, (1, 2)), (2, (0, 1, 2))]):
        scores = {j: 5.0 * float(queries[i] @ documents[j]) for j in columns}
        by_hand -= scores[right] - math.log(sum(map(math.exp, scores.values())))
    assert float(info_nce(queries, documents, scale, positive, same)) == pytest.approx(by_hand / 2)


@pytest.mark.parametrize(("s", "scale"), [(-1.0, 1.0), (1.0, math.e), (9.0, 100.0)])
def test_logit_scale_is_clamped_and_learns(s: float, scale: float) -> None:
    logit_scale = LogitScale()
    assert float(logit_scale().detach()) == pytest.approx(20.0)
    with torch.no_grad():
        logit_scale.s.fill_(s)
    out = logit_scale()
    out.backward()
    assert float(out.detach()) == pytest.approx(scale)
    assert float(logit_scale.s.grad) == pytest.approx(scale)


def test_matryoshka_is_the_mean_over_cut_vectors() -> None:
    torch.manual_seed(0)
    queries, documents = unit(4, 16), unit(4, 16)

    def loss(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        assert torch.allclose(q.norm(dim=1), torch.ones(4))
        return info_nce(q, d, torch.tensor(3.0))

    parts = [loss(unit_cut(queries, n), unit_cut(documents, n)) for n in (16, 4, 8)]
    found = matryoshka(loss, queries, documents, (4, 8))
    assert float(found) == pytest.approx(float(sum(parts)) / 3, abs=1e-6)


def unit_cut(vectors: torch.Tensor, dim: int) -> torch.Tensor:
    return vectors[:, :dim] / vectors[:, :dim].norm(dim=1, keepdim=True)


def test_teacher_loss_wants_the_teachers_similarities_whatever_its_dimension() -> None:
    torch.manual_seed(0)
    queries, documents = unit(5, 8), unit(5, 8)
    turn = torch.linalg.qr(torch.randn(32, 32)).Q[:, :8]  # keeps all angles
    scale = torch.tensor(10.0)
    same = teacher_loss(queries, documents, (queries @ turn.T, documents @ turn.T), scale)
    other = teacher_loss(queries, documents, (unit(5, 32), unit(5, 32)), scale)
    assert float(same) == pytest.approx(0.0, abs=1e-5)
    assert float(other) > 0.5


def test_distillation_is_the_divergence_from_the_base() -> None:
    torch.manual_seed(0)
    own, base = torch.randn(4, 7), torch.randn(4, 7)
    p, q = base.softmax(-1), own.softmax(-1)
    assert float(distillation_loss(own, base)) == pytest.approx(float((p * (p / q).log()).sum()))
    assert float(distillation_loss(own, own)) == pytest.approx(0.0, abs=1e-6)


# -- the training model --------------------------------------------------------------------------


def losses_and_gradients(model: Any, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(batch)["loss"]
    loss.backward()
    return float(loss.detach()), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def nearly(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to 1e-5 of the largest number, or of one."""
    return float((a - b).abs().max()) <= 1e-5 * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize("make", [recipe, pairs_recipe])
@pytest.mark.parametrize("scope", SCOPES)
def test_gradient_caching_changes_nothing(
    base: Path, tmp_path: Path, scope: str, make: Any
) -> None:
    """Neither does cutting the batch in other passes. Step 4 has both losses."""
    small = {"memory": {"tokens": 60, "gradient_caching": True}}
    whole = {"memory": {"tokens": 10_000, "padding": 1.0}}
    results = []
    for memory in (whole, small):
        model, steps = prepared(make(tmp_path, scope=scope, **memory), base)
        results.append((len(steps[4].passes), *losses_and_gradients(model, steps[4])))
    (few, loss, gradients), (many, cached_loss, cached) = results
    assert few <= 2 < many
    assert cached_loss == pytest.approx(loss, abs=1e-5)
    assert gradients.keys() == cached.keys()
    assert len(gradients) > 2
    for name, gradient in gradients.items():
        assert nearly(gradient, cached[name]), name


@pytest.mark.parametrize("scope", SCOPES)
def test_gradient_checkpointing_changes_nothing(base: Path, tmp_path: Path, scope: str) -> None:
    """Adapters on special rows act in the recomputation too."""
    model, steps = prepared(recipe(tmp_path, scope=scope), base)
    plain = losses_and_gradients(model, steps[4])
    model.gradient_checkpointing_enable()
    model.train()
    again = losses_and_gradients(model, steps[4])
    assert again[0] == pytest.approx(plain[0], abs=1e-5)
    for name, gradient in plain[1].items():
        assert nearly(gradient, again[1][name]), name


def test_a_step_weighs_its_losses_by_alpha(base: Path, tmp_path: Path) -> None:
    model, steps = prepared(recipe(tmp_path, next_token__distill=0.3), base)
    for step, names in ((0, {"next_token", "distill"}), (4, {"next_token", "distill",
                        "contrastive"})):  # fmt: skip
        parts = {name: float(value.detach()) for name, value in model(steps[step]).items()}
        loss = parts.pop("loss")
        alpha = steps[step].alpha
        assert alpha == pytest.approx(step / 4 / 3)
        assert parts.keys() == names
        assert loss == pytest.approx(
            (1 - alpha) * parts["next_token"]
            + alpha * parts.get("contrastive", 0)
            + 0.3 * parts["distill"],
            abs=1e-5,
        )


@pytest.mark.parametrize("scope", ["full", "lora"])
def test_distillation_measures_how_far_raw_rows_moved(
    base: Path, tmp_path: Path, scope: str
) -> None:
    model, steps = prepared(recipe(tmp_path, scope=scope, next_token__distill=1.0), base)
    batch = steps[0]
    before = float(model(batch)["distill"].detach())
    trained = [p for p in model.encoder.model.parameters() if p.requires_grad]
    with torch.no_grad():
        for weight in trained:
            weight.add_(0.05 * torch.randn_like(weight))
    after = model(batch)["distill"]
    assert before == pytest.approx(0.0, abs=1e-6)
    assert float(after.detach()) > 1e-3
    after.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_a_teacher_and_cut_vectors_join_the_contrastive_loss(base: Path, tmp_path: Path) -> None:
    plain, steps = prepared(pairs_recipe(tmp_path), base)
    cut, _ = prepared(pairs_recipe(tmp_path, contrastive__dims=[8, 16]), base)
    losses = [float(model(steps[0])["contrastive"].detach()) for model in (plain, cut)]
    assert losses[0] != pytest.approx(losses[1], abs=1e-4)


# -- scopes --------------------------------------------------------------------------------------


def test_what_each_scope_may_move(base: Path, tmp_path: Path) -> None:
    moving = {}
    for scope in SCOPES:
        model, _ = prepared(recipe(tmp_path, scope=scope), base)
        trained = scopes.trainable_state_dict(model)
        moving[scope] = set(trained)
        assert all(tensor.dtype == torch.float32 for tensor in trained.values())
    rows = {"encoder.special.embeddings", "logit_scale.s"}
    plain = AutoModelForCausalLM.from_pretrained(base)
    whole = {f"encoder.model.{name}" for name, _ in plain.named_parameters()}
    assert moving["full"] == whole | rows
    assert rows < moving["special"]
    assert all(".special." in name or name == "logit_scale.s" for name in moving["special"])
    assert rows < moving["lora"]
    assert all("lora_" in name for name in moving["lora"] - rows)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_base_stays_within_reach(base: Path, scope: str) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    make = getattr(scopes, f"prepare_{scope}")
    tuned = make(AutoModelForCausalLM.from_pretrained(base), 1)
    tuned.keep_base()
    helpers.randomise(tuned.encoder.special)
    for weight in scopes.trainable_state_dict(tuned.encoder.model).values():
        weight.add_(0.1 * torch.randn_like(weight))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), tuned.base() as model:
        assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-5)
        moved = (tuned.encoder.model(ids).logits - plain(ids).logits).abs().max()
    assert (float(moved) > 1e-2) == (scope != "special") or scope == "lora"
