"""`GemReranker`: documents in a better order, by the model that found them."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document

from gem_rag.adapters import best_first
from gem_rag.aio import run_in_thread
from langchain_gem._shared import GemModel


class GemReranker(GemModel, BaseDocumentCompressor):
    """Reads each document together with the question, and fuses what it finds with the order that
    they came in.

    Attributes:
        top_n: How many documents to keep; None for all.
    """

    model_config = GemModel.model_config

    top_n: int | None = None

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Put documents in a better order.

        Args:
            documents: Best first, as they were found.
            query: The question.
            callbacks: Ignored.

        Returns:
            The best `top_n` documents, best first.
        """
        order = best_first(self.gem, query, [document.page_content for document in documents])
        return [documents[place] for place in order[: self.top_n]]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """As `compress_documents`, in a thread."""
        return await run_in_thread(self.compress_documents, documents, query)
