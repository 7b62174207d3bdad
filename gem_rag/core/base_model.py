"""`adapter_config.json`: which base model an adapter-only checkpoint runs on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gem_rag.errors import InputError

FILE = "adapter_config.json"
TYPE = "GEM"
_OPTIONAL = ("revision", "base_weights_sha256", "dtype")


@dataclass(frozen=True)
class BaseModel:
    """The base of an adapter; peft's keys where it has them.

    Attributes:
        name: Its hub name or folder, "base_model_name_or_path".
        revision: On the hub.
        weights: Hash of the weights that were trained on (`tensors.weights_hash`), or None.
        dtype: Of the weights that an adapter of the scope `lora` is merged into, or None.
    """

    name: str
    revision: str | None = None
    weights: str | None = None
    dtype: str | None = None

    def save(self, folder: Path) -> None:
        """Write `adapter_config.json`."""
        state = {
            "peft_type": TYPE,
            "base_model_name_or_path": self.name,
            "revision": self.revision,
            "base_weights_sha256": self.weights,
            "dtype": self.dtype,
            "inference_mode": True,
        }
        (folder / FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> BaseModel | None:
        """Read a folder's `adapter_config.json`; None if it has none of ours.

        Other keys are not read: nothing in the file names code to run.

        Raises:
            InputError: It is ours, and cannot be used.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON ({error}): restore the file") from None
        if not isinstance(state, dict) or state.get("peft_type") != TYPE:
            return None
        name = state.get("base_model_name_or_path")
        if not isinstance(name, str) or not name.strip():
            raise InputError(
                f"{path} does not say which model the adapter is for: restore the file"
            )
        return cls(name, *(_text(state, key, path) for key in _OPTIONAL))


def _text(state: dict[str, Any], key: str, path: Path) -> str | None:
    value = state.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{path}: {key} must be text or null, not {value!r}")
    return value
