"""A model judges an answer of its own by metrics of deepeval and ragas, offline.

In an environment of its own, since both ask for older versions of what gem-rag is tested with:

    pip install deepeval ragas llama-index-llms-gem 'langchain-community<0.4.2'
    python examples/judges.py [MODEL]

deepeval takes any model by its `DeepEvalBaseLLM`, and says which class it wants, so that the judge
cannot but write it. ragas takes LlamaIndex's LLMs by its wrapper, which does not say so: what a
small judge writes there is often no JSON, and gives no score. A score is worth as much as its
judge; one of 135 million parameters says little.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["DEEPEVAL_TELEMETRY_OPT_OUT"] = "YES"  # before deepeval is imported
os.environ["RAGAS_DO_NOT_TRACK"] = "true"

from deepeval.metrics import AnswerRelevancyMetric, GEval
from deepeval.models import DeepEvalBaseLLM
from deepeval.test_case import LLMTestCase, SingleTurnParams
from llama_index.llms.gem import GemLLM
from pydantic import BaseModel
from ragas.dataset_schema import SingleTurnSample
from ragas.llms import LlamaIndexLLMWrapper
from ragas.metrics import AspectCritic

import gem_rag
from gem_rag import Document, Gem, Index
from gem_rag.aio import run_in_thread

QUESTION = "What does open() return?"
TEXTS = {
    "files": "open() returns a file object. Close it when you are done.",
    "lists": "list.append(x) adds an item to the end of the list.",
}


class GemJudge(DeepEvalBaseLLM):
    """A gem-rag model as deepeval's judge; what it is asked for as a class is of that class."""

    def __init__(self, gem: Gem, max_tokens: int = 120) -> None:
        self._gem, self._max_tokens = gem, max_tokens
        super().__init__(gem.name)

    def load_model(self) -> Gem:  # type: ignore[override]
        return self._gem

    def get_model_name(self) -> str:
        return self._gem.name

    def generate(  # type: ignore[override]
        self, prompt: str, schema: type[BaseModel] | None = None
    ) -> str | BaseModel:
        reply = self._gem.chat(
            [{"role": "user", "content": prompt}],
            schema=schema.model_json_schema() if schema else None,
            max_tokens=self._max_tokens,
        )
        return schema.model_validate_json(reply.text) if schema else reply.text

    async def a_generate(  # type: ignore[override]
        self, prompt: str, schema: type[BaseModel] | None = None
    ) -> str | BaseModel:
        return await run_in_thread(self.generate, prompt, schema)


def main() -> None:
    with gem_rag.load(sys.argv[1] if len(sys.argv) > 1 else "gem-smollm2-135m") as gem:
        print(f"the judge is {gem.name}")
        for name, score in judge(gem, ask(gem)).items():
            print(f"{name}: {score}")


def ask(gem: Gem) -> tuple[str, list[str]]:
    """The answer to `QUESTION`, and the passages that it was given."""
    with tempfile.TemporaryDirectory() as folder:
        index = Index.open(Path(folder) / "index", gem)
        index.sync([Document(name, text) for name, text in TEXTS.items()])
        answer = index.ask(QUESTION, k=2, max_tokens=40)
        print(f"{QUESTION} {answer.text.strip()!r}")
        return answer.text, [hit.chunk.text for hit in answer.hits]


def judge(gem: Gem, answered: tuple[str, list[str]]) -> dict[str, float | str]:
    """Scores of an answer by metrics of both; where the judge fails, why."""
    answer, passages = answered
    case = LLMTestCase(input=QUESTION, actual_output=answer, retrieval_context=passages)
    own = GemJudge(gem)
    correctness = GEval(
        name="correctness",
        evaluation_steps=["Check whether the actual output answers the input."],
        evaluation_params=[SingleTurnParams.INPUT, SingleTurnParams.ACTUAL_OUTPUT],
        model=own,
        async_mode=False,
    )
    relevancy = AnswerRelevancyMetric(model=own, include_reason=False, async_mode=False)
    critic = AspectCritic(
        name="answers",
        definition="Does the response answer the question?",
        llm=LlamaIndexLLMWrapper(GemLLM(gem, max_tokens=120)),
    )
    sample = SingleTurnSample(user_input=QUESTION, response=answer, retrieved_contexts=passages)
    return {
        "deepeval, GEval": score(lambda: correctness.measure(case, _show_indicator=False)),
        "deepeval, answer relevancy": score(lambda: relevancy.measure(case, _show_indicator=False)),
        "ragas, aspect critic": score(lambda: critic.single_turn_score(sample)),
    }


def score(measure: Callable[[], float]) -> float | str:
    """A score; or why there is none, since a judge may not write what a metric reads."""
    try:
        return measure()
    except Exception as error:
        return f"no score ({type(error).__name__}: {str(error).splitlines()[0][:80]})"


if __name__ == "__main__":
    main()
