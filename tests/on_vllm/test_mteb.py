"""mteb's tasks have the same scores on vLLM as on transformers."""

from __future__ import annotations

from pathlib import Path

import mteb_local
import numpy as np
import pytest
from mteb.mocks.mock_run import mock_run
from mteb.results import TaskResult

from gem_rag.errors import InputError
from gem_rag.evaluation.lm_tasks import run_lm
from gem_rag.evaluation.mteb_tasks import MtebEncoder, run_mteb
from gem_rag.model import Gem


def test_a_task_of_each_kind_has_the_same_score(tiny: Gem, plain_tiny: Gem, tmp_path: Path) -> None:
    found, wanted = (
        {score.task: score.value for score in run_mteb(gem, mteb_local.local_tasks(), out).scores}
        for gem, out in ((tiny, tmp_path / "vllm"), (plain_tiny, tmp_path / "transformers"))
    )
    assert len(wanted) == len(mteb_local.KINDS)
    assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_mtebs_mock_tasks_have_the_same_scores(tiny: Gem, plain_tiny: Gem) -> None:
    found, wanted = (
        {name: result.get_score() for name, result in mock_run(MtebEncoder(gem)).items()
         if isinstance(result, TaskResult)}
        for gem in (tiny, plain_tiny)
    )  # fmt: skip
    assert len(wanted) > 20
    values = np.array([[found[name], wanted[name]] for name in wanted])
    assert np.allclose(*values.T, atol=1e-4, equal_nan=True)


def test_lm_eval_needs_the_other_engine(tiny: Gem, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tiny is on the vLLM engine"):
        run_lm({"tiny": tiny}, ["mmlu"], tmp_path)
