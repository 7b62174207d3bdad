"""lm_eval on language models of Gems: tasks of MMLU's form, base and tuned side by side."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from lm_eval.tasks import manager
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.core.checkpoint import save_checkpoint
from gem_rag.core.config import GemConfig
from gem_rag.engines.transformers_engine import TransformersEngine
from gem_rag.errors import GemError, InputError
from gem_rag.evaluation.lm_tasks import PAPER_LM, run_lm
from gem_rag.evaluation.scores import Record, Score
from gem_rag.model import Gem

SUBJECTS = ("colours", "numbers")
ASKED = {"colours": 12, "numbers": 8}
TEMPLATE = """
dataset_path: json
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
output_type: multiple_choice
doc_to_text: "{{question.strip()}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""  # noqa: E501
GROUP = """
group: subjects
task: [subjects_colours, subjects_numbers]
aggregate_metric_list:
  - metric: acc
    weight_by_size: True
"""


def question(subject: str, number: int) -> dict[str, Any]:
    random = np.random.default_rng([*subject.encode(), number])
    choices = [f"{subject[:3]} {n}" for n in random.permutation(9)[:4]]
    return {"question": f"Which {subject} {number}?", "choices": choices,
            "answer": int(random.integers(4))}  # fmt: skip


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects as MMLU has them: five questions to show, some to ask, four options each."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "_template_yaml").write_text(TEMPLATE)
    (folder / "subjects.yaml").write_text(GROUP)
    for subject in SUBJECTS:
        files = {"dev": range(100, 105), "test": range(ASKED[subject])}
        for split, numbers in files.items():
            rows = [json.dumps(question(subject, number)) for number in numbers]
            (folder / f"{subject}-{split}.jsonl").write_text("\n".join(rows))
        paths = {split: str(folder / f"{subject}-{split}.jsonl") for split in files}
        (folder / f"{subject}.yaml").write_text(
            f"include: _template_yaml\ntask: subjects_{subject}\n"
            f"dataset_kwargs: {json.dumps({'data_files': paths})}\n"
        )
    return folder


