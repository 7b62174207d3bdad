"""What a model's embeddings are measured beside: mean pooling without training, BM25, and
sentence-transformers models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gem_rag._utils.suggestions import did_you_mean
from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.errors import InputError
from gem_rag.evaluation.words import WordIndex

FloatArray = npt.NDArray[np.float32]
_BATCH = 32


class Embedder(Protocol):
    """What retrieval and mteb need of a model; a `Gem` has it."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def truncation(self) -> str: ...
    def embed_queries(self, texts: Sequence[str], /) -> FloatArray: ...
    def embed_documents(self, texts: Sequence[str], /) -> FloatArray: ...


class MeanPooled:
    """A plain language model with the mean of its last layer as embedding.

    folder: of the model.
    max_length: most tokens of a text.
    """

    truncation = "truncate"

    def __init__(self, folder: Path, max_length: int = 512) -> None:
        from transformers import AutoTokenizer

        from gem_rag.core.auto_model import load_language_model
        from gem_rag.core.encoder import output_width

        model = load_language_model(folder, dtype="float32")
        self._model = model.base_model.eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        config = model.config.get_text_config()
        self.max_length = min(max_length, getattr(config, "max_position_embeddings", max_length))
        self.name, self.fingerprint = f"mean pooling of {folder.name}", _fingerprint(folder)
        self.dim = output_width(model)

    def embed_queries(self, texts: Sequence[str]) -> FloatArray:
        """Unit rows [n, dim]."""
        rows = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return self.embed([row[: self.max_length] for row in rows])

    embed_documents = embed_queries

    def embed(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        """Unit rows [n, dim] of texts as token ids."""
        import torch

        found = np.empty((len(rows), self.dim), np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for first in range(0, len(rows), _BATCH):
            places = order[first : first + _BATCH]
            longest = len(rows[places[-1]])
            # Padded at the end, where a causal model's tokens do not look.
            ids = torch.tensor([[*rows[i], *[0] * (longest - len(rows[i]))] for i in places])
            own = torch.tensor([[j < len(rows[i]) for j in range(longest)] for i in places])
            with torch.inference_mode():
                hidden = self._model(ids, use_cache=False).last_hidden_state
            means = (hidden * own[..., None]).sum(1) / own.sum(1, keepdim=True)
            found[places] = torch.nn.functional.normalize(means, dim=-1).numpy()
        return found


def baseline(name: str, model: str, max_length: int) -> Embedder:
    """ "mean-pooling" of a model's weights, or a sentence-transformers folder.

    Raises InputError for any other name.
    """
    if name == "mean-pooling":
        return MeanPooled(open_checkpoint(model).path, max_length)
    if not Path(name).is_dir():
        known = ("mean-pooling", "bm25")
        raise InputError(f"there is no baseline {name!r}{did_you_mean(name, known)}: give "
                         f"{', '.join(known)}, or a sentence-transformers folder")  # fmt: skip
    return SentenceTransformer(name)


def mean_pooled(folder: Path, *groups: Sequence[Sequence[int]]) -> list[FloatArray]:
    """Mean of a plain model's last layer, the usual embedding of one that has not been trained.

    folder: of the model. groups: token ids of texts; for each group unit rows [n, hidden].
    """
    model = MeanPooled(folder)
    return [model.embed(rows) for rows in groups]


class SentenceTransformer:
    """A sentence-transformers model, with its own prompts for queries and documents if it has any.

    folder: of the model.
    """

    truncation = "truncate"

    def __init__(self, folder: str | Path) -> None:
        from sentence_transformers import SentenceTransformer as Model

        self._model: Any = Model(str(folder))
        self.name, self.fingerprint = Path(folder).name, _fingerprint(Path(folder))
        self.dim = int(self._model.get_embedding_dimension() or 0)
        self.max_length = int(self._model.max_seq_length or 0)

    def embed_queries(self, texts: Sequence[str]) -> FloatArray:
        """Unit rows [n, dim]."""
        found = self._model.encode_query(list(texts), normalize_embeddings=True)
        return np.asarray(found, np.float32)

    def embed_documents(self, texts: Sequence[str]) -> FloatArray:
        """Unit rows [n, dim]."""
        found = self._model.encode_document(list(texts), normalize_embeddings=True)
        return np.asarray(found, np.float32)


def _fingerprint(folder: Path) -> str:
    """Another one where a file is; reading all weights would take longer than it is worth."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    stats = [(str(file.relative_to(folder)), file.stat()) for file in files]
    key = repr([(name, found.st_size, found.st_mtime_ns) for name, found in stats])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def bm25(queries: Sequence[str], documents: Sequence[str]) -> FloatArray:
    """BM25 scores, [queries, documents]; 0 where a document has none of the words."""
    return WordIndex(documents).scores(queries)


def bm25_shares(queries: Sequence[str], documents: Sequence[str]) -> FloatArray:
    """As `bm25`, in the form in which `fuse_scores` takes them."""
    return WordIndex(documents).shares(queries)


def bm25_hits(
    queries: Sequence[str], documents: Sequence[str], depth: int
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Rows and scores of the documents that BM25 finds for each query, best first:
    [queries, depth]."""
    return WordIndex(documents).search(queries, depth)
