"""Stage `sequences`: texts and rows as sequences of tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gem_rag._utils.files import write_atomically
from gem_tiny.files import read_jsonl
from gem_tiny.prompts import format_completion, format_prompt
from gem_tiny.stages.options import WORK, Work
from gem_tiny.stages.work_folder import load_tokenizer, require, show

if TYPE_CHECKING:
    from gem_tiny.texts import Text

T = TypeVar("T")
TokenRow = tuple[list[int], list[int]]  # ids of a prompt and of its completion

DOCUMENT_LENGTH = 512  # documents are short, and shorter sequences take less attention
ANSWER_WEIGHT = 8  # of an answer's token in the loss, relative to any other
_HELD_OUT_TEXTS = 2000
_ENCODING_BATCH = 1000


def sequences(work: Work = WORK) -> None:
    """Write documents, rows and held-out docstrings as sequences of tokens, with counts.

    Half of the question rows and of the calls are for the stage `language-model`, the others for
    `answering`.
    """
    from gem_tiny.packing import pack_documents, pack_rows
    from gem_tiny.pretraining import ModelShape
    from gem_tiny.texts import load_texts
    from gem_tiny.tokenizer_training import EOS_ID, PAD_ID

    encoder = _CountingEncoder(work)
    texts = load_texts(work / "corpus.jsonl")
    training = [text for text in texts if not text.held_out]
    held_out = [text for text in texts if text.held_out][:_HELD_OUT_TEXTS]
    questions = encoder.encode_rows("questions", _format_question)
    calls = encoder.encode_rows("calls", encoder.format_conversation)
    talk = encoder.encode_rows("talk", encoder.format_conversation)
    first_half = chain(
        islice(questions, _count_lines(work, "questions") // 2),
        islice(calls, _count_lines(work, "calls") // 2),
    )
    pack_documents(encoder.encode_texts(training), DOCUMENT_LENGTH, EOS_ID).save(
        work / "documents.npz"
    )
    pack_documents(encoder.encode_texts(held_out), ModelShape.context, EOS_ID).save(
        work / "held-out.npz"
    )
    pack = partial(
        pack_rows,
        length=ModelShape.context,
        eos=EOS_ID,
        pad=PAD_ID,
        answer_weight=ANSWER_WEIGHT,
    )
    pack(first_half).save(work / "rows.npz")
    pack(chain(questions, calls, talk)).save(work / "more-rows.npz")
    counts = encoder.counts()
    write_atomically(work / "sequences.json", json.dumps(counts, indent=2) + "\n")
    show(counts)


class _CountingEncoder:
    """Tokenizes texts and rows, and counts the tokens and bytes of each source."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._tokenizer = load_tokenizer(work)
        self._tokens: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def encode_texts(self, texts: list[Text]) -> Iterator[list[int]]:
        for batch in _batch(texts, _ENCODING_BATCH):
            for text, ids in zip(batch, self._encode([t.document for t in batch]), strict=True):
                source = "held out" if text.held_out else text.source
                self._tokens[source] += len(ids)
                self._bytes[source] += len(text.document.encode())
                yield ids

    def encode_rows(
        self, name: str, format_row: Callable[[Any], tuple[str, str]]
    ) -> Iterator[TokenRow]:
        """Encode the rows of a file.

        Args:
            name: Name of the file.
            format_row: Makes a prompt and a completion of a row.

        Yields:
            Token ids of the prompt, and of the completion.
        """
        rows = read_jsonl(require(self._work / f"{name}.jsonl", name))
        for batch in _batch(map(format_row, rows), _ENCODING_BATCH):
            prompts, completions = (self._encode(list(texts)) for texts in zip(*batch, strict=True))
            self._tokens[name] += sum(map(len, (*prompts, *completions)))
            yield from zip(prompts, completions, strict=True)

    def format_conversation(self, row: Any) -> tuple[str, str]:
        prompt = self._tokenizer.apply_chat_template(row["messages"], tokenize=False)
        return prompt, row["completion"]

    def counts(self) -> dict[str, dict[str, int]]:
        """Tokens of each source, and bytes of each source of texts."""
        return {
            "tokens": dict(self._tokens.most_common()),
            "bytes": dict(self._bytes.most_common()),
        }

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encodings = self._tokenizer.backend_tokenizer.encode_batch_fast(texts)
        return [encoding.ids for encoding in encodings]


def _format_question(row: Any) -> tuple[str, str]:
    completion = format_completion(row["answer"], row["number"])
    return format_prompt(row["passages"], row["question"]), completion


def _count_lines(work: Path, name: str) -> int:
    with require(work / f"{name}.jsonl", name).open(encoding="utf-8") as lines:
        return sum(1 for _ in lines)


def _batch(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
