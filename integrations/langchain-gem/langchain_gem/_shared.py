"""What all adapters have in common: a model that is named or given, and loaded at its first use.

Knows nothing about what the model is used for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, model_validator

import gem_rag
from gem_rag.model import EngineName, Gem

T = TypeVar("T")


class Held:
    """What an adapter has made so far, by what it was made from. Safe from many threads.

    Shallow copies of an adapter share it. Deep copies and pickles leave it behind, so they never
    hold weights; what they need is made again.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._lock = threading.RLock()  # making one thing may ask for another

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made under this key; made now if it is the first time."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            made: T = self._made[key]
            return made

    def __eq__(self, other: object) -> bool:  # adapters are equal by their settings
        return isinstance(other, Held)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return Held, ()


class GemModel(BaseModel):
    """The fields that say which model.

    model: a name that `gem_rag.load` knows (bundled, a folder, on the hub), or a `Gem`, whose
        owner closes it. The same name is the same weights, in every adapter of the process.
    engine, model_kwargs: how a named model is loaded: `gem_rag.load`'s engine and options.
    cache_folder: where models from the hub are kept, if not in the hub's own place.
    held: what has been loaded; leave it out.
    """

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
    )

    model_name: str = Field(default="gem-tiny", alias="model")
    engine: EngineName = "auto"
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    cache_folder: str | None = None
    held: Held = Field(default_factory=Held, exclude=True, repr=False)

    @property
    def gem(self) -> Gem:
        """The shared instance. Raises InputError if there is no such model."""
        return self._loaded(None)

    def _loaded(self, model: str | Path | Gem | None) -> Gem:
        """A model that a call names, or else the adapter's own."""
        if isinstance(model, Gem):
            return model
        name = str(model or self.model_name)
        return self.held.get(self._recipe(name), lambda: self._load(name))

    def _load(self, name: str) -> Gem:
        options = dict(self.model_kwargs)
        if self.cache_folder is not None:
            options["cache_folder"] = self.cache_folder
        return gem_rag.load(name, self.engine, **options)

    def _recipe(self, name: str) -> Hashable:
        return name, self.engine, repr(self.model_kwargs), self.cache_folder

    @model_validator(mode="wrap")
    @classmethod
    def _take_gem(cls, values: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        """Of a `Gem` the field gets the name, under which it is found from now on."""
        if not isinstance(values, Mapping):
            return make(values)
        field = "model" if "model" in values else "model_name"
        given = values.get(field)
        if isinstance(given, Gem | Path):
            name = given.name if isinstance(given, Gem) else str(given)
            values = {**values, field: name}
        made = make(values)
        if isinstance(given, Gem):
            made.held.get(made._recipe(given.name), lambda: given)
        return made
