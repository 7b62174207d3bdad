"""Recipes read from YAML and checked, and the course that a run takes by one."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gem_rag.errors import InputError
from gem_rag.training.recipe import (
    COLUMNS,
    RECIPES,
    Contrastive,
    NextToken,
    Recipe,
    from_state,
    parse_change,
    read_recipe,
)
from gem_rag.training.schedule import alpha, learning_rate_at, raw_share

BUNDLED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe(**state: Any) -> Recipe:
    """A recipe with both objectives and one source of text, but for what is given."""
    return from_state({"data": {"texts": {}}, "next_token": {}, "contrastive": {}, **state}, "here")


def scheduled(
    *, objectives: tuple[str, ...] = ("next_token", "contrastive"), **plan: Any
) -> Recipe:
    """A recipe in the scope full, by its schedule."""
    objective: dict[str, Any] = {"next_token": None, "contrastive": None}
    return recipe(**{**objective, **{name: {} for name in objectives}}, scope="full", schedule=plan)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """A YAML file of the given text."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "own.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# -- bundled recipes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_recipes_are_read(name: str) -> None:
    """They leave nothing open but their data's paths."""
    found = read_recipe(name)
    assert found.data
    assert all(source.path is None for source in found.data.values())
    assert read_recipe(RECIPES / f"{name}.yaml") == found
    assert from_state(found.state(), name) == found


@pytest.mark.parametrize("name", BUNDLED)
def test_commands_in_bundled_recipes_are_right(name: str) -> None:
    """The command at the head of a recipe names it, and each of its sources."""
    head = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    [command] = re.findall(r"gem-rag train .*", head)
    assert re.findall(r"--config (\S+)", command) == [name]
    given_data = re.findall(r"--data (\S+)", command)
    data = read_recipe(name).with_data(given_data).data
    assert [f"{key}={source.path}" for key, source in data.items()] == given_data


def test_the_papers_recipe_has_the_papers_numbers() -> None:
    """Section 4 of arXiv 2506.04344."""
    paper = read_recipe("paper")
    assert (paper.scope, paper.k, paper.pooling, paper.max_length) == ("full", 1, "mean", 512)
    assert paper.prompts == {"query": "", "document": ""}
    assert [source.kind for source in paper.data.values()] == ["text"]
    assert paper.next_token is not None
    assert (paper.next_token.raw, paper.next_token.distill) == (0.8, 0)
    assert paper.contrastive is not None
    assert 0 < paper.contrastive.drop < 1
    assert (paper.contrastive.dims, paper.contrastive.teacher) == ((), None)
    plan = paper.schedule
    assert (plan.batch, plan.contrastive_batch) == (32, None)
    assert plan.steps * plan.batch == 32_000
    assert (plan.learning_rate, plan.contrastive_learning_rate) == (1e-4, 1e-5)
    assert (plan.contrastive_from, plan.ramp) == (100, 0)
    assert (plan.adapt, plan.warmup_steps, plan.min_lr_ratio) == (0, 0, 0)
    assert [alpha(paper, step) for step in (0, 99, 100, 999)] == [0, 0, 1, 1]
    assert [raw_share(paper, step) for step in (0, 999)] == [0.8, 0.8]
    # The beginning, a quarter of the run, half and all of it: cosines that are known.
    wanted = {0: 1e-4, 250: 1e-5 * (1 + math.sqrt(0.5)) / 2, 500: 1e-5 / 2, 1000: 0}
    assert {step: learning_rate_at(paper, step) for step in wanted} == pytest.approx(
        wanted, abs=1e-12
    )


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "key", "meant"),
    [
        ({"scop": "full"}, "scop", "scope"),
        ({"data": {"texts": {"knd": "text"}}}, "data.texts.knd", "kind"),
        ({"next_token": {"rw": 0.5}}, "next_token.rw", "raw"),
        ({"contrastive": {"dim": [8]}}, "contrastive.dim", "dims"),
        ({"adapter": {"rnk": 8}}, "adapter.rnk", "rank"),
        ({"schedule": {"step": 8}}, "schedule.step", "steps"),
        ({"memory": {"tokns": 8}}, "memory.tokns", "tokens"),
        ({"evaluation": {"heldout": 0.1}}, "evaluation.heldout", "held_out"),
        ({"evaluation": {"data": {"x": {"pth": "a"}}}}, "evaluation.data.x.pth", "path"),
        ({"zzz": 1}, "zzz", None),
    ],
)
def test_unknown_keys_name_the_nearest_right_one(
    state: dict[str, Any], key: str, meant: str | None
) -> None:
    with pytest.raises(InputError) as error:
        recipe(**state)
    nearest = f" (did you mean {meant!r}?)" if meant else ""
    assert str(error.value) == f"here: unknown key {key!r}{nearest}"


