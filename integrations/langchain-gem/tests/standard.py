"""langchain-tests' suites for the adapters; test files subclass them for an engine."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_gem import ChatGem, GemEmbeddings, GemRetriever
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
)

from gem_rag import Document
from gem_rag.assets import GEM_TINY

DOCUMENTS = [
    Document("files", "open(path) returns a file object; close it when you are done."),
    Document("lists", "list.append(x) adds an item to the end of the list."),
    Document("dicts", "dict.get(key) returns None where the key is missing."),
    Document("loops", "A for statement runs its body once for every item."),
]


@cache
def scratch_folder() -> Path:
    """A temporary folder of this process."""
    return Path(tempfile.mkdtemp(prefix="langchain-gem-"))


@cache
def other_model(without_template: bool = False, prompts: tuple[str, str] = ("", "")) -> str:
    """A copy of gem-tiny under another name, with prompts for queries and for documents."""
    folder = Path(tempfile.mkdtemp(prefix="model-", dir=scratch_folder()))
    shutil.copytree(GEM_TINY.folder, folder, dirs_exist_ok=True)
    if without_template:
        (folder / "chat_template.jinja").unlink()
    path = folder / "gem_config.json"
    config = json.loads(path.read_text())
    config["prompts"] = dict(zip(("query", "document"), prompts, strict=True))
    path.write_text(json.dumps(config))
    return str(folder)


@cache
def index_folder() -> str:
    """The folder of an index built with gem-tiny."""
    retriever = GemRetriever(index=scratch_folder() / "index")
    retriever.sync(DOCUMENTS)
    return retriever.folder


class EmbeddingsSuite(EmbeddingsIntegrationTests):
    options: ClassVar[dict[str, Any]] = {}

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return GemEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "gem-tiny", **self.options}


class ChatSuite(ChatModelIntegrationTests):
    options: ClassVar[dict[str, Any]] = {}

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatGem

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "gem-tiny", **self.options}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return other_model()


class RetrieverSuite(RetrieversIntegrationTests):
    options: ClassVar[dict[str, Any]] = {}

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return GemRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": index_folder(), "model": "gem-tiny", **self.options}

    @property
    def retriever_query_example(self) -> str:
        return "how to open a file"
