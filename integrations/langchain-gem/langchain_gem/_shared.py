"""The base of all adapters: which model they use, loaded on first use and shared by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, model_validator

import gem_rag
from gem_rag import EngineName, Gem
from gem_rag.adapters import without_secrets

T = TypeVar("T")


class ResourceCache:
    """Models and indexes that an adapter has opened, by the settings they were opened with.

    Thread-safe. Shallow copies of an adapter share its cache. Deep copies and pickles start with
    an empty one, so that they never contain weights; they reopen what they need.
    """

    def __init__(self) -> None:
        self._resources: dict[Hashable, Any] = {}
        self._lock = threading.RLock()  # creating an index loads its model through the same cache

    def get_or_create(self, key: Hashable, create: Callable[[], T]) -> T:
        """The resource stored under `key`, created on the first call."""
        with self._lock:
            if key not in self._resources:
                self._resources[key] = create()
            resource: T = self._resources[key]
            return resource

    def __eq__(self, other: object) -> bool:  # adapters with equal settings are equal
        return isinstance(other, ResourceCache)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return ResourceCache, ()


class GemModel(BaseModel):
    """Base class of the adapters: the fields that select a model.

    Attributes:
        model_name: A name that `gem_rag.load` accepts (bundled, a local folder, or a hub name).
            The argument `model` also takes a `Gem`, which its owner closes. Adapters with the same
            name and options share one set of weights within a process.
        engine: What runs a named model, as in `gem_rag.load`.
        model_kwargs: Further options of `gem_rag.load` for a named model.
        cache_folder: Where hub models are stored, if not in the hub's default cache.
        resources: Internal cache of loaded models; never serialized.
    """

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
    )

    _positional: ClassVar[str] = "model"

    model_name: str = Field(default="gem-tiny", alias="model")
    engine: EngineName = "auto"
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    cache_folder: str | None = None
    resources: ResourceCache = Field(default_factory=ResourceCache, exclude=True, repr=False)

    def __init__(self, *positional: Any, **settings: Any) -> None:
        if positional:
            [settings[self._positional]] = positional
        super().__init__(**settings)

    @property
    def gem(self) -> Gem:
        """The shared model, loaded on first access.

        Raises:
            InputError: There is no such model.
        """
        return self._resolve_model(None)

    def _resolve_model(self, model: str | Path | Gem | None) -> Gem:
        """The model that a call asks for, or the adapter's own."""
        if isinstance(model, Gem):
            return model
        name = str(model or self.model_name)
        return self.resources.get_or_create(self._model_key(name), lambda: self._load(name))

    def _load(self, name: str) -> Gem:
        options = dict(self.model_kwargs)
        if self.cache_folder is not None:
            options["cache_folder"] = self.cache_folder
        return gem_rag.load(name, self.engine, **options)

    def to_json(self) -> Any:
        """As LangChain's, which traces hold: without secrets such as the hub's token."""
        written: Any = super().to_json()  # type: ignore[misc]
        if "model_kwargs" in written.get("kwargs", {}):
            written["kwargs"]["model_kwargs"] = without_secrets(self.model_kwargs)
        return written

    def _model_key(self, name: str) -> Hashable:
        return name, self.engine, repr(self.model_kwargs), self.cache_folder

    @model_validator(mode="wrap")
    @classmethod
    def _accept_gem(cls, values: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        """Accept a `Gem` or a path as `model`: the field holds its name, the cache the `Gem`."""
        if not isinstance(values, Mapping):
            return build(values)
        field = "model" if "model" in values else "model_name"
        model = values.get(field)
        if isinstance(model, Gem | Path):
            name = model.name if isinstance(model, Gem) else str(model)
            values = {**values, field: name}
        adapter = build(values)
        if isinstance(model, Gem):
            adapter.resources.get_or_create(adapter._model_key(model.name), lambda: model)
        return adapter
