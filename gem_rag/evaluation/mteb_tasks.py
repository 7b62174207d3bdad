"""mteb's tasks on a Gem: an encoder for mteb's own evaluator, named sets, data from a folder.

mteb reads the data, embeds through `MtebEncoder`, scores, and keeps results in its own format, so
that they can be handed in and an interrupted run goes on. Data sets are read from the files of
their repositories at the revision mteb names: what `datasets` has prepared of them before knows
no revision, and hides from mteb which tasks rerank.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gem_rag._utils.progress import progress_bar
from gem_rag._utils.suggestions import did_you_mean
from gem_rag.core.arrays import check_finite
from gem_rag.errors import GemError, InputError
from gem_rag.evaluation.data_files import first_line, not_at_hand, place_of, quiet, snapshot
from gem_rag.evaluation.scores import Missing, Record, Score, this_machine

if TYPE_CHECKING:
    from mteb import AbsTask, ResultCache

    from gem_rag.core.arrays import FloatArray
    from gem_rag.evaluation.baselines import Embedder
    from gem_rag.model import Gem

# What the GEM paper measures (arXiv 2506.04344, its "15 tasks"), the English part of each.
PAPER = (
    "ArguAna", "ClimateFEVER", "NFCorpus", "SciFact",
    "StackOverflowDupQuestions", "SciDocsRR",
    "BiorxivClusteringS2S", "MedrxivClusteringS2S", "TwentyNewsgroupsClustering",
    "SprintDuplicateQuestions",
    "Banking77Classification", "EmotionClassification", "MassiveIntentClassification",
    "STS17", "SICK-R", "STSBenchmark",
)  # fmt: skip
_PAPER_FROM = "MTEB(eng, v1)"  # with the paper's splits and languages
Instructions = Mapping[str, str] | Literal["mteb"]


# -- the encoder ---------------------------------------------------------------------------------


class MtebEncoder:
    """A Gem, or a baseline, as mteb's evaluator expects it (its `EncoderProtocol`).

    Documents of retrieval and reranking tasks get the model's prompt for documents. Everything else
    gets the one for queries: queries, and the texts of symmetric tasks (similarity, classification,
    clustering, pairs, summaries, bitexts). An empty text, which some data sets have, becomes a zero
    vector, similar to nothing.

    Args:
        gem: The model, on any engine.
        instructions: By task, put on a line of its own before everything that gets the query
            prompt; "mteb" takes those that mteb has.
        options: How the model was loaded, if that changes vectors; results are kept apart by it.
        name: What the model is called; default the last part of its own name.
        on_progress: Called with a task's name and how many of its texts were embedded.
    """

    def __init__(
        self,
        gem: Gem | Embedder,
        *,
        instructions: Instructions | None = None,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
        on_progress: Callable[[str, int], None] | None = None,
    ) -> None:
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        self._gem, self._instructions, self._told = gem, instructions, on_progress
        self.name = name or Path(gem.name).name
        self.seconds = 0.0  # spent embedding
        made_with = dict(options or {})
        if instructions:
            made_with["instructions"] = _instructions_id(instructions)
        if gem.truncation != "truncate":
            made_with["overlong"] = gem.truncation
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"gem-rag/{self.name}",
                "revision": gem.fingerprint,
                "embed_dim": gem.dim,
                "max_tokens": gem.max_length,
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": bool(instructions),
                "experiment_kwargs": made_with or None,
            }
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> FloatArray:
        """Vectors of all texts of mteb's DataLoader, batch by batch: float32 [n, dim].

        Raises GemError naming the text if a vector is not finite.
        """
        document = prompt_type is not None and prompt_type.value == "document"
        embed = self._gem.embed_documents if document else self._gem.embed_queries
        instruction = "" if document else self._instruction(task_metadata)
        vectors = np.zeros((len(inputs.dataset), self._gem.dim), dtype=np.float32)
        start = 0
        for batch in inputs:
            texts = batch["text"]
            full = [place for place, text in enumerate(texts) if text.strip()]
            began = time.perf_counter()
            try:
                if full:
                    found = embed([instruction + texts[place] for place in full])
                    vectors[start + np.array(full)] = found
                    check_finite(found, [texts[place] for place in full])
            except GemError as error:
                where = f"{task_metadata.name}, in texts {start} to {start + len(texts) - 1}"
                raise type(error)(f"{where}: {error}") from error
            self.seconds += time.perf_counter() - began
            start += len(texts)
            if self._told:
                self._told(task_metadata.name, len(texts))
        return vectors

    def _instruction(self, task_metadata: Any) -> str:
        if self._instructions is None:
            return ""
        if self._instructions == "mteb":
            found = _mteb_instruction(task_metadata)
        else:
            found = self._instructions.get(task_metadata.name, "")
        return f"{found}\n" if found else ""

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def _mteb_instruction(task_metadata: Any) -> str:
    """A task's own, or that of all tasks of its kind."""
    from mteb.abstasks.abstask import get_abstask_prompt

    prompt = task_metadata.prompt
    if isinstance(prompt, dict):
        prompt = prompt.get("query")
    return str(prompt or get_abstask_prompt(task_metadata.name))


