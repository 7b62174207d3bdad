"""What a server answers from: a model and indexes, by the names that requests call them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gem_rag._utils.suggestions import did_you_mean
from gem_rag.errors import GemError, InputError
from gem_rag.model import Gem
from gem_rag.rag.index import Index
from gem_rag.server.embedding_codec import EmbeddingCodec
from gem_rag.server.errors import ApiError
from gem_rag.server.settings import Settings

PREFIX = "rag/"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ServedIndex:
    """An index that is served.

    Attributes:
        name: What requests call it.
        index: The index.
    """

    name: str
    index: Index
    _writing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def model(self) -> str:
        """The chat model that answers from it."""
        return f"{PREFIX}{self.name}"

    @property
    def uploads(self) -> Path:
        """Where files that clients send are kept, beside the index, which syncs them."""
        return self.index.folder.with_name(f"{self.index.folder.name}-uploads")

    @contextmanager
    def writing(self) -> Iterator[Index]:
        """The index, for a writer. Raises ApiError while another request writes."""
        if not self._writing.acquire(blocking=False):
            raise ApiError(
                f"the index {self.name!r} is being synced: try again when that has ended",
                status=409,
                headers={"Retry-After": "5"},
            )
        try:
            yield self.index
        except InputError:
            raise
        except GemError as error:  # another process writes, or the disk is full
            raise ApiError(str(error), status=409) from error
        finally:
            self._writing.release()


class IndexFolder(NamedTuple):
    """An index as a command line names it: NAME=FOLDER, or a folder that gives it its own name."""

    name: str
    folder: Path

    @classmethod
    def parse(cls, given: str) -> IndexFolder:
        """Raises InputError if the name cannot be part of a model's."""
        name, found, folder = given.partition("=")
        path = Path(folder if found else given).expanduser().absolute()
        name = name if found else path.name
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} cannot be an index's name: give it one of letters, digits, '.', '_' and "
                f"'-', as in --index docs={path}"
            )
        return cls(name, path)


@dataclass(frozen=True)
class Catalog:
    """A model and indexes.

    Attributes:
        gem: The model.
        names: What requests may call it; the first is its own.
        indexes: By name.
        codec: Reads embedding requests.
        settings: What is allowed.
    """

    gem: Gem
    names: Sequence[str]
    indexes: Mapping[str, ServedIndex]
    codec: EmbeddingCodec
    settings: Settings

    @classmethod
    def open(
        cls,
        gem: Gem,
        folders: Sequence[IndexFolder] = (),
        settings: Settings | None = None,
        *,
        names: Sequence[str] = (),
        codec: EmbeddingCodec | None = None,
    ) -> Catalog:
        """Open the indexes.

        Args:
            gem: The model.
            folders: The indexes' names and folders.
            settings: What is allowed.
            names: What requests may call the model; default its own name.
            codec: Reads embedding requests; default one for the model.

        Raises:
            InputError: Two indexes have one name, or a folder is no index.
            GemError: An index is of another model, or damaged.
        """
        indexes: dict[str, ServedIndex] = {}
        for name, folder in folders:
            if name in indexes:
                raise InputError(f"two indexes are called {name!r}: name one, as in --index b=DIR")
            indexes[name] = ServedIndex(name, Index.open(folder, gem, create=False))
        names = list(names) or [gem.name]
        codec = codec or EmbeddingCodec.of(gem, names)
        return cls(gem, names, indexes, codec, settings or Settings())

    @property
    def models(self) -> list[str]:
        """All names of models."""
        return [*self.names, *(served.model for served in self.indexes.values())]

    def check_model(self, name: str | None) -> None:
        """Raise ApiError if a request does not call the model by one of its names."""
        if name is not None and name not in self.names:
            raise self.unknown_model(name)

    def unknown_model(self, name: str) -> ApiError:
        """What to tell a client that asks for a model that is not here."""
        return ApiError(
            f"there is no model {name!r} here{did_you_mean(name, self.models)}: use "
            f"{' or '.join(map(repr, self.models))}",
            param="model",
            status=404,
        )

    def index(self, name: str | None) -> ServedIndex:
        """An index by its name, which may be left out if there is one. Raises ApiError."""
        if not self.indexes:
            raise ApiError(
                "this server has no index: start it with --index DIR", param="index", status=404
            )
        if name is None and len(self.indexes) == 1:
            return next(iter(self.indexes.values()))
        known = ", ".join(map(repr, self.indexes))
        if name is None:
            raise ApiError(f"there are several indexes: give index, one of {known}", param="index")
        if name not in self.indexes:
            raise ApiError(
                f"there is no index {name!r}{did_you_mean(name, self.indexes)}: use {known}",
                param="index",
                status=404,
            )
        return self.indexes[name]

    def check_question(self, question: str) -> None:
        """Raise ApiError for a question of which only the beginning would be searched for."""
        tokens = len(self.gem.tokenize_query(question))
        if tokens > self.gem.max_length:
            raise ApiError(
                f"the question has {tokens} tokens and the model embeds at most "
                f"{self.gem.max_length}: ask a shorter one",
                param="question",
            )

    def check_count(self, name: str, count: int) -> None:
        """Raise ApiError if a request has more inputs than are allowed."""
        if count > self.settings.max_inputs:
            raise ApiError(
                f"{name} has {count:,} entries and {self.settings.max_inputs:,} are allowed: send "
                "several requests",
                param=name,
            )


class Service:
    """What the routes of an app share: the catalog, once there is one, and whether it works.

    Attributes:
        settings: What is allowed.
        failure: Why the engine answers nothing more; empty as long as it does.
        on_failure: Called when that comes to be.
    """

    def __init__(self, settings: Settings, catalog: Catalog | None = None) -> None:
        self.settings = settings
        self.failure = ""
        self.on_failure: Callable[[], None] = lambda: None
        self._catalog = catalog

    @property
    def catalog(self) -> Catalog:
        """What is served. Raises ApiError while there is nothing, or the engine is dead."""
        if self.failure:
            raise ApiError(self.failure, status=503)
        if self._catalog is None:
            raise ApiError("this server runs no engine", status=503)
        return self._catalog

    @catalog.setter
    def catalog(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def fail(self, reason: str) -> None:
        """Answer nothing more: the engine is dead."""
        self.failure = reason
        self.on_failure()
