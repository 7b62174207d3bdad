"""mteb's tasks through mteb's own evaluator: local ones, mteb's mock ones, and data in folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mteb
import mteb_local
import numpy as np
import pytest
from mteb.mocks.mock_run import get_compatible_mock_tasks, mock_run
from mteb.mocks.mock_tasks import MockMultilingualSTSTask
from mteb.results import TaskResult

import gem_rag
from gem_rag.errors import GemError, InputError
from gem_rag.evaluation import data_files
from gem_rag.evaluation.data_files import snapshot
from gem_rag.evaluation.mteb_tasks import PAPER, MtebEncoder, run_mteb, select_tasks
from gem_rag.evaluation.scores import Record
from gem_rag.model import Gem

# What tells a model that understands from one that does not.
CHANCE = {"LocalRetrieval": 0.3, "LocalReranking": 0.5, "LocalSTS": 0.2, "LocalPairs": 0.5,
          "LocalClassification": 0.5, "LocalClustering": 0.3}  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Iterator[Gem]:
    with gem_rag.load("gem-tiny") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def record(tiny: Gem, out: Path) -> Record:
    """gem-tiny on a task of each kind."""
    return run_mteb(tiny, mteb_local.local_tasks(), out)


class Recorder:
    """A Gem that keeps what it is given; vectors say how long a text is."""

    name, fingerprint, dim, max_length, truncation = "/models/recorder", "0" * 64, 2, 99, "truncate"

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.documents: list[str] = []

    def embed_queries(self, texts: list[str]) -> np.ndarray:
        self.queries += texts
        return self.vectors(texts)

    def embed_documents(self, texts: list[str]) -> np.ndarray:
        self.documents += texts
        return self.vectors(texts)

    @staticmethod
    def vectors(texts: list[str]) -> np.ndarray:
        angles = np.array([len(text) for text in texts]) / 50
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class Loader(list):
    """Batches of texts as mteb's DataLoader has them."""

    @property
    def dataset(self) -> list[str]:
        return [text for batch in self for text in batch["text"]]


def encoded(encoder: MtebEncoder, batches: Any, **more: Any) -> np.ndarray:
    task = mteb_local.STS.metadata
    return encoder.encode(batches, task_metadata=task, hf_split="test", hf_subset="default", **more)


# -- scores --------------------------------------------------------------------------------------


def test_a_task_of_each_kind_is_scored_better_than_chance(record: Record) -> None:
    assert {score.task for score in record.scores} == set(CHANCE)
    for score in record.scores:
        assert CHANCE[score.task] < score.value <= 1, score
        assert (score.kind, score.system) == ("embeddings", "gem-tiny")
    groups = {score.task: (score.group, score.metric) for score in record.scores}
    assert groups["LocalRetrieval"] == ("Retrieval", "ndcg_at_10")
    assert not record.missing
    assert 0 < record.timings["mteb embedding"] <= record.timings["mteb"]


def test_the_retrieval_score_is_that_of_the_vectors(tiny: Gem, record: Record) -> None:
    questions, passages = (list(side) for side in zip(*mteb_local.PAIRS, strict=True))
    scores = tiny.embed_queries(questions) @ tiny.embed_documents(passages).T
    rank = (scores >= scores.diagonal()[:, None]).sum(axis=1)
    wanted = np.where(rank <= 10, 1 / np.log2(rank + 1), 0).mean()
    found = {score.task: score.value for score in record.scores}
    assert found["LocalRetrieval"] == pytest.approx(wanted, abs=1e-4)


def test_results_are_in_mtebs_format(tiny: Gem, record: Record, out: Path) -> None:
    files = [f for f in (out / "mteb").rglob("*.json") if f.name != "model_meta.json"]
    results = {result.task_name: result for result in map(TaskResult.from_disk, files)}
    assert {s.task: s.value for s in record.scores} == {
        name: pytest.approx(result.get_score()) for name, result in results.items()
    }
    meta = json.loads(next((out / "mteb").rglob("model_meta.json")).read_text())
    assert (meta["name"], meta["revision"]) == ("gem-rag/gem-tiny", tiny.fingerprint)