def _instructions_id(instructions: Instructions) -> str:
    """Short, and different for different instructions."""
    if instructions == "mteb":
        return "mteb"
    text = json.dumps(dict(instructions), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# -- choosing ------------------------------------------------------------------------------------


def select_tasks(names: Sequence[str] = (), paper: bool = False) -> list[AbsTask]:
    """mteb's tasks by their names, and those of benchmarks by theirs; each task once.

    paper: the GEM paper's, before the others.

    Raises InputError for an unknown name, and for a task that is not about texts alone.
    """
    import mteb

    found: list[AbsTask] = []
    if paper:
        by_name = {task.metadata.name: task for task in mteb.get_benchmark(_PAPER_FROM).tasks}
        found += [by_name[name] for name in PAPER]
    for name in names:
        found += _tasks_named(name)
    if not found:
        raise InputError("there is no task to run: name mteb's tasks or benchmarks, or the paper's")
    for task in found:
        others = sorted(set(task.metadata.modalities) - {"text"})
        if others:
            raise InputError(f"{task.metadata.name} holds {' and '.join(others)}, and a language "
                             "model reads text: choose another task")  # fmt: skip
    once: dict[str, AbsTask] = {}
    for task in found:
        once.setdefault(task.metadata.name, task)
    return list(once.values())


def _tasks_named(name: str) -> list[AbsTask]:
    """A task, or a benchmark's tasks."""
    import mteb
    from mteb.get_tasks import TASK_LIST

    tasks = {task.metadata.name for task in TASK_LIST}
    if name in tasks:
        return [mteb.get_task(name)]
    benchmarks = {
        alias: benchmark
        for benchmark in mteb.get_benchmarks()
        for alias in (benchmark.name, *(benchmark.aliases or ()))
    }
    if name not in benchmarks:
        known = did_you_mean(name, [*tasks, *benchmarks])
        raise InputError(f"mteb has no task or benchmark {name!r}{known}: mteb.get_tasks() and "
                         "mteb.get_benchmarks() list them")  # fmt: skip
    return list(benchmarks[name].tasks)


# -- running -------------------------------------------------------------------------------------


def run_mteb(
    gem: Gem | Embedder,
    tasks: Sequence[AbsTask],
    folder: Path,
    *,
    cache: Path | None = None,
    batch_size: int = 256,
    instructions: Instructions | None = None,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
    progress: bool = False,
) -> Record:
    """Every task's main score; results in mteb's format are kept below `folder`/mteb.

    Tasks that are finished there are not run again. One whose data cannot be had is recorded as
    missing, and the others are run.

    tasks: `select_tasks`'s, or one's own.
    cache: folder of data sets, as HF_HOME is; default the hub's own place. What is not there is
        downloaded to it, unless HF_HUB_OFFLINE is set.
    batch_size: texts sorted and embedded together; changes no vector.
    instructions, options, name: as `MtebEncoder` has them.

    Raises GemError if no task's data can be had, a task fails, or a vector is not finite.
    """
    import mteb

    names = [task.metadata.name for task in tasks]
    if isinstance(instructions, Mapping):
        for key in instructions:
            if key not in names:
                raise InputError(
                    f"there is an instruction for {key!r}{did_you_mean(key, names)}, which is none "
                    "of the tasks: name one of them"
                )
    kept = mteb.ResultCache(folder / "mteb")
    found: list[Score | Missing] = []
    began = time.perf_counter()
    with quiet("mteb", "sklearn"), progress_bar("mteb", len(tasks), progress) as advance:
        done = dict.fromkeys(names, 0)

        def on_progress(task: str, texts: int) -> None:
            done[task] = done.get(task, 0) + texts
            advance(0, f"{task}: {done[task]:,} texts")

        encoder = MtebEncoder(
            gem, instructions=instructions, options=options, name=name, on_progress=on_progress
        )
        for task in tasks:
            advance(0, task.metadata.name)
            found.append(_measure(encoder, task, kept, cache, batch_size))
            advance(1)
    missing = tuple(one for one in found if isinstance(one, Missing))
    if len(missing) == len(found):
        raise GemError(f"no task could be measured; {missing[0].task}: {missing[0].reason}")
    return Record(
        system=encoder.name,
        scores=tuple(one for one in found if isinstance(one, Score)),
        missing=missing,
        settings={"mteb": {
            "version": mteb.__version__, "tasks": names, "batch_size": batch_size,
            "instructions": dict(instructions) if isinstance(instructions, Mapping)
            else instructions, **(options or {}),
        }},
        timings={"mteb": time.perf_counter() - began, "mteb embedding": encoder.seconds},
        machine=this_machine(),
    )  # fmt: skip


def _measure(
    encoder: MtebEncoder, task: AbsTask, kept: ResultCache, cache: Path | None, batch_size: int
) -> Score | Missing:
    import mteb

    name, group = task.metadata.name, getattr(task, "group", task.metadata.type)
    before = kept.load_task_result(name, encoder.mteb_model_meta)
    if before is None or before.get_missing_evaluations(task):
        task = _with_local_data(task, cache)
    try:
        results = mteb.evaluate(
            encoder, task, cache=kept, co2_tracker=False, show_progress_bar=False,
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
        ).task_results  # fmt: skip
    except GemError:
        raise
    except Exception as error:  # whatever the task's own code and its data's readers raise
        if any(part.data_loaded for part in _parts(task)):
            raise GemError(f"{name} failed in mteb: {first_line(error)}") from error
        return Missing("embeddings", name, _missing_reason(task, cache, error), group)
    if not results:
        return Missing("embeddings", name, "its data are private and not to be had here", group)
    # Rounded as it is kept, and of no more languages and splits than were asked for.
    result = kept.load_task_result(name, encoder.mteb_model_meta) or results[0]
    value = result.validate_and_filter_scores(task).get_score()
    if not math.isfinite(value):
        return Missing("embeddings", name, f"mteb gives {value} for it", group)
    return Score("embeddings", name, task.metadata.main_score, encoder.name, float(value),
                 group=group)  # fmt: skip


def _parts(task: AbsTask) -> list[AbsTask]:
    """The tasks that have data: itself, or those it puts together."""
    return [sub for part in task.metadata.tasks for sub in _parts(part)] if task.is_aggregate \
        else [task]  # fmt: skip


def _with_local_data(task: AbsTask, cache: Path | None) -> AbsTask:
    """A copy of the task that reads its data set's files where they lie.

    Where they are not to be had, it reads them from where they should be, and fails.
    """
    task, metadata = copy.copy(task), task.metadata
    if task.is_aggregate:
        changes: dict[str, Any] = {
            "tasks": [_with_local_data(part, cache) for part in metadata.tasks]
        }
    else:
        repo, revision = metadata.dataset["path"], metadata.dataset["revision"]
        place = snapshot(repo, revision, cache) or place_of(repo, cache) / "snapshots" / revision
        changes = {"dataset": {**metadata.dataset, "path": str(place)}}
    task.metadata = metadata.model_copy(update=changes)
    return task


def _missing_reason(task: AbsTask, cache: Path | None, error: Exception) -> str:
    """Why a task's data could not be read."""
    for part in _parts(task):
        # A class keeps the name of the repository that `_placed` has put a path in place of.
        published, place = type(part).metadata.dataset, Path(part.metadata.dataset["path"])
        if part.metadata.dataset != published and not place.exists():
            return not_at_hand(published["path"], published["revision"], cache)
    return f"its data cannot be read: {first_line(error)}"
