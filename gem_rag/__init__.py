"""gem-rag: one set of weights that embeds, retrieves and answers.

The public names are imported on first use, so that `import gem_rag` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Gem": "gem_rag.model",
    "load": "gem_rag.model",
    "Generation": "gem_rag.engines.base",
    "GemConfig": "gem_rag.config",
    "GemError": "gem_rag.errors",
    "InputError": "gem_rag.errors",
    "Index": "gem_rag.rag.index",
}
__all__ = [
    "Gem",
    "GemConfig",
    "GemError",
    "Generation",
    "Index",
    "InputError",
    "__version__",
    "load",
]

if TYPE_CHECKING:
    from gem_rag.config import GemConfig
    from gem_rag.engines.base import Generation
    from gem_rag.errors import GemError, InputError
    from gem_rag.model import Gem, load
    from gem_rag.rag.index import Index


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gem_rag' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