# Settings of transformers that have a place of their own.


WRONG: dict[str, list[Any]] = {
    "k": ["many", 0, 17], "scope": ["half"], "pooling": ["max"], "max_length": [1],
    "query_length": [0], "seed": [0.5, -1], "special_tokens": ["old"], "save_dtype": ["int8"],
    "prompts.query": [5], "trainer": [5],
    "data": [["a"]], "data.texts": [None], "data.texts.kind": ["pair"], "data.texts.path": [2020],
    "data.texts.weight": [0, math.inf], "data.texts.truncation": ["cut"],
    "next_token.raw": [1.5], "next_token.split": [-0.1], "next_token.distill": [-1],
    "contrastive.drop": [1.1], "contrastive.dims": [64], "contrastive.teacher_weight": [-1],
    "adapter.rank": [0], "adapter.alpha": [0, math.nan], "adapter.dropout": [2],
    "schedule": [5], "schedule.steps": [0, 10.5], "schedule.batch": [0],
    "schedule.contrastive_batch": [0], "schedule.learning_rate": [0, math.nan, math.inf],
    "schedule.contrastive_learning_rate": [-1], "schedule.ramp": [-1],
    "schedule.warmup_steps": ["long"],
    "schedule.min_lr_ratio": [1.1], "memory.tokens": [0], "memory.padding": [2],
    "memory.gradient_caching": ["often"], "evaluation.held_out": [2], "evaluation.max_rows": [-1],
    "evaluation": [5], "evaluation.data": [5],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=str
)
def test_wrong_values_are_refused_by_their_place(key: str, value: Any) -> None:
    state = value
    for name in reversed(key.split(".")):
        state = {name: state}
    with pytest.raises(InputError) as error:
        recipe(**state)
    assert str(error.value).startswith(f"here: {key} is {value!r}: ")
    assert "\n" not in str(error.value)


