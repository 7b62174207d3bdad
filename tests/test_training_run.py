"""Whole runs: what is saved, resumed, refused and reported."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from recipes import pairs_recipe, prepared, recipe, write_pairs, write_rows, write_texts
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import gem_rag
from gem_rag.cli import main
from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.core.layout import Layout, Row
from gem_rag.errors import GemError, InputError
from gem_rag.training import scopes
from gem_rag.training.recipe import read_recipe
from gem_rag.training.run import InterruptedRunError, train
from gem_rag.training.trainer import latest_checkpoint

CHILD = Path(__file__).with_name("training_child.py")
SCOPES = ("full", "lora", "special")


def usual(cases: Iterable[tuple[Any, ...]], *chosen: tuple[Any, ...]) -> list[Any]:
    """All cases; those not chosen run with `pytest -m exhaustive` only."""
    marks = pytest.mark.exhaustive
    return [case if case in chosen else pytest.param(*case, marks=marks) for case in cases]


@pytest.fixture(scope="module")
def base(plain_folder: Any) -> Path:
    return plain_folder("qwen3")


@pytest.fixture(scope="module")
def unbroken_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of the test recipe's run, from its beginning to its end."""
    folder = tmp_path_factory.mktemp("unbroken")
    train(recipe(folder), base, folder / "out", report=False)
    return folder / "out.run"


@pytest.fixture(scope="module")
def unbroken(unbroken_run: Path) -> dict[str, torch.Tensor]:
    """The weights that the test recipe's run ends with."""
    return state_of(unbroken_run)


