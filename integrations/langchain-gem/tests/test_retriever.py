"""`GemRetriever`: retrieval from an index, with the model of the index only."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_gem import GemRetriever
from pydantic import ValidationError
from standard import DOCUMENTS, other_model

from gem_rag import Document, Gem, GemError, Index, InputError


def test_documents_carry_their_position(tmp_path: Path, gem: Gem) -> None:
    retriever = GemRetriever(index=tmp_path / "index", k=2)
    retriever.sync(DOCUMENTS)
    documents = retriever.invoke("how to open a file")
    hits = retriever.index.search("how to open a file", 2)
    assert [d.page_content for d in documents] == [hit.chunk.text for hit in hits]
    first = documents[0]
    assert first.id == hits[0].chunk.id
    assert first.metadata == {
        "source": "files",
        "title": "",
        "start": 0,
        "stop": len(DOCUMENTS[0].text),
        "place": "",
        "score": hits[0].score,
    }


def test_passages_are_ranked_by_words_too(tmp_path: Path, gem: Gem) -> None:
    retriever = GemRetriever(index=str(tmp_path / "index"), model=gem, k=3, ranking="words")
    retriever.sync([Document("a", "The zyx command."), Document("b", "Another one.")])
    assert [d.metadata["source"] for d in retriever.invoke("what is zyx?")] == ["a"]
    hybrid = GemRetriever(index=retriever.index, ranking="hybrid")
    assert hybrid.invoke("what is zyx?")[0].metadata["source"] == "a"


def test_sync_follows_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for document in DOCUMENTS:
        (folder / f"{document.source}.txt").write_text(document.text)
    retriever = GemRetriever(index=tmp_path / "index", store="chroma")
    assert len(retriever.sync([folder]).added) == 4
    (folder / "files.txt").write_text("pathlib.Path.open opens a file.")
    (folder / "loops.txt").unlink()
    report = retriever.sync([folder])
    assert (report.changed, report.removed) == (["texts/files.txt"], ["texts/loops.txt"])
    assert report.embedded == 1
    assert retriever.invoke("open a file", k=1)[0].page_content.startswith("pathlib")


def test_an_index_or_its_folder(tmp_path: Path, gem: Gem) -> None:
    index = Index.open(tmp_path / "index", gem)
    index.sync(DOCUMENTS)
    given = GemRetriever(index=index)
    assert given.index is index
    assert given.gem is gem
    with pytest.raises(ValidationError, match="leave model out"):
        GemRetriever(index=index, model="gem-tiny")
    opened = GemRetriever(index=str(tmp_path / "index"))
    assert opened.index is opened.index is not index
    assert opened.invoke("a list") == given.invoke("a list")


def test_an_index_of_another_model_is_refused(tmp_path: Path, gem: Gem) -> None:
    GemRetriever(index=tmp_path).sync(DOCUMENTS)
    other = GemRetriever(index=tmp_path, model=other_model(prompts=("q: ", "d: ")))
    with pytest.raises(GemError, match="made by model 'gem-tiny'"):
        other.invoke("a list")


def test_invalid_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="index"):
        GemRetriever()
    with pytest.raises(ValidationError, match="stroe"):
        GemRetriever(index=tmp_path, stroe="faiss")
    with pytest.raises(InputError, match="is empty"):
        GemRetriever(index=tmp_path).invoke("a list")
    retriever = GemRetriever(index=tmp_path)
    retriever.sync(DOCUMENTS)
    with pytest.raises(InputError, match="k must be at least 1"):
        retriever.invoke("a list", k=0)
