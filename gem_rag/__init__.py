"""gem-rag: one set of weights that embeds, retrieves and answers.

Everything that users and adapters touch is here; blocking calls from asyncio are in `gem_rag.aio`,
and what adapters share in `gem_rag.adapters`.
Names are imported on first use, so that `import gem_rag` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gem_rag._utils import moved_modules

__version__ = "0.1.0"

_MODULE_OF = {
    "Answer": "gem_rag.rag.answer",
    "AnswerStyle": "gem_rag.core.config",
    "ChatReply": "gem_rag.generation.replies",
    "Chunk": "gem_rag.documents.document",
    "Citation": "gem_rag.rag.citations",
    "Conversation": "gem_rag.rag.conversation",
    "Document": "gem_rag.documents.document",
    "EngineName": "gem_rag.loading",
    "Gem": "gem_rag.model",
    "GemConfig": "gem_rag.core.config",
    "GemError": "gem_rag.errors",
    "Generation": "gem_rag.generation.sampling",
    "Hit": "gem_rag.rag.hits",
    "Index": "gem_rag.rag.index",
    "InputError": "gem_rag.errors",
    "InvalidToolCall": "gem_rag.generation.replies",
    "Sampling": "gem_rag.generation.sampling",
    "Skipped": "gem_rag.documents.document",
    "Ranking": "gem_rag.rag.search",
    "StoreName": "gem_rag.rag.index",
    "SyncReport": "gem_rag.rag.sync",
    "TextStream": "gem_rag.generation.sampling",
    "TokenLogprob": "gem_rag.generation.sampling",
    "ToolCall": "gem_rag.generation.replies",
    "Turn": "gem_rag.rag.conversation",
    "load": "gem_rag.loading",
}

if TYPE_CHECKING:
    from gem_rag.core.config import AnswerStyle, GemConfig
    from gem_rag.documents.document import Chunk, Document, Skipped
    from gem_rag.errors import GemError, InputError
    from gem_rag.generation.replies import ChatReply, InvalidToolCall, ToolCall
    from gem_rag.generation.sampling import Generation, Sampling, TextStream, TokenLogprob
    from gem_rag.loading import EngineName, load
    from gem_rag.model import Gem
    from gem_rag.rag.answer import Answer
    from gem_rag.rag.citations import Citation
    from gem_rag.rag.conversation import Conversation, Turn
    from gem_rag.rag.hits import Hit
    from gem_rag.rag.index import Index, StoreName
    from gem_rag.rag.search import Ranking
    from gem_rag.rag.sync import SyncReport

__all__ = [
    "Answer",
    "AnswerStyle",
    "ChatReply",
    "Chunk",
    "Citation",
    "Conversation",
    "Document",
    "EngineName",
    "Gem",
    "GemConfig",
    "GemError",
    "Generation",
    "Hit",
    "Index",
    "InputError",
    "InvalidToolCall",
    "Ranking",
    "Sampling",
    "Skipped",
    "StoreName",
    "SyncReport",
    "TextStream",
    "TokenLogprob",
    "ToolCall",
    "Turn",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gem_rag' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


moved_modules.install()
