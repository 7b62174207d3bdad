"""`GemRetriever` returns the hits of an index, which accepts its own model only."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode
from llama_index.embeddings.gem import GemRetriever

import gem_rag
from gem_rag import Document, Gem, GemError, Index, InputError

FILES = {
    "files.md": "# Files\n\nOpen a file with open, which returns a stream.",
    "lists.md": "# Lists\n\nSort a list in place with its method sort.",
    "paths.md": "# Paths\n\nJoin two paths with the slash operator.",
}
QUESTION = "how to open a file"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def retriever(gem: Gem, docs: Path, tmp_path: Path) -> GemRetriever:
    retriever = GemRetriever(Index.open(tmp_path / "index", gem), similarity_top_k=2)
    retriever.sync([docs])
    return retriever


def test_passages_are_ranked_by_words_too(gem: Gem, tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index", gem)
    index.sync([Document("a", "The zyx command."), Document("b", "Another one.")])
    for ranking in ("words", "hybrid"):
        [first, *others] = GemRetriever(index, ranking=ranking).retrieve("what is zyx?")
        assert first.node.text == "The zyx command."
        assert len(others) == (ranking == "hybrid")


async def test_nodes_are_the_hits_of_the_index(retriever: GemRetriever) -> None:
    assert isinstance(retriever, BaseRetriever)
    nodes = retriever.retrieve(QUESTION)
    hits = retriever.index.search(QUESTION, 2)
    assert [(n.node_id, n.text, n.score) for n in nodes] == [
        (hit.chunk.id, hit.chunk.text, hit.score) for hit in hits
    ]
    async_nodes = await retriever.aretrieve(QUESTION)
    assert [(n.node_id, n.text) for n in async_nodes] == [(n.node_id, n.text) for n in nodes]


def test_a_node_carries_its_position(retriever: GemRetriever) -> None:
    node = retriever.retrieve(QUESTION)[0].node
    hit = retriever.index.search(QUESTION, 1)[0]
    chunk = hit.chunk
    assert node.metadata == {
        **hit.metadata,
        "source": chunk.source,
        "title": chunk.title,
        "start": chunk.start,
        "stop": chunk.stop,
        "place": hit.place,
    }
    assert hit.place.startswith("line ")
    name = Path(chunk.source).name
    assert FILES[name][node.metadata["start"] : node.metadata["stop"]] == node.get_content()
    assert node.ref_doc_id == chunk.source
    read = node.get_content(MetadataMode.LLM)
    assert "source: " in read
    assert "start" not in read


def test_sync_updates_the_index(retriever: GemRetriever, docs: Path) -> None:
    (docs / "files.md").unlink()
    (docs / "lists.md").write_text("# Lists\n\nReverse a list with reversed.")
    report = retriever.sync([docs, Document("note", "Zebras have stripes.")])
    assert report.added == ["note"]
    assert [Path(source).name for source in report.changed] == ["lists.md"]
    assert [Path(source).name for source in report.removed] == ["files.md"]
    assert [Path(source).name for source in report.unchanged] == ["paths.md"]
    assert report.embedded == 2
    sources = {node.metadata["source"] for node in retriever.retrieve("Zebras have stripes.")}
    assert "note" in sources


def test_an_index_is_opened_by_name(retriever: GemRetriever, gem: Gem, tmp_path: Path) -> None:
    opened = GemRetriever(tmp_path / "index", similarity_top_k=1)
    assert opened.index.gem is gem
    assert [n.node_id for n in opened.retrieve(QUESTION)] == [
        n.node_id for n in retriever.retrieve(QUESTION)[:1]
    ]
    other = GemRetriever(tmp_path / "other", gem, store="chroma")
    assert other.index.manifest.store == "chroma"


def test_an_index_of_another_model_is_refused(
    retriever: GemRetriever, chat_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(GemError, match=r"made by model 'gem-tiny'.*--reembed"):
        GemRetriever(tmp_path / "index", chat_folder).retrieve(QUESTION)
    with pytest.raises(InputError, match="an Index has its model"):
        GemRetriever(retriever.index, chat_folder)


def test_construction_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gem_rag, "load", pytest.fail)
    GemRetriever(tmp_path / "index", "gem-tiny")
    assert not (tmp_path / "index").exists()


def test_an_empty_index_says_so(gem: Gem, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty: add documents"):
        GemRetriever(tmp_path / "index", gem).retrieve(QUESTION)


def test_callbacks_are_called(retriever: GemRetriever) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    manager = CallbackManager([handler])
    GemRetriever(retriever.index, callback_manager=manager).retrieve(QUESTION)
    ((start, _),) = handler.get_event_pairs(CBEventType.RETRIEVE)
    assert start.payload == {"query_str": QUESTION}


def test_a_query_engine_answers_from_it(retriever: GemRetriever) -> None:
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    response = engine.query(QUESTION)
    assert retriever.retrieve(QUESTION)[0].text in str(response)  # the mock returns its prompt
    assert len(response.source_nodes) == 2


async def test_the_event_loop_is_not_blocked(
    retriever: GemRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, proceed = threading.Event(), threading.Event()

    def wait(*args: Any, **kwargs: Any) -> list[Any]:
        started.set()
        assert proceed.wait(timeout=60)
        return []

    monkeypatch.setattr(retriever.index, "search", wait)
    task = asyncio.create_task(retriever.aretrieve(QUESTION))
    while not started.is_set() and not task.done():
        await asyncio.sleep(0.001)
    assert not task.done()
    proceed.set()
    assert await task == []
