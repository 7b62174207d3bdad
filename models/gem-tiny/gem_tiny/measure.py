"""What gem-tiny is measured by: retrieval, grounded answers, perplexity, and generation kept.

Everything is held out from all that it was trained on. Knows nothing about how it was trained.
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
from gem_rag._utils.progress import progress_bar
from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.documents.document import Chunk, Document
from gem_rag.evaluation.baselines import SentenceTransformer, bm25, mean_pooled
from gem_rag.evaluation.judging import Judgement, judge, share
from gem_rag.evaluation.known_item import RetrievalFigures, distinct, known_item
from gem_rag.evaluation.rag_questions import Question, ask_all
from gem_rag.evaluation.scores import this_machine
from gem_rag.model import Gem
from gem_rag.rag.answer import Answer, answer
from gem_rag.rag.hits import Hit
from gem_rag.rag.index import Index
from gem_tiny.corpus import Text, write_rows
from gem_tiny.question_rows import Row

QUERY_TOKENS, DOCUMENT_TOKENS = 64, 128  # what base-lm and others were measured with
_ANSWER_TOKENS = 96
_ALL_READ = 2.0  # a margin that no cosine can leave
_BYTES = 600  # of a text whose perplexity is taken: within the 256 tokens that base-lm knows

Figures = dict[str, float]


@dataclass(frozen=True)
class HeldOut:
    """What to measure on.

    texts: all of them, for perplexity and to be searched.
    summaries: pairs of a summary line and the rest of its docstring.
    rows: of question answering, four passages each, some without the right one.
    """

    texts: Sequence[Text]
    summaries: Sequence[tuple[str, str]]
    rows: Sequence[Row]

    @property
    def answered(self) -> list[Row]:
        """Rows whose answer is in a passage."""
        return [row for row in self.rows if row.number]


def everything(
    model: str,
    held_out: HeldOut,
    folder: Path,
    *,
    base: Path | None = None,
    beside: str | None = None,
    beside_lm: Path | None = None,
    count: int = 1500,
) -> dict[str, Any]:
    """Every figure, and every answer in the folder: grounded.jsonl, end-to-end.jsonl, and the same
    where every passage is read, not only those within the checkpoint's `answer_margin`.

    base: the language model that it was made of; without it, generation is not compared.
    beside: a sentence-transformers folder.
    beside_lm: another language model.
    count: at most so many of everything.
    """
    rows, answered = held_out.rows, held_out.answered
    own = [(row.question, row.passages[row.number - 1]) for row in answered]
    found: dict[str, Any] = {"machine": this_machine()}
    with gem_rag.load(model) as gem:
        for name, pairs in (("summaries", held_out.summaries), ("questions", own)):
            queries, documents = zip(*pairs[:count], strict=True)
            found[f"retrieval: {name}"] = retrieval(gem, queries, documents, beside)
        posed, searched = rows[: min(500, count)], answered[: min(300, count)]
        for name, margin in (("", None), ("-all-read", _ALL_READ)):
            found["grounded" + name], answers = grounded(gem, posed, margin, progress=True)
            _write(folder / f"grounded{name}.jsonl", posed, answers)
            found["end to end" + name], answers = end_to_end(
                gem, held_out.texts, searched, folder / "index", margin, progress=True
            )
            _write(folder / f"end-to-end{name}.jsonl", searched, answers)
        if base:
            with gem_rag.load(base) as plain:
                found["generation kept"] = generation_kept(gem, plain, rows[: min(100, count)])
    sample = [text.document for text in held_out.texts][:count]
    found["gem-tiny's language model"] = bits_per_byte(model, sample)
    if beside_lm:
        found[beside_lm.name] = bits_per_byte(beside_lm, sample)
    return found


def _write(file: Path, rows: Iterable[Row], answers: Iterable[Answer]) -> None:
    write_rows(file, (
        {"kind": row.kind, "question": row.question, "reference": row.answer, "answer": answer.text}
        for row, answer in zip(rows, answers, strict=True)
    ))  # fmt: skip


def retrieval(
    gem: Gem, queries: Sequence[str], documents: Sequence[str], other: str | None = None
) -> dict[str, RetrievalFigures]:
    """Figures of the model and of what it is measured beside; document i is query i's own, and
    the same text is one document.

    other: a sentence-transformers model's folder.

    All read the same words, at most 64 tokens of a query and 128 of a document.
    """
    queries = _cut(gem, queries, QUERY_TOKENS)
    documents, right = distinct(_cut(gem, documents, DOCUMENT_TOKENS))
    ids = [[gem.encode(text) for text in texts] for texts in (queries, documents)]
    pooled = mean_pooled(open_checkpoint(gem.name).path, *ids)
    scores = {
        "gem-tiny": gem.embed_queries(queries) @ gem.embed_documents(documents).T,
        "mean pooling of its base": pooled[0] @ pooled[1].T,
        "BM25": bm25(queries, documents),
    }
    if other:
        model = SentenceTransformer(other)
        scores[model.name] = model.embed_queries(queries) @ model.embed_documents(documents).T
    return {name: known_item(found, right) for name, found in scores.items()}


def _cut(gem: Gem, texts: Sequence[str], tokens: int) -> list[str]:
    return [gem.tokenizer.decode(gem.encode(text)[:tokens]) for text in texts]


def grounded(
    gem: Gem, rows: Sequence[Row], margin: float | None = None, progress: bool = False
) -> tuple[Figures, list[Answer]]:
    """Figures of answers from given passages, and the answers.

    margin: as for `answer`.
    """
    found, judged = [], []
    with progress_bar("answering", len(rows), progress) as advance:
        for row in rows:
            scores = gem.embed_documents(list(row.passages)) @ gem.embed_queries([row.question])[0]
            hits = [Hit(Chunk("", "", 0, len(passage), passage), float(score))
                    for passage, score in zip(row.passages, scores, strict=True)]  # fmt: skip
            given = answer(gem, row.question, hits, margin=margin, max_tokens=_ANSWER_TOKENS)
            right = [n for n, hit in enumerate(given.hits, start=1)
                     if row.number and hit is hits[row.number - 1]]  # fmt: skip
            found.append(given)
            judged.append(judge(given, row.answer, right))
            advance(1)
    return _shares(judged, [bool(row.number) for row in rows]), found


def end_to_end(
    gem: Gem, texts: Iterable[Text], rows: Iterable[Row], folder: Path,
    margin: float | None = None, progress: bool = False,
) -> tuple[Figures, list[Answer]]:  # fmt: skip
    """Figures of answers from what an index over all texts finds, five passages each.

    rows: such as can be answered.
    folder: for the index.
    margin: as for `answer`.
    """
    index = Index.open(folder, gem)
    documents = [Document(str(n), t.text, t.title) for n, t in enumerate(texts)]
    index.sync(documents, progress=progress)
    titled = defaultdict(list)
    for document in documents:
        titled[document.title].append(document.source)
    questions = [
        Question(row.question, row.answer, tuple(titled[_title(row.passages[row.number - 1])]))
        for row in rows
    ]
    asked = ask_all(
        index, questions, 5, progress=progress, margin=margin, max_tokens=_ANSWER_TOKENS
    )
    return (
        {metric: float(np.mean([a.values[metric] for a in asked]))
         for metric in ("hit", "supported", "match", "citation")},
        [a.answer for a in asked],
    )  # fmt: skip


def _title(passage: str) -> str:
    return passage.split("\n")[0]


def _shares(judged: Sequence[Judgement], answerable: Sequence[bool]) -> Figures:
    asked = [j for j, known in zip(judged, answerable, strict=True) if known]
    others = [j for j, known in zip(judged, answerable, strict=True) if not known]
    return {
        "answerable": float(len(asked)),
        "supported": share([j.supported for j in asked]),
        "matched": share([j.matched for j in asked]),
        "cited": share([j.cited for j in asked]),
        "wrongly refused": share([j.refused for j in asked]),
        "unanswerable": float(len(others)),
        "rightly refused": share([j.refused for j in others]),
    }


def bits_per_byte(folder: str | Path, texts: Sequence[str]) -> Figures:
    """Of a plain language model, each text's first 600 bytes by itself."""
    import torch
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = open_checkpoint(str(folder)).path
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    nats = tokens = size = 0.0
    for text in texts:
        text = text.encode()[:_BYTES].decode(errors="ignore")
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([torch.tensor([[tokenizer.eos_token_id]]), ids], dim=1)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1]
        nats += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
        size += len(text.encode())
    return {
        "bits per byte": nats / math.log(2) / size,
        "perplexity per byte": math.exp(nats / size),
        "perplexity per token": math.exp(nats / tokens),
    }


def generation_kept(gem: Gem, base: Gem, rows: Sequence[Row]) -> bool:
    """Whether scores and texts are the base's bit for bit, with embeddings in between."""
    for row in rows:
        question = f"Question: {row.question}\nAnswer:"
        gem.embed_documents(list(row.passages))
        own, other = (model.score(question, row.passages[:2]) for model in (gem, base))
        texts = [model.generate([question], max_tokens=32)[0].tokens for model in (gem, base)]
        if texts[0] != texts[1] or not np.array_equal(own, other):
            return False
    return True