def test_finished_tasks_are_not_run_again(
    record: Record, out: Path, tiny: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gem, "_embed", None)
    again = run_mteb(tiny, mteb_local.local_tasks(), out)
    assert again.scores == record.scores
    assert again.timings["mteb embedding"] == 0
    with pytest.raises(TypeError):  # ... but those of another model are
        tiny.embed_queries(["text"])
    with pytest.raises(GemError, match="LocalSTS failed in mteb: TypeError"):
        run_mteb(tiny, [mteb_local.STS()], out, options={"dtype": "bfloat16"})


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    class Interrupted(mteb_local.Clustering):
        def evaluate(self, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    tasks = [mteb_local.STS(), mteb_local.Clustering()]
    gem = Recorder()
    with pytest.raises(KeyboardInterrupt):
        run_mteb(gem, [tasks[0], Interrupted()], tmp_path)
    first = len(gem.queries)
    found = run_mteb(gem, tasks, tmp_path)
    assert len(found.scores) == 2
    assert len(gem.queries) - first == len(mteb_local.PAIRS)  # the clustering's alone


def test_a_folder_may_hold_more_languages_than_were_asked_for(tmp_path: Path) -> None:
    both = run_mteb(Recorder(), [MockMultilingualSTSTask()], tmp_path)
    file = next((tmp_path / "mteb").rglob("MockMultilingualSTSTask.json"))
    state = json.loads(file.read_text())
    for entry in state["scores"]["test"]:
        entry["main_score"] = {"eng": 0.25, "fra": 0.75}[entry["hf_subset"]]
    file.write_text(json.dumps(state))
    assert both.settings["mteb"]["tasks"] == ["MockMultilingualSTSTask"]
    for languages, value in ((["eng"], 0.25), (["fra"], 0.75), (["eng", "fra"], 0.5)):
        task = MockMultilingualSTSTask().filter_languages(languages)
        assert run_mteb(Recorder(), [task], tmp_path).scores[0].value == value


@pytest.mark.filterwarnings("ignore")
def test_mteb_finds_nothing_wrong_with_the_encoder(gem: Gem) -> None:
    encoder = MtebEncoder(gem)
    assert isinstance(encoder, mteb.EncoderProtocol)
    found = mock_run(encoder)
    names = {task.metadata.name for task in get_compatible_mock_tasks(encoder)}
    assert len(names) > 20
    failed = {n: str(found[n]) for n in names if not isinstance(found[n], TaskResult)}
    assert not failed


# -- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", mteb_local.KINDS, ids=lambda kind: kind.metadata.name)
def test_only_documents_that_are_searched_get_the_document_prompt(
    kind: Any, tmp_path: Path
) -> None:
    gem = Recorder()
    run_mteb(gem, [kind()], tmp_path)
    questions, passages = (set(side) for side in zip(*mteb_local.PAIRS, strict=True))
    if issubclass(kind, mteb_local.AbsTaskRetrieval):
        assert (set(gem.queries), set(gem.documents)) == (questions, passages)
    else:
        assert gem.queries
        assert set(gem.queries) <= questions | passages
        assert not gem.documents


def test_the_models_own_prompts_are_used(gem: Gem) -> None:
    texts = ["A model reads."]
    batches = Loader([{"text": texts}])
    query, document = (encoded(MtebEncoder(gem), batches, prompt_type=mteb.types.PromptType(kind))
                       for kind in ("query", "document"))  # fmt: skip
    assert np.array_equal(query, gem.embed_queries(texts))
    assert np.array_equal(document, gem.embed_documents(texts))
    assert not np.allclose(query, document, atol=1e-3)


def test_instructions_stand_before_queries(tmp_path: Path) -> None:
    tasks = [mteb_local.Retrieval(), mteb_local.STS()]
    gem = Recorder()
    run_mteb(gem, tasks, tmp_path, instructions={"LocalRetrieval": "Answer:"})
    own = {question for question, _ in mteb_local.PAIRS}
    assert {text for text in gem.queries if text.startswith("Answer:\n")} == {
        f"Answer:\n{question}" for question in own
    }
    assert set(gem.documents) == {passage for _, passage in mteb_local.PAIRS}
    gem = Recorder()  # other instructions are another experiment: nothing is kept from before
    run_mteb(gem, tasks, tmp_path, instructions="mteb")
    starts = {text.split("\n")[0] for text in gem.queries}
    assert starts == {"Find the method", "Retrieve semantically similar text."}
    with pytest.raises(InputError, match="'LocalRetrival' .*did you mean 'LocalRetrieval'"):
        run_mteb(gem, tasks, tmp_path, instructions={"LocalRetrival": "Answer:"})


# -- the encoder ---------------------------------------------------------------------------------


def test_texts_are_embedded_as_they_come() -> None:
    """A batch is embedded before the next is fetched, and not kept."""
    order: list[str] = []

    class Source:
        dataset = range(6)

        def __iter__(self) -> Iterator[dict[str, list[str]]]:
            for start in (0, 2, 4):
                order.append(f"fetched {start}")
                yield {"text": [f"text {start}", f"text {start + 1}"]}

    gem = Recorder()
    embed = gem.embed_queries
    gem.embed_queries = lambda texts: order.append(f"embedded {len(texts)}") or embed(texts)  # type: ignore[func-returns-value, method-assign]
    vectors = encoded(MtebEncoder(gem), Source())
    assert order == [f"{what}" for n in (0, 2, 4) for what in (f"fetched {n}", "embedded 2")]
    assert (vectors.shape, vectors.dtype) == ((6, 2), np.float32)
    assert np.array_equal(vectors, Recorder.vectors([f"text {n}" for n in range(6)]))


def test_an_empty_text_is_similar_to_nothing(gem: Gem) -> None:
    encoder = MtebEncoder(gem)
    batches = Loader([{"text": ["one", " ", "two"]}, {"text": [""]}, {"text": ["three"]}])
    vectors = encoded(encoder, batches)
    assert np.array_equal(np.linalg.norm(vectors, axis=1).round(5), [1, 0, 1, 0, 1])
    assert np.allclose(vectors[[0, 2, 4]], gem.embed_queries(["one", "two", "three"]), atol=1e-6)
    assert encoder.similarity(vectors[1:2], vectors).tolist() == [[0] * 5]


def test_nan_stops_the_run_and_names_the_text(tiny: Gem, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    bad = mteb_local.PAIRS[7][0]
    ids, embed_batches = tiny.tokenize(bad), tiny._engine.embed_batches

    def broken(batches: Any) -> Iterator[np.ndarray]:
        batches = list(batches)
        for rows, vectors in zip(batches, embed_batches(batches), strict=True):
            vectors[[list(row.text) == ids for row in rows]] = np.nan
            yield vectors

    monkeypatch.setattr(tiny._engine, "embed_batches", broken)
    with pytest.raises(GemError, match="LocalRetrieval, in texts 6 to 8: .*NaN .*'How do I delete"):
        run_mteb(tiny, mteb_local.local_tasks(), tmp_path, batch_size=3)


def test_nan_of_a_baseline_stops_the_run_too(tmp_path: Path) -> None:
    gem = Recorder()
    gem.vectors = lambda texts: np.array([[1.0, np.nan if "lock" in t else 0] for t in texts])  # type: ignore[method-assign, assignment]
    with pytest.raises(GemError, match="LocalSTS, in texts 0 to 107: .*NaN .*'How do I acquire"):
        run_mteb(gem, [mteb_local.STS()], tmp_path)


# -- choosing ------------------------------------------------------------------------------------


def test_the_papers_set_is_english_and_complete() -> None:
    tasks = select_tasks(paper=True)
    assert tuple(task.metadata.name for task in tasks) == PAPER
    subsets = {task.metadata.name: task.hf_subsets for task in tasks}
    assert subsets["STS17"] == ["en-en"]
    assert subsets["MassiveIntentClassification"] == ["en"]
    assert {tuple(task.eval_splits) for task in tasks} == {("test",)}


def test_tasks_and_benchmarks_are_found_by_name() -> None:
    names = [task.metadata.name for task in select_tasks(["SciFact", "MTEB(eng, v2)", "SciFact"])]
    assert names[0] == "SciFact"
    assert len(names) == len(set(names)) == 42
    mine = select_tasks(["STS17"], paper=True)
    assert [task.hf_subsets for task in mine if task.metadata.name == "STS17"] == [["en-en"]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SciFacts", "no task or benchmark 'SciFacts' .*did you mean 'SciFact'"),
        ("MTEB(eng, v3)", "did you mean 'MTEB\\(eng, v[12]\\)'"),
        ("Caltech101", "Caltech101 holds image, and a language model reads text"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select_tasks([name])


def test_no_name_is_refused() -> None:
    with pytest.raises(InputError, match="there is no task to run"):
        select_tasks()


# -- data ----------------------------------------------------------------------------------------


def put(cache: Path, name: str, configs: dict[str, list[dict[str, Any]]]) -> None:
    """A task's data set as the hub's client keeps it; one without configurations has one, ""."""
    dataset = mteb.get_task(name).metadata.dataset
    home = cache / "hub" / f"datasets--{dataset['path'].replace('/', '--')}"
    place = home / "snapshots" / dataset["revision"]
    place.mkdir(parents=True)
    card = ["---", "configs:"]
    for config, rows in configs.items():
        file = f"{config or 'data'}.jsonl"
        (place / file).write_text("\n".join(map(json.dumps, rows)))
        card += [f"- config_name: {config or 'default'}", "  data_files:",
                 "  - split: test", f"    path: {file}"]  # fmt: skip
    (place / "README.md").write_text("\n".join([*card, "---", ""]))


def test_data_are_read_from_a_folder(tmp_path: Path) -> None:
    rows = [{"sentence1": "a" * n, "sentence2": "b" * (2 * n), "score": 5 - n} for n in range(1, 5)]
    put(tmp_path, "STSBenchmark", {"": rows})
    found = run_mteb(Recorder(), select_tasks(["STSBenchmark"]), tmp_path / "out", cache=tmp_path)
    assert found.scores[0].value == pytest.approx(1)  # the shorter, the closer
    saved = next((tmp_path / "out").rglob("STSBenchmark.json")).read_text()
    assert mteb.get_task("STSBenchmark").metadata.revision in saved
    assert str(tmp_path) not in saved


def test_reranking_from_a_folder_ranks_no_more_than_it_should(tmp_path: Path) -> None:
    """A passage that is closer than the right one is not among those to rank."""
    put(
        tmp_path,
        "SciDocsRR",
        {
            "corpus": [{"_id": f"d{n}", "title": "", "text": "x" * (9 + n)} for n in range(3)],
            "queries": [{"_id": "q", "text": "x" * 9}],
            "default": [{"query-id": "q", "corpus-id": "d1", "score": 1}],
            "top_ranked": [{"query-id": "q", "corpus-ids": ["d1", "d2"]}],
        },
    )
    found = run_mteb(Recorder(), select_tasks(["SciDocsRR"]), tmp_path / "out", cache=tmp_path)
    assert found.scores[0].value == 1


@pytest.mark.parametrize("name", ["SciDocsRR", "STSBenchmark", "CQADupstackRetrieval"])
def test_what_is_not_at_hand_is_said_with_where_it_goes(name: str, tmp_path: Path) -> None:
    tasks = [mteb_local.STS(), *select_tasks([name])]
    found = run_mteb(Recorder(), tasks, tmp_path / "out", cache=tmp_path)
    assert [score.task for score in found.scores] == ["LocalSTS"]
    (missing,) = found.missing
    assert (missing.kind, missing.task) == ("embeddings", name)
    part = mteb.get_task("CQADupstackAndroidRetrieval" if name.startswith("CQA") else name)
    repo, revision = part.metadata.dataset["path"], part.metadata.dataset["revision"]
    assert f"hf download {repo} --repo-type dataset --revision {revision}" in missing.reason
    assert str(tmp_path / "hub" / f"datasets--{repo.replace('/', '--')}") in missing.reason
    with pytest.raises(GemError, match=f"no task could be measured; {name}: its data set {repo}"):
        run_mteb(Recorder(), tasks[1:], tmp_path / "out", cache=tmp_path)


def test_a_prepared_copy_without_its_revision_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` offline would take any; of a reranking task it would then rank everything."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    place = tmp_path / "datasets" / "mteb___sci_docs_rr" / "default" / "0.0.0" / "abc"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text('{"config_name": "default"}')
    assert mteb.abstasks.retrieval_dataset_loaders.get_dataset_config_names("mteb/SciDocsRR")
    with pytest.raises(GemError, match="mteb/SciDocsRR is not in"):
        run_mteb(Recorder(), select_tasks(["SciDocsRR"]), tmp_path / "out", cache=tmp_path)


def test_unreadable_data_say_why(tmp_path: Path) -> None:
    put(tmp_path, "SICK-R", {"": [{"sentence1": "a"}]})
    published = mteb.get_task("SICK-R").metadata.dataset
    place = snapshot(published["path"], published["revision"], tmp_path)
    assert place is not None
    (place / "data.jsonl").write_text("no JSON")
    with pytest.raises(GemError, match="SICK-R: its data cannot be read: "):
        run_mteb(Recorder(), select_tasks(["SICK-R"]), tmp_path / "out", cache=tmp_path)


def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append(url)
            raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", Session)
    data_files._online.cache_clear()
    try:
        for name in ("mteb/arguana", "mteb/scifact"):
            assert snapshot(name, "1234", tmp_path) is None
    finally:
        data_files._online.cache_clear()
    assert len(asked) == 1
