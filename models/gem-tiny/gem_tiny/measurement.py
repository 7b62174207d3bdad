"""gem-tiny's figures on held-out texts: retrieval, grounded answers, perplexity.

It is also checked that embedding leaves generation unchanged.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gem_rag
from gem_rag import Answer, Chunk, Document, Gem, Hit, Index
from gem_rag._utils.progress import progress_bar
from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.evaluation.baselines import SentenceTransformer, bm25, mean_pooled
from gem_rag.evaluation.judging import Judgement, judge, share
from gem_rag.evaluation.known_item import RetrievalFigures, drop_duplicates, evaluate_known_items
from gem_rag.evaluation.rag_questions import Question, ask_all
from gem_rag.evaluation.scores import this_machine
from gem_rag.rag.answer import answer
from gem_tiny.files import write_jsonl
from gem_tiny.question_rows import QuestionRow
from gem_tiny.texts import Text

# All models read the same words.
QUERY_TOKENS, DOCUMENT_TOKENS = 64, 128
_PASSAGES = 5  # that an index retrieves for a question
_MAX_ANSWER_TOKENS = 96
_READ_ALL = 2.0  # a margin that no two cosines can differ by
_PERPLEXITY_BYTES = 600  # of a text; within the 256 tokens that base-lm reads
_ANSWERS, _END_TO_END_ANSWERS, _GENERATIONS = 500, 300, 100  # at most

Figures = dict[str, float]


@dataclass(frozen=True)
class HeldOutData:
    """What gem-tiny is measured on.

    Attributes:
        texts: Held-out docstrings, for perplexity and as the documents of an index.
        summaries: Pairs of a summary line and the rest of its docstring.
        rows: Question rows of four passages each, some of them unanswerable.
    """

    texts: Sequence[Text]
    summaries: Sequence[tuple[str, str]]
    rows: Sequence[QuestionRow]

    @property
    def answerable_rows(self) -> list[QuestionRow]:
        """The rows with a passage that answers."""
        return [row for row in self.rows if row.number]


def measure_all(
    model: str,
    data: HeldOutData,
    folder: Path,
    *,
    base: Path | None = None,
    beside: str | None = None,
    beside_lm: Path | None = None,
    limit: int = 1500,
) -> dict[str, Any]:
    """Measure everything, and write all answers.

    The answers go to grounded.jsonl and end-to-end.jsonl, and those from all passages, not only
    those within the checkpoint's `answer_margin`, to grounded-all-read.jsonl and
    end-to-end-all-read.jsonl.

    Args:
        model: The checkpoint.
        data: The held-out data.
        folder: Where answers and the index go.
        base: The language model the checkpoint was made from, to compare generation with.
        beside: A sentence-transformers folder to compare retrieval with.
        beside_lm: Another language model to compare perplexity with.
        limit: The most of everything.

    Returns:
        The figures by name.
    """
    rows, answerable = data.rows, data.answerable_rows
    questions = [(row.question, row.passages[row.number - 1]) for row in answerable]
    figures: dict[str, Any] = {"machine": this_machine()}
    with gem_rag.load(model) as gem:
        for name, pairs in (("summaries", data.summaries), ("questions", questions)):
            queries, documents = zip(*pairs[:limit], strict=True)
            figures[f"retrieval: {name}"] = measure_retrieval(gem, queries, documents, beside)
        asked = rows[: min(_ANSWERS, limit)]
        searched = answerable[: min(_END_TO_END_ANSWERS, limit)]
        for suffix, margin in (("", None), ("-all-read", _READ_ALL)):
            figures["grounded" + suffix], answers = measure_grounded_answers(
                gem, asked, margin, progress=True
            )
            _write_answers(folder / f"grounded{suffix}.jsonl", asked, answers)
            figures["end to end" + suffix], answers = measure_end_to_end(
                gem, data.texts, searched, folder / "index", margin, progress=True
            )
            _write_answers(folder / f"end-to-end{suffix}.jsonl", searched, answers)
        if base:
            with gem_rag.load(base) as plain:
                figures["generation kept"] = is_generation_unchanged(
                    gem, plain, rows[: min(_GENERATIONS, limit)]
                )
    sample = [text.document for text in data.texts][:limit]
    figures["gem-tiny's language model"] = measure_perplexity(model, sample)
    if beside_lm:
        figures[beside_lm.name] = measure_perplexity(beside_lm, sample)
    return figures


def _write_answers(path: Path, rows: Iterable[QuestionRow], answers: Iterable[Answer]) -> None:
    write_jsonl(
        path,
        (
            {
                "kind": row.kind,
                "question": row.question,
                "reference": row.answer,
                "answer": answer.text,
            }
            for row, answer in zip(rows, answers, strict=True)
        ),
    )


def measure_retrieval(
    gem: Gem, queries: Sequence[str], documents: Sequence[str], beside: str | None = None
) -> dict[str, RetrievalFigures]:
    """Measure known-item retrieval of the model and of baselines.

    Args:
        gem: The model.
        queries: The queries.
        documents: The document of each query; equal ones count as one.
        beside: A sentence-transformers folder.

    Returns:
        Figures by the name of the model.
    """
    queries = _truncate(gem, queries, QUERY_TOKENS)
    documents, relevant = drop_duplicates(_truncate(gem, documents, DOCUMENT_TOKENS))
    ids = [[gem.tokenize(text) for text in texts] for texts in (queries, documents)]
    pooled_queries, pooled_documents = mean_pooled(open_checkpoint(gem.name).path, *ids)
    scores = {
        "gem-tiny": gem.embed_queries(queries) @ gem.embed_documents(documents).T,
        "mean pooling of its base": pooled_queries @ pooled_documents.T,
        "BM25": bm25(queries, documents),
    }
    if beside:
        other = SentenceTransformer(beside)
        scores[other.name] = other.embed_queries(queries) @ other.embed_documents(documents).T
    return {name: evaluate_known_items(matrix, relevant) for name, matrix in scores.items()}


def _truncate(gem: Gem, texts: Sequence[str], tokens: int) -> list[str]:
    return [gem.tokenizer.decode(gem.tokenize(text)[:tokens]) for text in texts]


def measure_grounded_answers(
    gem: Gem, rows: Sequence[QuestionRow], margin: float | None = None, progress: bool = False
) -> tuple[Figures, list[Answer]]:
    """Measure answers from the passages of each row.

    Args:
        gem: The model.
        rows: The rows.
        margin: As for `gem_rag.rag.answer.answer`.
        progress: Whether to show a progress bar.

    Returns:
        The figures, and the answers.
    """
    answers, judgements = [], []
    with progress_bar("answering", len(rows), progress) as advance:
        for row in rows:
            hits = _score_passages(gem, row)
            given = answer(gem, row.question, hits, margin=margin, max_tokens=_MAX_ANSWER_TOKENS)
            right = hits[row.number - 1] if row.number else None
            numbers = [number for number, hit in enumerate(given.hits, start=1) if hit is right]
            answers.append(given)
            judgements.append(judge(given, row.answer, numbers))
            advance(1)
    return _summarize(judgements, [bool(row.number) for row in rows]), answers


def _score_passages(gem: Gem, row: QuestionRow) -> list[Hit]:
    scores = gem.embed_documents(list(row.passages)) @ gem.embed_queries([row.question])[0]
    return [
        Hit(Chunk("", "", 0, len(passage), passage), float(score))
        for passage, score in zip(row.passages, scores, strict=True)
    ]


def measure_end_to_end(
    gem: Gem,
    texts: Iterable[Text],
    rows: Iterable[QuestionRow],
    folder: Path,
    margin: float | None = None,
    progress: bool = False,
) -> tuple[Figures, list[Answer]]:
    """Measure answers from five passages that an index of all texts retrieves.

    Args:
        gem: The model.
        texts: The documents of the index.
        rows: Answerable rows.
        folder: Where the index goes.
        margin: As for `gem_rag.rag.answer.answer`.
        progress: Whether to show progress bars.

    Returns:
        The figures, and the answers.
    """
    index = Index.open(folder, gem)
    documents = [Document(str(n), text.text, text.title) for n, text in enumerate(texts)]
    index.sync(documents, progress=progress)
    sources_by_title = defaultdict(list)
    for document in documents:
        sources_by_title[document.title].append(document.source)
    questions = []
    for row in rows:
        title = row.passages[row.number - 1].split("\n")[0]
        questions.append(Question(row.question, row.answer, tuple(sources_by_title[title])))
    asked = ask_all(
        index,
        questions,
        _PASSAGES,
        progress=progress,
        margin=margin,
        max_tokens=_MAX_ANSWER_TOKENS,
    )
    figures = {
        metric: float(np.mean([question.values[metric] for question in asked]))
        for metric in ("hit", "supported", "match", "citation")
    }
    return figures, [question.answer for question in asked]


def _summarize(judgements: Sequence[Judgement], answerable: Sequence[bool]) -> Figures:
    pairs = list(zip(judgements, answerable, strict=True))
    answered = [judgement for judgement, has_answer in pairs if has_answer]
    unanswerable = [judgement for judgement, has_answer in pairs if not has_answer]
    return {
        "answerable": float(len(answered)),
        "supported": share([judgement.supported for judgement in answered]),
        "matched": share([judgement.matched for judgement in answered]),
        "cited": share([judgement.cited for judgement in answered]),
        "wrongly refused": share([judgement.refused for judgement in answered]),
        "unanswerable": float(len(unanswerable)),
        "rightly refused": share([judgement.refused for judgement in unanswerable]),
    }


def measure_perplexity(model: str | Path, texts: Sequence[str]) -> Figures:
    """Measure the perplexity of a plain language model on the first 600 bytes of each text.

    Args:
        model: A bundled name or a folder.
        texts: The texts, each of which is read by itself.

    Returns:
        Bits per byte, and perplexity per byte and per token.
    """
    import torch
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM

    path = open_checkpoint(str(model)).path
    language_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = SafeTokenizer.from_folder(path).hf_tokenizer
    nats = tokens = size = 0.0
    for text in texts:
        text = text.encode()[:_PERPLEXITY_BYTES].decode(errors="ignore")
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([torch.tensor([[tokenizer.eos_token_id]]), ids], dim=1)
        with torch.inference_mode():
            logits = language_model(input_ids=ids).logits[0, :-1]
        nats += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
        size += len(text.encode())
    return {
        "bits per byte": nats / math.log(2) / size,
        "perplexity per byte": math.exp(nats / size),
        "perplexity per token": math.exp(nats / tokens),
    }


def is_generation_unchanged(gem: Gem, base: Gem, rows: Sequence[QuestionRow]) -> bool:
    """Whether scores and texts equal the base model's bit for bit, with embeddings in between."""
    for row in rows:
        prompt = f"Question: {row.question}\nAnswer:"
        gem.embed_documents(list(row.passages))
        scores, base_scores = (model.score(prompt, row.passages[:2]) for model in (gem, base))
        tokens, base_tokens = (
            model.generate([prompt], max_tokens=32)[0].tokens for model in (gem, base)
        )
        if tokens != base_tokens or not np.array_equal(scores, base_scores):
            return False
    return True