# Settings of transformers that have a place of their own.
OWNED = {
    "output_dir": "--out", "max_steps": "schedule.steps", "num_train_epochs": "schedule.steps",
    "per_device_train_batch_size": "schedule.batch", "learning_rate": "schedule.learning_rate",
    "gradient_accumulation_steps": "memory.gradient_caching", "lr_scheduler_type": "schedule",
    "warmup_steps": "schedule.warmup_steps", "seed": "seed",
}  # fmt: skip


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"k": 0}, "k is 0: input should be greater than or equal to 1"),
        ({"k": 17}, "k is 17: input should be less than or equal to 16"),
        ({"pooling": "max"}, "pooling is 'max': input should be 'mean' or 'concat'"),
        ({"contrastive": {"dims": [64, 0]}}, "contrastive.dims.1 is 0: "),
        ({"prompts": {"query": "q: "}}, "prompts must have the two keys 'query' and 'document'"),
        ({"prompts": {"query": "q: ", "documents": "d: "}}, "prompts must have the two keys"),
        ({"prompts": {}}, "prompts must have the two keys 'query' and 'document', not {}"),
        (
            {"next_token": None, "contrastive": None},
            "a recipe needs next_token, contrastive or both: nothing is trained",
        ),
        (
            {"schedule": {"steps": 10, "contrastive_from": 10}},
            "schedule.contrastive_from is 10, and steps is 10: the contrastive loss would never",
        ),
        *[
            ({"trainer": {"bf16": True, name: 1}}, f"trainer.{name} cannot be set: use {place}")
            for name, place in OWNED.items()
        ],
    ],
)
def test_what_cannot_be_meant_is_refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        recipe(**state)
    assert str(error.value).startswith(f"here: {message}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"columns": {"txt": "t"}}, "data of kind text has no column 'txt' (did you mean 'text'?)"),
        ({"kind": "pairs", "columns": {"text": "t"}}, "data of kind pairs has no column 'text'"),
        ({"kind": "prompt", "columns": {"vector": "v"}}, "data of kind prompt has no column"),
        ({"negatives": 1}, "only data of kind pairs has negatives, not text"),
        (
            {"kind": "pairs", "truncation": "windows"},
            "truncation: windows is for data of kind text",
        ),
    ],
)
def test_a_source_has_what_its_kind_has(source: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        recipe(data={"mine": source})
    assert str(error.value).startswith(f"here: data.mine: {message}")


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_column_of_a_kind_may_be_renamed(kind: Any) -> None:
    columns = dict.fromkeys([name for names in COLUMNS[kind] for name in names], "other")
    assert recipe(data={"mine": {"kind": kind, "columns": columns}}).data["mine"].columns == columns


# -- files -------------------------------------------------------------------------------------


def test_a_name_that_is_no_recipe_gets_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        read_recipe("papr")
    assert str(error.value) == (
        "there is no recipe 'papr' (did you mean 'paper'?): give a YAML file, or one of "
        "aligned, domain, pairs, paper, special"
    )


def test_names_of_bundled_recipes_are_never_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").write_text("not a recipe")
    assert read_recipe("paper").k == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold keys and values"),
        ("- k\n- seed", "must hold keys and values"),
        ("k", "must hold keys and values"),
        ("data: [", "is not valid YAML"),
        ("k: 1\n k: 2", "is not valid YAML"),
        (b"\x00", "is not valid YAML"),
        (b"k: \xff\xfe", "cannot be read"),
        ("data: {texts: {}}", "a recipe needs next_token, contrastive or both"),
        ("contrastive: {}\n1: 2", "1 is 1: keys should be strings"),
        ("contrastive: {}\nk: 0", "k is 0"),
        ("contrastive: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_files_that_are_no_recipe_are_named(written: Any, text: str | bytes, message: str) -> None:
    path = written(text)
    with pytest.raises(InputError) as error:
        read_recipe(path)
    assert str(error.value).startswith(f"recipe {path}")
    assert message in str(error.value)


@pytest.mark.parametrize("path", ["none.yaml", "folder/none", "."])
def test_files_that_are_not_there(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be read|there is no recipe"):
        read_recipe(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / path)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-4", 1e-4), ("1E-4", 1e-4), ("+2e3", 2e3), ("1.e-2", 1e-2), ("5.5e-1", 0.55),
        ("1.5e1", 15.0), ("0.25", 0.25), ("3", 3.0),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(written: Any, text: str, number: float) -> None:
    """YAML 1.1 reads 1e-4 as text."""
    found = read_recipe(written(f"contrastive: {{}}\nschedule: {{learning_rate: {text}}}"))
    assert found.schedule.learning_rate == number
    assert parse_change(f"schedule.learning_rate={text}") == ("schedule.learning_rate", number)


# -- changes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("schedule.batch", "64", 64), ("trainer.bf16", "false", False),
        ("contrastive.dims", "[8, 16]", [8, 16]), ("next_token", "null", None),
        ("next_token", "", None), ("data.x.path", "a=b.jsonl", "a=b.jsonl"),
        ("prompts.query", "'query: '", "query: "),
        # No numbers, though they look like some.
        ("name", "1e-4x", "1e-4x"), ("name", "e4", "e4"), ("name", "1e", "1e"),
        ("name", "x1e4", "x1e4"), ("name", "1e-4 2", "1e-4 2"),
    ],
)  # fmt: skip
def test_changes_are_read_as_yaml(key: str, text: str, value: Any) -> None:
    assert parse_change(f"{key}={text}") == (key, value)


@pytest.mark.parametrize("change", ["schedule.batch", "contrastive.dims=[8"])
def test_a_change_that_cannot_be_read_is_named(change: str) -> None:
    with pytest.raises(InputError, match="is not KEY=VALUE|is not valid YAML") as error:
        parse_change(change)
    assert str(error.value).startswith(f"--set {change!r}")


def test_changes_take_the_place_of_the_files_values() -> None:
    """Also of parts that the file does not have."""
    before = read_recipe("special")
    changes = {
        "schedule.learning_rate": 0.5,
        "next_token.raw": 0.25,
        "contrastive": {"drop": 0.5},
        "k": 4,
    }
    assert read_recipe("special", changes) == dataclasses.replace(
        before,
        schedule=dataclasses.replace(before.schedule, learning_rate=0.5),
        next_token=NextToken(raw=0.25),
        contrastive=Contrastive(drop=0.5),
        k=4,
    )
    assert before.next_token is None
    assert read_recipe("special") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope.x": 1}, "'scope.x' cannot be set: scope holds no keys"),
        ({"schedule.steps.x": 1}, "'schedule.steps.x' cannot be set: steps holds no keys"),
        ({"schedule.step": 1}, "unknown key 'schedule.step' (did you mean 'steps'?)"),
        ({"shedule.steps": 1}, "unknown key 'shedule' (did you mean 'schedule'?)"),
        ({"schedule.learning_rate": "fast"}, "schedule.learning_rate is 'fast'"),
        ({"": 1}, "unknown key ''"),
        ({"trainer.seed": 1}, "trainer.seed cannot be set: use seed"),
    ],
)
def test_wrong_changes_are_refused(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        read_recipe("special", changes)
    assert message in str(error.value)


# -- data --------------------------------------------------------------------------------------


def test_paths_are_given_by_name() -> None:
    two = read_recipe("pairs")
    found = two.with_data(["titles=t.parquet", "faq=a=b.jsonl"])
    assert found.data == {
        "faq": dataclasses.replace(two.data["faq"], path="a=b.jsonl"),
        "titles": dataclasses.replace(two.data["titles"], path="t.parquet"),
    }
    assert dataclasses.replace(found, data=two.data) == two


@pytest.mark.parametrize("path", ["some/file.jsonl", "a/b=c.jsonl"])
def test_an_only_source_needs_no_name(path: str) -> None:
    one = read_recipe("special")
    assert one.with_data([path]) == one.with_data([f"pairs={path}"])
    assert one.with_data([path]).data["pairs"].path == path


def test_paths_in_the_recipe_stay() -> None:
    whole = recipe(data={"texts": {"path": "a.txt"}})
    assert whole.with_data([]) == whole


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["titels=x"], "--data 'titels=x' names no source of the recipe (did you mean 'titles'?)"),
        (["titels=x"], "a NAME among faq, titles"),
        (["x.jsonl"], "--data 'x.jsonl' names no source"),
        (["faq="], "--data 'faq=' names no source"),
        (["faq=x"], "the recipe's source 'titles' has no path: give --data titles=PATH"),
    ],
)
def test_wrong_data_is_refused(paths: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        read_recipe("pairs").with_data(paths)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("state", "paths", "message"),
    [
        ({"data": {}}, [], "the recipe has no data: name at least one source"),
        (  # which --data does not reach
            {"evaluation": {"data": {"test": {}}}},
            ["texts=a.txt"],
            "evaluation.data.test has no path: give it one in the recipe",
        ),
        (  # a source to measure on hides none of the same name
            {"evaluation": {"data": {"texts": {"path": "b.txt"}}}},
            [],
            "the recipe's source 'texts' has no path",
        ),
    ],
)
def test_data_needs_paths(state: dict[str, Any], paths: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        recipe(**state).with_data(paths)
    assert str(error.value).startswith(message)


# -- other steps -------------------------------------------------------------------------------

COUNTS = st.integers(0, 500)
NAMES = ("adapt", "contrastive_from", "ramp", "warmup_steps")


@given(steps=st.integers(1, 500), new=st.integers(1, 2000), counts=st.tuples(*[COUNTS] * 4))
def test_scaled_counts_keep_their_shares(
    steps: int, new: int, counts: tuple[int, int, int, int]
) -> None:
    """And what there was of the contrastive loss is never scaled away."""
    plan = dict(zip(NAMES, counts, strict=True))
    plan["contrastive_from"] = min(plan["contrastive_from"], steps - 1)
    before = recipe(schedule={"steps": steps, **plan}, trainer={"save_steps": 7, "bf16": True})
    after = before.scaled(new)
    assert after.schedule.steps == new
    for name, count in plan.items():
        last = new - 1 if name == "contrastive_from" else math.inf
        wanted = min(last, count / steps * new)
        assert abs(getattr(after.schedule, name) - wanted) <= 0.5 + 1e-9
    assert after.schedule.contrastive_from < new
    assert abs(after.trainer["save_steps"] - max(1, 7 / steps * new)) <= 0.5 + 1e-9
    unscaled = dataclasses.replace(after.schedule, steps=steps, **plan)
    assert dataclasses.replace(after, schedule=unscaled, trainer=before.trainer) == before
    assert {**after.trainer, "save_steps": 7} == before.trainer


def test_scaled_runs_take_the_same_course() -> None:
    before = scheduled(
        steps=900,
        adapt=300,
        contrastive_from=600,
        warmup_steps=30,
        learning_rate=1,
        min_lr_ratio=0.5,
    )
    after = before.scaled(90)
    for step in range(3, 90):
        assert alpha(after, step) == alpha(before, 10 * step)
        assert raw_share(after, step) == raw_share(before, 10 * step)
        assert learning_rate_at(after, step) == pytest.approx(learning_rate_at(before, 10 * step))
    assert before.scaled(900) == before


# -- names -------------------------------------------------------------------------------------

FULL: dict[str, Any] = {
    "data": {"pairs": {"path": "a.jsonl", "kind": "pairs", "columns": {"query": "q"}}},
    "scope": "lora",
    "next_token": {},
    "contrastive": {"dims": [8, 16], "teacher": "some/model", "align": 1.0},
    "adapter": {"targets": ["q_proj"]},
    "evaluation": {"data": {"test": {"path": "b.jsonl", "kind": "pairs"}}},
    "trainer": {"bf16": True, "save_steps": 10},
}
# Another value for each setting there is.
OTHERS: dict[str, Any] = {
    "data.pairs.path": "other.jsonl", "data.pairs.kind": "text",
    "data.pairs.columns.query": "question", "data.pairs.negatives": 2, "data.pairs.weight": 2.5,
    "data.pairs.truncation": "error", "data.pairs.subset": "english", "data.pairs.split": "test",
    "scope": "full", "k": 2, "pooling": "concat", "prompts.query": "query: ",
    "prompts.document": "passage: ", "answer_head": True, "max_length": 128, "query_length": 64,
    "special_tokens": "continue", "seed": 1, "save_dtype": "float16",
    "next_token.raw": 0.7, "next_token.split": 0.4, "next_token.distill": 0.1,
    "contrastive.drop": 0.2, "contrastive.dims": [8], "contrastive.teacher": "columns",
    "contrastive.teacher_weight": 0.5, "contrastive.temperature.initial": 0.1,
    "contrastive.temperature.least": 0.02, "contrastive.both_ways": True,
    "contrastive.false_negative_margin": 0.1, "contrastive.mask_same_source": True,
    "contrastive.hardness": 0.5, "contrastive.spread": 0.1, "contrastive.align": 0.5,
    "schedule.align": 2, "schedule.average": 3, "schedule.epochs": 4, "layers": 2,
    "data.pairs.pairs": {"questions": 1}, "adapter.rank": 8, "adapter.alpha": 8.0,
    "adapter.targets": ["k_proj"], "adapter.dropout": 0.1, "schedule.steps": 900,
    "schedule.batch": 8, "schedule.contrastive_batch": 16, "schedule.learning_rate": 1e-3,
    "schedule.contrastive_learning_rate": 1e-5, "schedule.adapt": 1, "schedule.contrastive_from": 3,
    "schedule.ramp": 4, "schedule.warmup_steps": 5, "schedule.min_lr_ratio": 0.1,
    "memory.tokens": 100,
    "memory.padding": 0.2, "memory.gradient_caching": True, "evaluation.held_out": 0.1,
    "evaluation.max_rows": 20, "evaluation.data.test.path": "c.jsonl", "trainer.bf16": False,
    "trainer.save_steps": 20,
}  # fmt: skip


def leaves(state: Any, place: str = "") -> Iterator[str]:
    """Dotted names of all settings; empty groups are none."""
    if not isinstance(state, dict):
        yield place
        return
    for key, value in state.items():
        yield from leaves(value, f"{place}.{key}" if place else key)


def test_the_table_of_other_values_has_every_setting() -> None:
    """So that a new setting has to be in it."""
    every = set(leaves(from_state(FULL, "full").state()))
    # The settings of a source are there once.
    missing = {key for key in every - set(OTHERS) if not key.startswith("evaluation.data.test.")}
    assert not missing
    assert set(OTHERS) <= every


def test_every_setting_changes_the_hash() -> None:
    hashes = {from_state(FULL, "full").hash()}
    for key, value in OTHERS.items():
        state = from_state(FULL, "full").state()
        *parents, last = key.split(".")
        part = state
        for name in parents:
            part = part[name]
        part[last] = value
        if key == "data.pairs.kind":  # whose columns are the other kind's
            part["columns"] = {}
        if key == "data.pairs.pairs":
            part |= {"columns": {}, "kind": "documents"}
        hashes.add(from_state(state, key).hash())
    assert len(hashes) == len(OTHERS) + 1
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in hashes)


