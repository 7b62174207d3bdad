"""The module by which sentence-transformers embeds a GEM checkpoint that its own modules cannot.

Folders written by `export` name this class, so its name is part of their format. Importing this
file imports sentence-transformers.

Knows nothing about how such a folder is made.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from sentence_transformers.base.modules import InputModule
from torch.nn.utils.rnn import pad_sequence

import gem_rag
from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.core.layout import Row
from gem_rag.errors import InputError
from gem_rag.model import Gem

# Files beside a checkpoint that sentence-transformers writes itself.
_NOT_COPIED = ("README.md", "modules.json", "config_sentence_transformers.json")


class GemModule(InputModule):
    """A GEM checkpoint as the only module of a `SentenceTransformer`; it embeds, and cannot train.

    folder: the checkpoint.
    options: of `gem_rag.load`; the device is the one that the `SentenceTransformer` is on.

    The weights are loaded when they are first needed. Prompts are left to sentence-transformers:
    those of the checkpoint are not added. Raises InputError if the folder holds no model.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        super().__init__()
        self.checkpoint = open_checkpoint(folder)
        self.options = options
        self._limit: int | None = None
        self._loaded: tuple[str, Gem] | None = None
        # Goes where `to`, `cuda` and `cpu` send the model, and so says where to embed.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def gem(self) -> Gem:
        """The checkpoint, loaded on the device that this module has been sent to."""
        device = str(self._place.device)
        if self._loaded is None or self._loaded[0] != device:
            gem = gem_rag.load(self.checkpoint.path, device=device, **self.options)
            if self._loaded is not None:
                self._loaded[1].close()
            self._loaded = device, gem
        return self._loaded[1]

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:  # type: ignore[override]  # it cannot be replaced
        """The model's tokenizer, for which everything is plain text."""
        return self.gem.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Most text tokens that are read, those of the prompt included; the rest is cut off."""
        return min(self._limit or self.gem.max_length, self.gem.max_length)

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self._limit = value

    def get_embedding_dimension(self) -> int:
        """Length of an embedding."""
        return self.gem.dim

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Token ids of texts, each behind the prompt, padded on the right: [texts, tokens].

        Raises InputError for an input that is no text, or an empty one.
        """
        rows = []
        for text in inputs:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{text!r:.60} cannot be embedded: give texts that are not empty")
            ids = self.gem.encode((prompt or "") + text)
            rows.append(torch.tensor(ids[: self.max_seq_length]))
        return {
            "input_ids": pad_sequence(rows, batch_first=True),
            "attention_mask": pad_sequence(
                [torch.ones_like(row) for row in rows], batch_first=True
            ),
        }

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds "sentence_embedding": unit vectors, float32 [texts, dim]."""
        ids, real = features["input_ids"], features["attention_mask"].bool()
        rows = [Row.whole(row[mask].tolist()) for row, mask in zip(ids, real, strict=True)]
        vectors = torch.from_numpy(self.gem._engine.embed(rows))
        return {**features, "sentence_embedding": vectors.to(ids.device)}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Copy the checkpoint, which nothing here can have changed; `max_seq_length` goes along."""
        source, target = self.checkpoint.path, Path(output_path)
        if target.resolve() != source:
            for file in self.checkpoint.files():
                if file not in _NOT_COPIED:
                    (target / file).parent.mkdir(exist_ok=True)
                    shutil.copyfile(source / file, target / file)
        if self._limit is not None:
            dataclasses.replace(self.checkpoint.config, max_length=self._limit).save(target)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> GemModule:
        """From a folder or a hub name, as sentence-transformers loads its modules.

        model_kwargs: as for its own modules; "dtype" is the one to know.
        """
        if backend != "torch":
            raise InputError(f"a GEM checkpoint has no backend {backend!r}: use backend='torch'")
        folder = cls.load_dir_path(
            model_name_or_path, subfolder, token, cache_folder, revision, local_files_only
        )
        if folder is None:
            raise InputError(f"{model_name_or_path} cannot be had: check the name and the network")
        settings = dict(model_kwargs or {})
        dtype = settings.pop("dtype", settings.pop("torch_dtype", "auto"))
        return cls(folder, dtype=dtype, model_kwargs=settings)

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights: a process that gets a copy loads them from the folder."""
        return {**self.__dict__, "_loaded": None}