def state_of(run: Path) -> dict[str, torch.Tensor]:
    last = latest_checkpoint(run)
    assert last is not None
    return load_file(last / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def forked() -> Iterator[Callable[..., tuple[list[int], str]]]:
    """Run training_child.py's jobs: (exit codes of the processes, what they wrote to stderr)."""
    threadless = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    with subprocess.Popen(
        [sys.executable, str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **threadless},
    ) as server:
        assert server.stdin
        assert server.stdout

        def run(
            how: str, base: Path, folder: Path, detail: str, processes: int = 1
        ) -> tuple[list[int], str]:
            errors = folder / "errors.txt"
            arguments = [how, str(base), str(folder), detail]
            job = {"arguments": arguments, "processes": processes, "errors": str(errors)}
            print(json.dumps(job), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline()), errors.read_text()

        yield run


class At(TrainerCallback):
    """Does something after a step, or after a save."""

    def __init__(self, step: int, act: Any, event: str = "on_step_end") -> None:
        def call(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                act()

        setattr(self, event, call)


# -- what comes out ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_a_run_learns_and_its_folder_loads_everywhere(
    base: Path, tmp_path: Path, scope: str
) -> None:
    steps = {"steps": 30, "batch": 16, "learning_rate": 2e-2, "contrastive_from": 0}
    plan = pairs_recipe(tmp_path, scope=scope, k=2, schedule=steps, prompts={
        "query": "query: ", "document": "passage: "})  # fmt: skip
    report = train(plan, base, tmp_path / "out", full=True)
    assert report is not None
    figures = report.retrieval["pairs"]
    assert figures["after"].mrr > figures["before"].mrr + 0.1

    # Our own loader gives the vectors of the weights that were trained.
    model, _ = prepared(plan, base)
    model.load_state_dict(state_of(tmp_path / "out.run"), strict=False)
    texts = ["the fox", "a line of text", "some answer to some model"]
    with gem_rag.load(tmp_path / "out") as gem:
        assert (gem.config.scope, gem.config.k, gem.max_length) == (scope, 2, 40)
        rows = [Row.whole(gem.tokenize("query: " + text)) for text in texts]
        with torch.no_grad():
            trained = model.encoder(Layout.build(rows, 2)).numpy()
        assert np.abs(gem.embed_queries(texts) - trained).max() < 1e-5

    # transformers' loader gives a language model: the base's, or the one that was trained.
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    plain = [AutoModelForCausalLM.from_pretrained(f).eval() for f in (base, tmp_path / "out")]
    with torch.no_grad():
        before, after = (m(ids).logits for m in plain)
        assert torch.equal(before, after) == (scope == "special")
        if scope == "lora":
            merged = model._trainable.lora.merge_and_unload()
            assert torch.allclose(merged.eval()(ids).logits, after, atol=1e-5)
    assert report.generation is not None
    moved = report.generation.logits_difference
    assert (moved == 0) == (scope == "special")
    assert (report.generation.before == report.generation.after) == (scope == "special")


def test_lora_is_kept_in_pefts_format_too(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    train(recipe(tmp_path, scope="lora"), base, tmp_path / "out", report=False, full=True)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "out" / "lora"
    ).eval()
    with torch.no_grad():
        assert torch.allclose(whole(ids).logits, adapted(ids).logits, atol=1e-5)


def test_a_run_can_go_on_from_trained_special_tokens(base: Path, tmp_path: Path) -> None:
    plan = pairs_recipe(tmp_path, scope="special")
    train(plan, base, tmp_path / "first", report=False)
    again = dataclasses.replace(plan, special_tokens="continue")
    model, steps = prepared(again, tmp_path / "first")
    fresh, _ = prepared(plan, base)
    losses = [float(m(steps[0])["contrastive"].detach()) for m in (model, fresh)]
    assert losses[0] < losses[1] - 0.1
    with pytest.raises(InputError, match="has not been GEM-trained; set special_tokens: new"):
        train(again, base, tmp_path / "second")
    other = dataclasses.replace(again, k=3)
    with pytest.raises(InputError, match="special tokens cannot be continued"):
        train(other, tmp_path / "first", tmp_path / "second")


def test_the_report_says_what_was_gained_and_what_it_cost(base: Path, tmp_path: Path) -> None:
    report = train(recipe(tmp_path), base, tmp_path / "out")
    assert report is not None
    folder = tmp_path / "out" / "report"
    written = json.loads((folder / "report.json").read_text())
    assert written == json.loads(json.dumps(dataclasses.asdict(report)))
    assert [entry["step"] for entry in report.losses] == list(range(1, 9))
    assert report.steps == 8
    assert report.tokens > 0
    assert report.seconds > 0
    assert 0 <= report.padding <= 0.1
    assert report.peak_bytes > 2**20
    ways = ["before", "mean pooling before", "BM25", "after", "after and BM25"]
    assert list(report.retrieval["texts"]) == ways
    change = report.retrieval["texts"]["after"].mrr - report.retrieval["texts"]["before"].mrr
    assert report.differences["texts"].value == pytest.approx(change)
    examples = report.examples["texts"]
    assert len(examples) == min(10, report.retrieval["texts"]["after"].queries)
    assert all(one.rank_after >= 1 and one.found_after for one in examples)
    data = report.record["data"]["texts"]
    assert data["rows"] == 108
    assert 0 < data["cut"] < 108
    assert len(data["hash"]) == 16
    assert report.record["recipe"]["schedule"]["steps"] == 8
    text = (folder / "report.md").read_text()
    for part in ("Retrieval on held-out texts", "perplexity per token", "tokens", "peak memory",
                 "| after and BM25 |", "p = ", "queries of held-out texts"):  # fmt: skip
        assert part in text
    for picture in ("losses.png", "retrieval.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_a_tokenizer_needs_no_padding_token(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert AutoTokenizer.from_pretrained(tmp_path / "base").pad_token is None
    train(recipe(tmp_path), tmp_path / "base", tmp_path / "out", report=False)
    train(recipe(tmp_path), base, tmp_path / "padded", report=False)
    assert equal(state_of(tmp_path / "out.run"), state_of(tmp_path / "padded.run"))


def test_texts_are_never_longer_than_the_model_reads(base: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="max_length 1000 counts as 255"):
        train(recipe(tmp_path, max_length=1000), base, tmp_path / "out", report=False)
    with gem_rag.load(tmp_path / "out") as gem:
        assert gem.max_length == 255


@pytest.mark.slow
def test_trainers_own_settings_reach_it(
    base: Path, tmp_path: Path, unbroken_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers checkpointed, bfloat16, and what TensorBoard is told."""
    monkeypatch.setattr(scopes, "has_bfloat16", lambda: True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"logging_steps": 1, "report_to": "tensorboard", "gradient_checkpointing": True}
    rounded = {"logging_steps": 1, "bf16": True}
    for name, trainer in {"out": settings, "rounded": rounded}.items():
        train(recipe(tmp_path, trainer=trainer), base, tmp_path / name, report=False)
    losses = losses_of(unbroken_run)
    others, half = (losses_of(tmp_path / f"{name}.run") for name in ("out", "rounded"))
    assert len(losses) == 8
    assert others == pytest.approx(losses, abs=1e-3)
    assert half != losses
    assert half == pytest.approx(losses, abs=0.3)
    (events,) = (tmp_path / "out.run").rglob("events.out.tfevents.*")
    told = EventAccumulator(str(events)).Reload()
    assert {"train/next_token", "train/contrastive", "train/learning_rate"} <= set(
        told.Tags()["scalars"]
    )


def test_bfloat16_is_left_out_where_it_would_be_emulated(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scopes, "has_bfloat16", lambda: False)
    schedule = {"steps": 2, "batch": 8, "contrastive_from": 1}
    for name, trainer in (("out", {"bf16": True}), ("plain", {})):
        plan = recipe(tmp_path, schedule=schedule, trainer=trainer)
        if name == "plain":
            train(plan, base, tmp_path / name, report=False)
            continue
        with pytest.warns(UserWarning, match="no instructions for bfloat16, so training runs in f"):
            train(plan, base, tmp_path / name, report=False)
    assert losses_of(tmp_path / "out.run") == losses_of(tmp_path / "plain.run")


# -- stopping and going on -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "scope"),
    usual(
        product([signal.SIGINT, signal.SIGTERM], SCOPES),
        (signal.SIGINT, "special"),
        (signal.SIGTERM, "full"),
        (signal.SIGTERM, "lora"),
    ),
)
def test_an_interrupted_run_saves_and_goes_on_to_the_same_end(
    base: Path, tmp_path: Path, scope: str, number: int
) -> None:
    plan = recipe(tmp_path, scope=scope, adapter__dropout=0.1)
    train(plan, base, tmp_path / "unbroken", report=False)
    before = signal.getsignal(number)
    stop = At(5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(InterruptedRunError, match=r"after step 5 of 8.*--resume"):
        train(plan, base, tmp_path / "out", callbacks=[stop])
    assert signal.getsignal(number) == before
    assert not (tmp_path / "out").exists()
    train(plan, base, tmp_path / "out", resume=True, report=False)
    assert equal(state_of(tmp_path / "unbroken.run"), state_of(tmp_path / "out.run"))
    assert losses_of(tmp_path / "unbroken.run") == losses_of(tmp_path / "out.run")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, beside threads
def test_workers_that_prepare_batches_change_nothing_and_survive_ctrl_c(
    base: Path, tmp_path: Path
) -> None:
    """Ctrl-C interrupts every process of the terminal: the step under way still ends, saved."""
    train(recipe(tmp_path, scope="special"), base, tmp_path / "unbroken", report=False)
    plan = recipe(tmp_path, scope="special", trainer__dataloader_num_workers=1)

    def interrupt_all() -> None:
        workers = psutil.Process().children()
        assert workers
        for process in [*workers, psutil.Process()]:
            process.send_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError, match=r"after step 5 of 8.*--resume"):
        train(plan, base, tmp_path / "out", callbacks=[At(5, interrupt_all)])
    train(plan, base, tmp_path / "out", resume=True, report=False)
    assert equal(state_of(tmp_path / "unbroken.run"), state_of(tmp_path / "out.run"))


def losses_of(run: Path) -> list[float]:
    last = latest_checkpoint(run)
    assert last is not None
    state = json.loads((last / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["step 5", "saving 6"])
def test_a_killed_run_goes_on_to_the_same_end(
    base: Path, tmp_path: Path, unbroken: dict[str, torch.Tensor], forked: Any, moment: str
) -> None:
    """SIGKILL between saves, and with half a state written: the last whole one counts."""
    codes, errors = forked("kill", base, tmp_path, moment)
    assert codes == [-signal.SIGKILL], errors
    last = latest_checkpoint(tmp_path / "out.run")
    assert last is not None
    assert last.name == "checkpoint-3"
    assert (tmp_path / "out.run" / "checkpoint-6").exists() == (moment == "saving 6")
    train(recipe(tmp_path), base, tmp_path / "out", resume=True, report=False)
    assert equal(unbroken, state_of(tmp_path / "out.run"))
    with gem_rag.load(tmp_path / "out") as gem:
        assert gem.config.scope == "full"


@pytest.mark.slow
def test_a_killed_run_that_had_saved_nothing_begins_anew(
    base: Path, tmp_path: Path, unbroken: dict[str, torch.Tensor], forked: Any
) -> None:
    codes, errors = forked("kill", base, tmp_path, "step 2")
    assert codes == [-signal.SIGKILL], errors
    train(recipe(tmp_path), base, tmp_path / "out", resume=True, report=False)
    assert equal(unbroken, state_of(tmp_path / "out.run"))


def test_a_finished_run_can_be_saved_again(base: Path, tmp_path: Path) -> None:
    """As after a disk that was full at the very end."""
    train(recipe(tmp_path), base, tmp_path / "out", report=False)
    before = open_checkpoint(tmp_path / "out").fingerprint()
    shutil.rmtree(tmp_path / "out")
    report = train(recipe(tmp_path), base, tmp_path / "out", resume=True)
    assert open_checkpoint(tmp_path / "out").fingerprint() == before
    assert report is not None
    assert len(report.losses) == 8


@pytest.fixture
def small_files() -> Iterator[Any]:
    """A function after which no file can grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_leaves_the_last_state(
    base: Path, tmp_path: Path, unbroken: dict[str, torch.Tensor], small_files: Any
) -> None:
    full = At(4, lambda: small_files(20_000))
    with pytest.raises(GemError, match="step 6 could not be saved.*make room") as raised:
        train(recipe(tmp_path), base, tmp_path / "out", callbacks=[full])
    small_files(resource.RLIM_INFINITY)
    assert "checkpoint-3" in str(raised.value)
    assert [p.name for p in (tmp_path / "out.run").glob("checkpoint-*")] == ["checkpoint-3"]
    train(recipe(tmp_path), base, tmp_path / "out", resume=True, report=False)
    assert equal(unbroken, state_of(tmp_path / "out.run"))


def test_a_loss_that_is_no_number_stops_and_names_the_rows(base: Path, tmp_path: Path) -> None:
    with pytest.raises(GemError, match=r"the loss is nan at step \d, on rows texts:\d+, .*rate"):
        train(recipe(tmp_path, schedule__learning_rate=1e30), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"schedule__learning_rate": 2e-2}, "recipe.schedule.learning_rate (0.01, now 0.02)"),
        ({"next_token__raw": 0.9}, "recipe.next_token.raw (0.5, now 0.9)"),
        ({"trainer": {"save_steps": 3, "logging_steps": 1, "weight_decay": 0.1}}, "weight_decay"),
    ],
)
def test_a_run_is_resumed_with_its_own_settings_only(
    base: Path, tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    stop = At(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(InterruptedRunError):
        train(recipe(tmp_path), base, tmp_path / "out", callbacks=[stop])
    with pytest.raises(InputError, match=f"was begun with another .*{re.escape(name)}"):
        train(recipe(tmp_path, **change), base, tmp_path / "out", resume=True)


def test_a_run_is_resumed_with_its_own_data_and_model_only(
    base: Path, plain_folder: Any, tmp_path: Path
) -> None:
    stop = At(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    plan = recipe(tmp_path)
    with pytest.raises(InterruptedRunError):
        train(plan, base, tmp_path / "out", callbacks=[stop])
    with pytest.raises(InputError, match="begun with another base"):
        train(plan, plain_folder("llama"), tmp_path / "out", resume=True)
    write_texts(tmp_path / "texts.jsonl", 121)
    with pytest.raises(InputError, match=r"begun with another data\.texts"):
        train(plan, base, tmp_path / "out", resume=True)


# A run's recipe and its hash, as the release before the keys were renamed recorded them.
OLD_RECORD: dict[str, Any] = {
    "recipe": {
        "data": {
            "texts": {
                "path": "texts.jsonl",
                "kind": "text",
                "columns": {},
                "negatives": 0,
                "weight": 1.0,
                "overlong": "truncate",
                "subset": None,
                "split": "train",
            }
        },
        "scope": "full",
        "k": 1,
        "pooling": "mean",
        "prompts": {"query": "", "document": ""},
        "max_length": 40,
        "query_length": None,
        "special_tokens": "new",
        "seed": 0,
        "next_token": {"raw": 0.5, "split": 0.5, "distill": 0.0},
        "contrastive": {"drop": 0.2, "dims": [], "teacher": None, "teacher_weight": 1.0},
        "adapter": {"rank": 4, "alpha": None, "targets": [], "dropout": 0.0},
        "schedule": {
            "steps": 8,
            "batch": 8,
            "contrastive_batch": None,
            "rate": 0.01,
            "contrastive_rate": None,
            "adapt": 0,
            "contrastive_from": 4,
            "ramp": 2,
            "warmup": 0,
            "floor": 0.0,
        },
        "memory": {"tokens": 300, "padding": 0.1, "gradient_caching": False},
        "evaluation": {"held_out": 0.1, "at_most": 500, "data": {}},
        "save_dtype": "auto",
        "trainer": {"logging_steps": 1, "save_steps": 3},
    },
    "recipe_hash": "dd98016c80f3574a",
}


@pytest.mark.filterwarnings("error::DeprecationWarning:gem_rag")
def test_a_run_begun_with_the_old_keys_is_resumed(
    base: Path, tmp_path: Path, unbroken: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it changed; a run of other settings is still another run."""
    monkeypatch.chdir(tmp_path)
    plan = recipe(Path())
    stop = At(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(InterruptedRunError):
        train(plan, base, tmp_path / "out", callbacks=[stop])
    file = tmp_path / "out.run" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **OLD_RECORD}))
    changed = recipe(Path(), schedule__warmup_steps=1)
    with pytest.raises(InputError, match=r"another recipe.schedule.warmup_steps \(0, now 1\)"):
        train(changed, base, tmp_path / "out", resume=True)
    train(plan, base, tmp_path / "out", resume=True, report=False)
    assert equal(unbroken, state_of(tmp_path / "out.run"))


def test_runs_never_write_over_each_other(base: Path, tmp_path: Path) -> None:
    plan = recipe(tmp_path)
    with pytest.raises(InputError, match="nothing to resume"):
        train(plan, base, tmp_path / "out", resume=True)
    stop = At(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(InterruptedRunError):
        train(plan, base, tmp_path / "out", callbacks=[stop])
    with pytest.raises(InputError, match="holds the state of a run: go on with --resume"):
        train(plan, base, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="mine exists already"):
        train(plan, base, tmp_path / "mine")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_step": 3}, "trainer.save_step is no setting.*did you mean 'save_steps'"),
        ({"save_total_limit": 1}, "save_total_limit must be at least 2"),
        ({"optim": "sgdd"}, "trainer settings cannot be used: .*sgdd"),
    ],
)
def test_trainer_settings_are_checked(
    base: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(recipe(tmp_path, trainer=settings), base, tmp_path / "out")


# -- the command line ----------------------------------------------------------------------------


def run_command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments])
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_every_bundled_recipe_trains(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = str(write_pairs(tmp_path / "pairs.jsonl", 400))
    named = [json.loads(line) for line in Path(pairs).read_text().splitlines()]
    faq = str(write_rows(tmp_path / "faq.jsonl", (
        {"question": r["query"], "answer": r["document"], "hard": r["negatives"]} for r in named
    )))  # fmt: skip
    titles = str(write_rows(tmp_path / "titles.jsonl", (
        {"title": r["query"], "body": r["document"]} for r in named
    )))  # fmt: skip
    hard = str(write_rows(tmp_path / "hard.jsonl", (
        {**row, "negatives": row["negatives"] * 2} for row in named
    )))  # fmt: skip
    folder = tmp_path / "documents"
    folder.mkdir()
    for number, row in enumerate(named):
        (folder / f"{number}.md").write_text(f"# {row['query']}\n\n{row['document'] * 4}")
    data = {
        "paper": ["texts=" + str(write_texts(tmp_path / "texts.jsonl"))],
        "special": [pairs],
        "domain": [str(folder)],
        "pairs": [f"faq={faq}", f"titles={titles}"],
        "aligned": [hard],
    }
    for name, sources in data.items():
        given = [part for source in sources for part in ("--data", source)]
        out = tmp_path / name
        code = run_command(
            "--config", name, "--model", str(base), "--out", str(out), *given,
            "--max-steps", "4", "--json",
            "--set", f"max_length={150 if name == 'domain' else 60}",  # of documents and titles
        )  # fmt: skip
        printed = capsys.readouterr()
        assert code == 0, printed.err
        assert json.loads(printed.out)["steps"] == 4
        with gem_rag.load(out) as gem:
            assert gem.config.scope == read_recipe(name).scope


def test_the_command_line_says_what_is_wrong_in_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = str(write_texts(tmp_path / "texts.jsonl"))
    bad = str(write_rows(tmp_path / "bad.jsonl", [{"text": "fine"}, {"text": " "}]))
    out = str(tmp_path / "out")
    for arguments, message in (
        (["-c", "papper", "-d", texts], "did you mean 'paper'"),
        (["-c", "paper", "-d", texts, "--set", "schedule.stepps=3"], "did you mean 'steps'"),
        (["-c", "paper"], "source 'texts' has no path: give --data texts=PATH"),
        (["-c", "paper", "-d", bad], "row 2 of"),
        (["-c", "special", "-d", texts], "has no column 'query'"),
    ):
        assert run_command("-m", str(base), "-o", out, *arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("gem-rag: "), error
        assert message in error
    assert not Path(out).exists()


def test_an_interrupted_command_ends_with_130(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any, **options: Any) -> None:
        raise InterruptedRunError("interrupted after step 5 of 8: go on with --resume")

    monkeypatch.setattr("gem_rag.training.run.train", stopped)
    texts = str(write_texts(tmp_path / "texts.jsonl"))
    assert run_command("-c", "paper", "-m", str(base), "-o", "x", "-d", texts) == 130
    assert "go on with --resume" in capsys.readouterr().err


# -- many processes ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scope", "how"),
    usual(product(SCOPES, ["ddp", "fsdp"]), ("full", "fsdp"), ("lora", "ddp"), ("special", "fsdp")),
)
def test_two_processes_train_as_one(
    base: Path, tmp_path: Path, forked: Any, scope: str, how: str
) -> None:
    """Same losses, same weights; the negatives of both processes count for both."""
    train(recipe(tmp_path, scope=scope), base, tmp_path / "one", report=False)
    codes, errors = forked(how, base, tmp_path, scope, processes=2)
    assert codes == [0, 0], errors[-3000:]
    one, two = (losses_of(tmp_path / f"{name}.run") for name in ("one", "out"))
    assert two == pytest.approx(one, abs=1e-4)
    with gem_rag.load(tmp_path / "one") as first, gem_rag.load(tmp_path / "out") as second:
        texts = ["the fox", "a line of text", "some answer to some model"]
        difference = np.abs(first.embed_queries(texts) - second.embed_queries(texts))
    assert difference.max() < 1e-3


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on(
    base: Path, tmp_path: Path, unbroken_run: Path
) -> None:
    """A signal to one of them ends both after the same step; started by torchrun, as users do."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launched = subprocess.run(
        [*launch, str(CHILD), "interrupted", str(base), str(tmp_path), "full"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert launched.returncode != 0
    errors = launched.stderr
    assert errors.count("interrupted after step 5 of 8") >= 2, errors[-3000:]
    train(recipe(tmp_path), base, tmp_path / "out", resume=True, report=False)
    one, two = losses_of(unbroken_run), losses_of(tmp_path / "out.run")
    assert two == pytest.approx(one, abs=1e-4)
