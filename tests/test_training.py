"""The first piece of training: the contrastive loss, the `special` scope, the Trainer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import gem_rag
from gem_rag.checkpoint import save_special
from gem_rag.config import GemConfig
from gem_rag.tokens import TextEncoder
from gem_rag.training.data import PairDataset, collate_pairs
from gem_rag.training.objectives import LogitScale, info_nce
from gem_rag.training.scopes import special
from gem_rag.training.tiny.__main__ import cached_pairs
from gem_rag.training.tiny.corpus import (
    Pair,
    held_out,
    pairs,
    read_corpus,
    training_texts,
)
from gem_rag.training.trainer import ContrastiveModel, GemTrainer

TOPICS = ("pump", "lamp", "door", "fox", "index", "model", "dog", "line")
PAIRS = [(f"about the {topic}", f"the {topic} is here, so {topic} it is") for topic in TOPICS]


# -- objectives --------------------------------------------------------------------------------


def test_info_nce_is_the_cross_entropy_of_the_right_document() -> None:
    torch.manual_seed(0)
    queries, documents = torch.randn(3, 8), torch.randn(5, 8)
    by_hand = 0.0
    for i in range(3):
        scores = [7.0 * float(queries[i] @ documents[j]) for j in range(5)]
        by_hand -= scores[i] - math.log(sum(map(math.exp, scores)))
    assert float(info_nce(queries, documents, torch.tensor(7.0))) == pytest.approx(by_hand / 3)


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


# -- training ----------------------------------------------------------------------------------


@pytest.fixture
def base(plain_folder: Any) -> Path:
    return plain_folder("qwen3")


def contrastive(base: Path, **options: Any) -> tuple[ContrastiveModel, PairDataset]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    text = TextEncoder(AutoTokenizer.from_pretrained(base))
    return ContrastiveModel(special(model, k=2, rank=4), **options), PairDataset(
        PAIRS, text, 32, 32
    )


def trainer(model: ContrastiveModel, data: PairDataset, out: Path, steps: int) -> GemTrainer:
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        save_steps=10,
        logging_steps=10,
        use_cpu=True,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    return GemTrainer(model, arguments, data_collator=collate_pairs, train_dataset=data)


def batch(data: PairDataset) -> Any:
    return collate_pairs([data[i] for i in range(len(data))])


def test_only_the_special_tokens_train(base: Path, tmp_path: Path) -> None:
    model, data = contrastive(base)
    frozen = {n: p.clone() for n, p in model.encoder.model.named_parameters()}
    before = float(model(**batch(data))["loss"].detach())
    trainer(model, data, tmp_path, 20).train()
    after = float(model(**batch(data))["loss"].detach())
    assert after < before / 2
    assert all(torch.equal(p, frozen[n]) for n, p in model.encoder.model.named_parameters())
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {
        "special",
        "s",
    }


def test_batches_in_parts_give_the_same_loss(base: Path) -> None:
    whole, data = contrastive(base, budget=10_000)
    parts, _ = contrastive(base, budget=40)
    losses = [float(m(**batch(data))["loss"].detach()) for m in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_resumed_run_equals_the_unbroken_one(base: Path, tmp_path: Path) -> None:
    unbroken, data = contrastive(base)
    trainer(unbroken, data, tmp_path / "unbroken", 20).train()
    broken, _ = contrastive(base)
    trainer(broken, data, tmp_path / "broken", 10).train()
    again, _ = contrastive(base)
    trainer(again, data, tmp_path / "broken", 20).train(resume_from_checkpoint=True)
    for (name, a), (_, b) in zip(
        unbroken.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_saved_state_holds_the_trained_weights_only(base: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    model, data = contrastive(base)
    trainer(model, data, tmp_path, 10).train()
    with safe_open(tmp_path / "checkpoint-10" / "model.safetensors", "pt") as state:
        names = set(state.keys())
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}


def test_trained_checkpoint_loads_and_gives_the_trained_vectors(base: Path, tmp_path: Path) -> None:
    model, data = contrastive(base)
    trainer(model, data, tmp_path / "state", 10).train()
    config = GemConfig(k=2, scope="special", adapter=model.encoder.adapter)
    save_special(tmp_path / "out", base, config, model.encoder.special.tensors())
    with torch.no_grad():
        trained = model.embed([document for _, document in map(data.__getitem__, range(8))])
    with gem_rag.load(tmp_path / "out") as gem:
        vectors = torch.tensor(gem.embed_documents([document for _, document in PAIRS]))
    assert torch.allclose(trained, vectors, atol=1e-5)


# -- corpus ------------------------------------------------------------------------------------


def package(folder: Path) -> Path:
    for number in range(60):
        module = folder / "tools" / f"part{number}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(
            f'def act{number}(x):\n    """Do the thing of number {number}.\n\n'
            f'    It takes x and returns the {number}th of many things there are.\n    """\n'
            f'def same():\n    """A docstring that stands everywhere.\n\n    Word for word, '
            'everywhere, in all of the many parts of it.\n    """\n'
        )
    (folder / "tools" / "python2.py").write_text("print 'hello'")
    (folder / "tools" / "tests").mkdir()
    (folder / "tools" / "tests" / "test_x.py").write_text('"""Left out.\n\nAll of this text."""')
    return folder


def test_corpus_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "no-stdlib"))
    found = list(pairs(read_corpus([package(tmp_path / "site")])))
    assert len(found) == 61  # the text that stands everywhere once
    assert found[0] == Pair(
        "tools.part0",
        "act0",
        "(x)",
        "Do the thing of number 0.",
        "It takes x and returns the 0th of many things there are.",
    )
    kept_out = {p.module for p in found if held_out(p.module)}
    assert kept_out
    texts = dict(training_texts(found))
    for pair in found:
        assert (pair.summary in texts) == (pair.module not in kept_out)
    assert any(document.startswith("# tools.part") for document in texts.values())


def test_held_out_is_the_rule_of_the_base_model() -> None:
    import hashlib

    for module in ("json", "json.decoder", "os.path", "asyncio.events"):
        number = int(hashlib.md5(module.encode()).hexdigest(), 16)
        assert held_out(module) == (number % 25 == 0)


def test_pairs_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "no-stdlib"))
    file = tmp_path / "work" / "pairs.jsonl"
    first = cached_pairs(file, package(tmp_path / "site"))
    assert len(file.read_text().splitlines()) == len(first) == 61
    assert json.loads(file.read_text().splitlines()[0])["module"] == "tools.part0"
    assert cached_pairs(file, tmp_path / "nowhere") == first