@pytest.fixture(scope="module")
def base(new_folder: Any, bos_tokenizer: Any) -> Path:
    """A plain language model whose context holds five examples."""
    folder = new_folder("base")
    return helpers.save_plain(folder, "llama", bos_tokenizer, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def special(new_folder: Any, base: Path) -> Path:
    """The base, tuned in the scope `special`."""
    return helpers.save_gem(new_folder("special"), base, k=2)


@pytest.fixture(scope="module")
def full(new_folder: Any, base: Path) -> Path:
    """The base, tuned in the scope `full`: every weight has moved."""
    folder = new_folder("full")
    model = AutoModelForCausalLM.from_pretrained(base)
    helpers.randomise(model, seed=7)
    rows = {"special_embeddings": torch.randn(1, 32, generator=torch.Generator().manual_seed(0))}
    save_checkpoint(folder, base, GemConfig(scope="full"), rows, model.save_pretrained)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def record(base: Path, special: Path, full: Path, include: Path, out: Path) -> Record:
    models = {"base": base, "special": special, "full": full}
    return run_lm(models, ["subjects"], out, shots=5, include=include)


def scores(record: Record, task: str, metric: str = "acc") -> dict[str, Score]:
    return {s.system: s for s in record.scores if (s.task, s.metric) == (task, metric)}


def prompt(subject: str, number: int, shots: int) -> str:
    """As lm_eval's MMLU asks."""
    shown = [question(subject, 100 + n) for n in range(shots)]
    texts = []
    for row in (*shown, question(subject, number)):
        options = [f"{letter}. {c}" for letter, c in zip("ABCD", row["choices"], strict=True)]
        texts.append("\n".join([row["question"], *options, "Answer:"]))
    answers = [" " + "ABCD"[row["answer"]] for row in shown]
    return "\n\n".join([*(t + a for t, a in zip(texts, answers, strict=False)), texts[-1]])


def right(folder: Path, tokenizer: Any, subject: str, number: int) -> float:
    """Whether the plain model of a folder gives the right option the greatest probability."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer.encode(prompt(subject, number, 5))
    likely = []
    for letter in "ABCD":
        whole = tokenizer.encode(prompt(subject, number, 5) + " " + letter)
        with torch.inference_mode():
            found = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        places = range(len(ids), len(whole))
        likely.append(sum(float(found[place - 1, whole[place]]) for place in places))
    return float(int(np.argmax(likely)) == question(subject, number)["answer"])


# -- scores --------------------------------------------------------------------------------------


def test_every_model_has_a_score_of_every_task_and_group(record: Record) -> None:
    for task in ("subjects", "subjects_colours", "subjects_numbers"):
        found = scores(record, task)
        assert list(found) == ["base", "special", "full"]
        assert {score.kind for score in found.values()} == {"generation"}
        assert {score.group for score in found.values()} == {
            "" if task == "subjects" else "subjects"
        }
    assert record.system == "full"
    assert not record.missing


@pytest.mark.parametrize("name", ["base", "full"])
def test_items_are_the_plain_models_own_answers(
    name: str, record: Record, request: pytest.FixtureRequest, bos_tokenizer: Any
) -> None:
    """Asked with five examples, by the weights of the folder."""
    found = scores(record, "subjects_numbers")[name]
    folder = request.getfixturevalue(name)
    wanted = [right(folder, bos_tokenizer, "numbers", n) for n in range(ASKED["numbers"])]
    assert list(found.items) == wanted
    assert set(scores(record, "subjects")[name].items) == {0.0, 1.0}  # there is something to tell
    assert found.value == pytest.approx(np.mean(wanted))
    assert found.error == pytest.approx(np.std(wanted, ddof=1) / math.sqrt(len(wanted)))


def test_a_group_is_put_together_from_its_tasks(record: Record) -> None:
    for name, found in scores(record, "subjects").items():
        parts = [scores(record, f"subjects_{subject}")[name] for subject in SUBJECTS]
        assert found.items == parts[0].items + parts[1].items
        assert found.value == pytest.approx(np.mean(found.items))
        assert found.error is not None


def test_a_difference_has_the_error_of_paired_samples(record: Record) -> None:
    for task in ("subjects", "subjects_colours", "subjects_numbers"):
        own, differences = scores(record, task), scores(record, task, "acc difference")
        assert set(differences) == {"special", "full"}
        pairs = np.subtract(own["full"].items, own["base"].items)
        assert differences["full"].items == tuple(pairs)
        assert differences["full"].value == pytest.approx(pairs.mean())
        error = pairs.std(ddof=1) / math.sqrt(len(pairs))
        assert differences["full"].error == pytest.approx(error)
    assert scores(record, "subjects", "acc difference")["full"].error > 0


def test_special_answers_as_the_base_and_full_does_not(record: Record) -> None:
    differences = scores(record, "subjects", "acc difference")
    assert (differences["special"].value, differences["special"].error) == (0, 0)
    assert any(differences["full"].items)


def test_special_equals_the_base_in_every_logit(
    base: Path, special: Path, full: Path, bos_tokenizer: Any
) -> None:
    rows = [bos_tokenizer.encode(prompt(s, n, 5)) for s in SUBJECTS for n in range(ASKED[s])]
    logits = {}
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    for folder in (special, full):
        with gem_rag.load(folder) as gem:
            gem.embed_queries(["what has been embedded before does not matter"])
            engine = gem._engine
            assert isinstance(engine, TransformersEngine)
            with engine.language_model() as model, torch.inference_mode():
                logits[folder] = [model(torch.tensor([row])).logits for row in rows]
    with torch.inference_mode():
        wanted = [plain(torch.tensor([row])).logits for row in rows]
    assert all(map(torch.equal, logits[special], wanted))
    assert not any(map(torch.equal, logits[full], wanted))


def test_the_loaded_model_is_the_one_that_is_measured(
    special: Path, base: Path, include: Path, tmp_path: Path, record: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """No second copy: nothing is loaded any more."""
    with gem_rag.load(special) as gem:
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
        template = gem.tokenizer.to_str()
        found = run_lm({"special": gem}, ["subjects_numbers"], tmp_path, shots=5, include=include)
        assert gem.tokenizer.to_str() == template
        assert gem.generate(["still here"], max_tokens=2)  # it has been given back
        with pytest.raises(TypeError):
            run_lm({"base": base}, ["subjects"], tmp_path, include=include)
    (own,) = found.scores
    assert own.items == scores(record, "subjects_numbers")["special"].items


def test_shots_and_limit_are_heeded(
    base: Path, include: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spied(monkeypatch)
    found = run_lm({"base": base}, ["subjects_colours"], tmp_path, shots=2, limit=3,
                   include=include)  # fmt: skip
    assert len(found.scores[0].items) == 3
    assert set(asked) == {prompt("colours", n, 2) for n in range(3)}


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prompts that models read from now on."""
    from gem_rag.evaluation import lm_tasks

    asked: list[str] = []
    tokens = lm_tasks._Model._loglikelihood_tokens

    def spy(self: Any, requests: Any, *args: Any, **options: Any) -> Any:
        asked.extend(context for (context, _), *_ in requests)
        return tokens(self, requests, *args, **options)

    monkeypatch.setattr(lm_tasks._Model, "_loglikelihood_tokens", spy)
    return asked


# -- resuming ------------------------------------------------------------------------------------


def test_what_is_finished_is_not_run_again(
    base: Path, special: Path, full: Path, include: Path, out: Path, record: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked = spied(monkeypatch)
    models: dict[str, Any] = {"base": base, "special": special, "full": full}
    again = run_lm(models, ["subjects"], out, shots=5, include=include)
    assert again.scores == record.scores
    assert not asked
    run_lm({"base": base}, ["subjects_numbers"], out, shots=4, include=include)
    assert len(asked) == 4 * ASKED["numbers"]
    asked.clear()
    run_lm({"base": full}, ["subjects_numbers"], out, shots=4, include=include)  # another model
    assert len(asked) == 4 * ASKED["numbers"]


def test_an_interrupted_run_goes_on(
    base: Path, include: Path, tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spied(monkeypatch)
    with monkeypatch.context() as interrupted:
        evaluate = _interrupted_at(2)
        interrupted.setattr("lm_eval.evaluate", evaluate, raising=False)
        with pytest.raises(KeyboardInterrupt):
            run_lm({"base": base}, ["subjects"], tmp_path, shots=5, include=include)
    assert len(asked) == 4 * ASKED["colours"]
    asked.clear()
    found = run_lm({"base": base}, ["subjects"], tmp_path, shots=5, include=include)
    assert len(asked) == 4 * ASKED["numbers"]
    assert found.scores[0] == scores(record, "subjects")["base"]


def _interrupted_at(call: int) -> Callable[..., Any]:
    import lm_eval

    evaluate, calls = lm_eval.evaluate, []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return evaluate(*args, **options)

    return counted


def test_other_data_are_asked_anew(
    base: Path, include: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spied(monkeypatch)
    run = {"base": base}, ["subjects_numbers"], tmp_path
    run_lm(*run, shots=0, include=include)
    file = include / "numbers-test.jsonl"
    before = file.read_text()
    row = json.loads(before.splitlines()[0])
    changed = {**row, "answer": (row["answer"] + 1) % 4}
    try:
        file.write_text("\n".join([json.dumps(changed), *before.splitlines()[1:]]))
        asked.clear()
        run_lm(*run, shots=0, include=include)
        assert asked
    finally:
        file.write_text(before)


# -- what cannot be used -------------------------------------------------------------------------


def test_the_papers_setting() -> None:
    assert (PAPER_LM.tasks, PAPER_LM.shots) == (("mmlu",), 5)


@pytest.fixture
def few_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm_eval with no more of its own tasks than MMLU; to read all takes half a minute."""
    own = Path(manager.__file__).parent
    shutil.copytree(own / "mmlu" / "default", tmp_path / "defaults" / "mmlu")
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "defaults" / "manager.py"))


@pytest.mark.usefixtures("few_defaults")
def test_unknown_tasks_are_refused(base: Path, include: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no task 'subject_colours' .*'subjects_colours'"):
        run_lm({"base": base}, ["subject_colours"], tmp_path, include=include)
    with pytest.raises(InputError, match="no task 'mmlu_anatomi' .*'mmlu_anatomy'"):
        run_lm({"base": base}, ["mmlu", "mmlu_anatomi"], tmp_path)


@pytest.mark.usefixtures("few_defaults")
def test_mmlu_without_its_data_says_which(base: Path, tmp_path: Path) -> None:
    with pytest.raises(GemError, match="mmlu: .*hf download cais/mmlu --repo-type dataset"):
        run_lm({"base": base}, PAPER_LM.tasks, tmp_path, shots=PAPER_LM.shots, cache=tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [({"shots": -1}, "shots"), ({"limit": 0}, "limit"), ({"include": Path("/no/x")}, "/no/x")],
)
def test_bad_settings_are_refused(
    more: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run_lm({"base": base}, ["subjects"], tmp_path, **more)


def test_there_must_be_a_model_on_the_transformers_engine(
    gem: Gem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="there is no model"):
        run_lm({}, ["subjects"], tmp_path)
    monkeypatch.setattr(gem, "_engine_or_none", SimpleNamespace(name="vllm"))
    with pytest.raises(InputError, match="own is on the vLLM engine.*engine='transformers'"):
        run_lm({"own": gem}, ["subjects"], tmp_path)


def hub_task(folder: Path, name: str, repo: str) -> None:
    (folder / "_hub_yaml").write_text(TEMPLATE.replace("dataset_path: json", ""))
    (folder / f"{name}.yaml").write_text(
        f"include: _hub_yaml\ntask: {name}\ndataset_path: {repo}\ndataset_name: numbers\n"
    )


def test_data_that_are_not_at_hand_are_missing(base: Path, include: Path, tmp_path: Path) -> None:
    hub_task(tmp_path, "far", "own/far")
    for file in ("_template_yaml", "numbers.yaml"):
        (tmp_path / file).write_text((include / file).read_text())
    run = {"include": tmp_path, "cache": tmp_path / "cache", "shots": 5}
    found = run_lm({"base": base}, ["far", "subjects_numbers"], tmp_path, **run)
    (missing,) = found.missing
    assert (missing.kind, missing.task) == ("generation", "far")
    assert "hf download own/far --repo-type dataset --cache-dir" in missing.reason
    assert str(tmp_path / "cache" / "hub" / "datasets--own--far") in missing.reason
    assert [score.task for score in found.scores] == ["subjects_numbers"]
    with pytest.raises(GemError, match="no task could be measured; far: its data set own/far"):
        run_lm({"base": base}, ["far"], tmp_path, **run)


def test_data_are_read_from_a_folder(base: Path, tmp_path: Path, record: Record) -> None:
    """As `hf download` leaves them; MMLU's subjects are configurations of one data set."""
    hub_task(tmp_path, "near", "own/near")
    home = tmp_path / "cache" / "hub" / "datasets--own--near"
    place = home / "snapshots" / ("a" * 40)
    place.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    card = ["---", "configs:"]
    for subject in SUBJECTS:
        card += [f"- config_name: {subject}", "  data_files:"]
        for split, numbers in (("dev", range(100, 105)), ("test", range(ASKED[subject]))):
            file = f"{subject}-{split}.jsonl"
            rows = [json.dumps(question(subject, number)) for number in numbers]
            (place / file).write_text("\n".join(rows))
            card += [f"  - split: {split}", f"    path: {file}"]
    (place / "README.md").write_text("\n".join([*card, "---", ""]))
    found = run_lm({"base": base}, ["near"], tmp_path, shots=5, include=tmp_path,
                   cache=tmp_path / "cache")  # fmt: skip
    assert found.scores[0].items == scores(record, "subjects_numbers")["base"].items


def test_prompts_that_are_cut_are_told(
    new_folder: Any, bos_tokenizer: Any, include: Path, tmp_path: Path
) -> None:
    short = helpers.save_plain(new_folder("short"), "llama", bos_tokenizer)
    with pytest.warns(UserWarning, match="48 requests were longer than the model's context"):
        found = run_lm({"short": short}, ["subjects_colours"], tmp_path, shots=5, include=include)
    assert found.settings["lm_eval"]["cut requests"] == 4 * ASKED["colours"]


@pytest.mark.filterwarnings("ignore:.*has not been GEM-trained")
def test_nan_stops_the_run(
    base: Path, include: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gem_rag.load(base) as gem:
        weight = gem._engine._model.lm_head.weight
        before = weight.detach().clone()
        try:
            with torch.no_grad():
                weight.fill_(torch.nan)
            with pytest.raises(GemError, match="gives NaN for the text that ends .*Answer: [ABCD]"):
                run_lm({"base": gem}, ["subjects_numbers"], tmp_path, include=include)
        finally:
            with torch.no_grad():
                weight.copy_(before)
