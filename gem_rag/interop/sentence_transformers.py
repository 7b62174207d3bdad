"""`GemModule`: lets sentence-transformers embed with checkpoints that its own modules cannot run.

Importing this module imports sentence-transformers.
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
from gem_rag.errors import InputError
from gem_rag.model import Gem

# sentence-transformers writes these itself.
_NOT_COPIED = ("README.md", "modules.json", "config_sentence_transformers.json")


class GemModule(InputModule):
    """A GEM checkpoint as the only module of a `SentenceTransformer`; it embeds, and cannot train.

    The weights are loaded when they are first needed. Prompts are left to sentence-transformers:
    those of the checkpoint are not added.

    Args:
        folder: The checkpoint.
        **options: Options of `gem_rag.load`. The device is the one that the `SentenceTransformer`
            is on.

    Attributes:
        checkpoint: The opened checkpoint.
        options: As given.

    Raises:
        InputError: The folder holds no model.
    """

    # The name in modules.json of every export; sentence-transformers writes it again on `save`.
    __module__ = "gem_rag.sentence_transformers_module"

    def __init__(self, folder: str | Path, **options: Any) -> None:
        super().__init__()
        self.checkpoint = open_checkpoint(folder)
        self.options = options
        self._max_length: int | None = None
        self._loaded: tuple[str, Gem] | None = None
        # `to`, `cuda` and `cpu` move this buffer, so it knows the device to embed on.
        self.register_buffer("_device_marker", torch.empty(0), persistent=False)

    @property
    def gem(self) -> Gem:
        """The checkpoint, loaded on the device that this module has been moved to."""
        device = str(self._device_marker.device)
        if self._loaded is None or self._loaded[0] != device:
            gem = gem_rag.load(self.checkpoint.path, device=device, **self.options)
            if self._loaded is not None:
                self._loaded[1].close()
            self._loaded = device, gem
        return self._loaded[1]

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:  # type: ignore[override]  # it cannot be replaced
        """The model's tokenizer, which reads everything as plain text."""
        return self.gem.tokenizer

    @property
    def max_seq_length(self) -> int:
        """The most text tokens that are read, those of the prompt included; the rest is cut off."""
        return min(self._max_length or self.gem.max_length, self.gem.max_length)

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self._max_length = value

    def get_embedding_dimension(self) -> int:
        """Length of an embedding."""
        return self.gem.dim

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Tokenize texts.

        Args:
            inputs: The texts.
            prompt: Put before each.
            **kwargs: Ignored.

        Returns:
            "input_ids" and "attention_mask", padded on the right: int64 [texts, tokens].

        Raises:
            InputError: An input is not a text, or is empty.
        """
        rows = []
        for text in inputs:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{text!r:.60} cannot be embedded: give texts that are not empty")
            ids = self.gem.tokenize((prompt or "") + text)
            rows.append(torch.tensor(ids[: self.max_seq_length]))
        masks = [torch.ones_like(row) for row in rows]
        return {
            "input_ids": pad_sequence(rows, batch_first=True),
            "attention_mask": pad_sequence(masks, batch_first=True),
        }

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add "sentence_embedding" to the features: unit vectors, float32 [texts, dim]."""
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        texts = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
        vectors = torch.from_numpy(self.gem.embed_tokens(texts))
        return {**features, "sentence_embedding": vectors.to(ids.device)}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Copy the checkpoint, which never changes here, with a `max_seq_length` set by hand."""
        source, target = self.checkpoint.path, Path(output_path)
        if target.resolve() != source:
            for file in self.checkpoint.files():
                if file not in _NOT_COPIED:
                    (target / file).parent.mkdir(exist_ok=True)
                    shutil.copyfile(source / file, target / file)
        if self._max_length is not None:
            dataclasses.replace(self.checkpoint.config, max_length=self._max_length).save(target)

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
        """Load from a folder or a hub name, as sentence-transformers loads its modules.

        Args:
            model_name_or_path: The folder or hub name.
            subfolder: Where the checkpoint is in it.
            token: Of the hub.
            cache_folder: Of the hub.
            revision: Of a hub model.
            local_files_only: Whether to download nothing.
            init_defaults: Ignored.
            model_kwargs: As for sentence-transformers' own modules, for example "dtype".
            backend: "torch".
            **kwargs: Ignored.

        Raises:
            InputError: The folder cannot be found or holds no model, or another backend is named.
        """
        if backend != "torch":
            raise InputError(f"a GEM checkpoint has no backend {backend!r}: use backend='torch'")
        folder = cls.load_dir_path(
            model_name_or_path, subfolder, token, cache_folder, revision, local_files_only
        )
        if folder is None:
            raise InputError(f"{model_name_or_path} cannot be had: check the name and the network")
        model_kwargs = dict(model_kwargs or {})
        dtype = model_kwargs.pop("dtype", model_kwargs.pop("torch_dtype", "auto"))
        return cls(folder, dtype=dtype, model_kwargs=model_kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights: a process that gets a copy loads them from the folder."""
        return {**self.__dict__, "_loaded": None}