def test_equal_recipes_have_equal_hashes() -> None:
    """Whatever of it was written out, and in which order: of sources too, which decides nothing."""
    data: dict[str, Any] = {"a": {}, "b": {"weight": 2}}
    short = recipe(k=2, schedule={"steps": 500, "learning_rate": 1}, data=data)
    turned = dict(reversed(data.items()))
    long = recipe(data=turned, schedule={"learning_rate": 1.0, "steps": 500, "batch": 32}, k=2)
    assert short == long
    assert short.hash() == long.hash()


@pytest.mark.parametrize("settings", [FULL, {"contrastive": {}}], ids=["full", "least"])
def test_states_are_json_and_lead_back(settings: dict[str, Any]) -> None:
    made = from_state(settings, "made")
    state = made.state()
    assert json.loads(json.dumps(state)) == state
    again = from_state(state, "again")
    assert again == made
    assert again.hash() == made.hash()


def test_a_recipe_that_was_read_has_a_hash(written: Any) -> None:
    """Also where YAML reads what JSON cannot hold."""
    assert read_recipe(written("contrastive: {}\ntrainer: {run_name: 2020-01-01}")).hash()


# -- schedule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "alphas"),
    [
        ({"contrastive_from": 3, "ramp": 0}, [0, 0, 0, 1, 1, 1, 1, 1]),
        ({"contrastive_from": 2, "ramp": 3}, [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]),
        ({"contrastive_from": 0, "ramp": 1}, [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ({"contrastive_from": 0, "ramp": 0}, [1] * 8),
        ({"contrastive_from": 100, "ramp": 0}, [0] * 8),
    ],
)
def test_alpha_leaves_zero_and_rises_to_one(plan: dict[str, int], alphas: list[float]) -> None:
    made = scheduled(**plan)
    assert [alpha(made, step) for step in range(8)] == alphas


def test_an_only_loss_has_all_the_weight() -> None:
    """Wherever the contrastive loss would set in, be it behind the end."""
    for only, weight in (("next_token", 0), ("contrastive", 1)):
        made = scheduled(objectives=(only,), steps=3, contrastive_from=3, ramp=2)
        assert [alpha(made, step) for step in range(8)] == [weight] * 8


def test_the_learning_rate_warms_up_and_decays_by_a_cosine() -> None:
    made = scheduled(
        objectives=("next_token",), steps=10, warmup_steps=2, learning_rate=2, min_lr_ratio=0.1
    )
    # After warming up a cosine of 8 steps, that lies between 2 and 0.2 of it.
    cosine = {0: 1, 2: (1 + math.sqrt(0.5)) / 2, 4: 0.5, 6: (1 - math.sqrt(0.5)) / 2, 8: 0}
    wanted = {0: 1.0, 1: 2.0} | {2 + at: 0.2 + 1.8 * part for at, part in cosine.items()}
    assert {step: learning_rate_at(made, step) for step in wanted} == pytest.approx(wanted)


def test_two_learning_rates_mix_as_the_losses_do() -> None:
    """A min_lr_ratio of 1 makes it constant."""
    plan = {"steps": 10, "learning_rate": 1, "min_lr_ratio": 1, "contrastive_from": 4, "ramp": 3}
    made = scheduled(contrastive_learning_rate=0.2, **plan)
    wanted = [1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]
    assert [learning_rate_at(made, step) for step in range(10)] == pytest.approx(wanted)
    assert [learning_rate_at(scheduled(**plan), step) for step in range(10)] == pytest.approx(
        [1] * 10
    )
    only = scheduled(objectives=("contrastive",), contrastive_learning_rate=0.2, **plan)
    assert learning_rate_at(only, 0) == pytest.approx(0.2)


@given(
    steps=st.integers(1, 60),
    warmup_steps=st.integers(0, 80),
    min_lr_ratio=st.floats(0, 1),
    contrastive_from=st.integers(0, 59),
    ramp=st.integers(0, 30),
)
def test_learning_rates_stay_between_none_and_the_higher_of_the_two(
    steps: int, warmup_steps: int, min_lr_ratio: float, contrastive_from: int, ramp: int
) -> None:
    """Also where the warm-up is longer than the run."""
    made = scheduled(
        steps=steps, warmup_steps=warmup_steps, min_lr_ratio=min_lr_ratio,
        contrastive_from=min(contrastive_from, steps - 1),
        ramp=ramp, learning_rate=1, contrastive_learning_rate=0.5,
    )  # fmt: skip
    rates = [learning_rate_at(made, step) for step in range(steps)]
    assert all(0 < value <= 1 + 1e-9 for value in rates)
    assert all(value >= min_lr_ratio / 2 - 1e-9 for value in rates[warmup_steps:])
    alphas = [alpha(made, step) for step in range(steps)]
    assert alphas == sorted(alphas)


@pytest.mark.parametrize(
    ("state", "shares"),
    [
        ({"scope": "lora", "next_token": {"raw": 0.3}}, [1, 1, 0.3, 0.3]),
        ({"scope": "special", "next_token": {"raw": 0.3}}, [0] * 4),  # a frozen model
        ({"scope": "full", "next_token": None}, [0] * 4),
    ],
)
def test_all_rows_are_raw_while_adapting(state: dict[str, Any], shares: list[float]) -> None:
    made = recipe(**state, schedule={"adapt": 2, "contrastive_from": 4})
    assert [raw_share(made, step) for step in range(4)] == shares


# -- keys that had other names -----------------------------------------------------------------

OLD_KEYS = {
    "schedule": {"rate": 0.5, "contrastive_rate": 0.25, "warmup": 7, "floor": 0.125},
    "data": {"texts": {"overlong": "windows"}},
    "evaluation": {"at_most": 9, "data": {"test": {"path": "t.jsonl", "overlong": "error"}}},
}
NEW_KEYS = {
    "schedule": {
        "learning_rate": 0.5,
        "contrastive_learning_rate": 0.25,
        "warmup_steps": 7,
        "min_lr_ratio": 0.125,
    },
    "data": {"texts": {"truncation": "windows"}},
    "evaluation": {"max_rows": 9, "data": {"test": {"path": "t.jsonl", "truncation": "error"}}},
}


def test_old_keys_still_work_and_warn() -> None:
    with pytest.warns(DeprecationWarning, match="is now called") as warned:
        old = from_state({"next_token": {}, **OLD_KEYS}, "here")
    assert old == from_state({"next_token": {}, **NEW_KEYS}, "here")
    assert sorted(str(warning.message).split("; ")[0] for warning in warned) == [
        "the recipe's key data.overlong is now called data.truncation",
        "the recipe's key data.overlong is now called data.truncation",
        "the recipe's key evaluation.at_most is now called evaluation.max_rows",
        "the recipe's key schedule.contrastive_rate is now called "
        "schedule.contrastive_learning_rate",
        "the recipe's key schedule.floor is now called schedule.min_lr_ratio",
        "the recipe's key schedule.rate is now called schedule.learning_rate",
        "the recipe's key schedule.warmup is now called schedule.warmup_steps",
    ]
    assert {warning.filename for warning in warned} == {__file__}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_keys_work_in_files_and_changes(written: Any) -> None:
    """By dotted key too, and within the value of a change."""
    new = recipe(schedule={"warmup_steps": 3}, data={"texts": {"truncation": "windows"}})
    file = written("{next_token: {}, contrastive: {}, data: {texts: {overlong: windows}}}")
    assert read_recipe(file, {"schedule.warmup": 3}) == new
    file = written("{next_token: {}, contrastive: {}, data: {texts: {overlong: error}}}")
    changes = {"schedule": {"warmup": 3}, "data.texts.overlong": "windows"}
    assert read_recipe(file, changes) == new
    paths = {"evaluation.data.test.path": "t.jsonl", "evaluation.data.test.overlong": "error"}
    measured = read_recipe(written("{next_token: {}, contrastive: {}}"), paths).evaluation
    assert measured.data["test"].truncation == "error"


def test_no_warning_without_old_keys(written: Any, recwarn: pytest.WarningsRecorder) -> None:
    """A source may have the name of an old key."""
    from_state({"next_token": {}, **NEW_KEYS}, "here")
    file = written("next_token: {}")
    found = read_recipe(file, {"data.overlong.path": "a", "data.rate": {"path": "b"}})
    assert found.data.keys() == {"overlong", "rate"}
    assert not recwarn.list


def test_old_keys_may_be_set_over_new_ones(written: Any) -> None:
    file = written("contrastive: {}\nschedule: {learning_rate: 1.0}")
    with pytest.warns(DeprecationWarning, match="schedule.rate"):
        assert read_recipe(file, {"schedule.rate": 0.5}).schedule.learning_rate == 0.5


def test_a_key_under_both_names_is_refused(written: Any) -> None:
    state = {"next_token": {}, "schedule": {"floor": 0.1, "min_lr_ratio": 0.2}}
    with pytest.raises(InputError, match="here: floor is now called min_lr_ratio: give one"):
        from_state(state, "here")
    changes = {"schedule.rate": 0.1, "schedule.learning_rate": 0.2}
    message = "schedule.rate is now called schedule.learning_rate: give one of them"
    with pytest.raises(InputError, match=message):
        read_recipe(written("next_token: {}"), changes)
