"""Old homes of modules that examples and notebooks used to import; they work until gem-rag 0.2."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from gem_rag._utils.deprecation import warn_renamed

_MOVED = {
    "gem_rag.attention": "gem_rag.core.attention",
    "gem_rag.chat": "gem_rag.generation.chat",
    "gem_rag.checkpoint": "gem_rag.core.checkpoint",
    "gem_rag.config": "gem_rag.core.config",
    "gem_rag.encoder": "gem_rag.core.encoder",
    "gem_rag.export": "gem_rag.interop.export",
    "gem_rag.layout": "gem_rag.core.layout",
    "gem_rag.notebook": "gem_rag.interop.notebook",
    "gem_rag.rag.documents": "gem_rag.documents.readers",
    "gem_rag.rag.splitting": "gem_rag.documents.splitting",
    "gem_rag.threads": "gem_rag.aio",
}


class _MovedModules:
    """A finder and a loader. The base classes in importlib.abc are left out: they import slowly."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make the module."""

    def exec_module(self, module: ModuleType) -> None:
        new = _MOVED[module.__name__]
        warn_renamed(f"the module {module.__name__}", new, stacklevel=8)
        sys.modules[module.__name__] = importlib.import_module(new)


def install() -> None:
    """Let the old names be imported."""
    sys.meta_path.append(_MovedModules())
