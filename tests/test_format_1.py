"""An index of format 1: it opens as it is, and nothing is embedded again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import faiss
import pytest
from fakes import FakeGem

from gem_rag.documents.document import Document
from gem_rag.rag.index import Index

TEXT = (
    "# Pump guide\n\nA pump moves water.\n\n## Cleaning\n\nRinse the filter with clean water with "
    "clean water with clean water .\n"
)
SPANS = [[0, 33], [48, 109], [110, 117]]
TITLES = ["", "Pump guide > Cleaning", "Pump guide > Cleaning"]
IDS = [  # as they were computed
    "3505dc77f0cd4213a5f7df10d99827bd",
    "c181a471cc6eec235e90213671baeb49",
    "37c2d9b7cf95159d746225175a879e0a",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the commit before format 2 wrote for one Markdown file, which is here too."""
    folder = tmp_path / "index"
    folder.mkdir()
    record = {"source": "docs/guide.md", "text": TEXT, "title": "Pump guide", "kind": "markdown"}
    documents = folder / "documents-1.jsonl"
    documents.write_text(json.dumps({**record, "spans": SPANS}) + "\n")
    gem = FakeGem()
    passages = [
        f"{title}\n{TEXT[start:stop]}" if title else TEXT[start:stop]
        for title, (start, stop) in zip(TITLES, SPANS, strict=True)
    ]
    index = faiss.IndexFlatIP(gem.dim)
    index.add(gem.embed_queries(passages))
    vectors = folder / "vectors-1.faiss"
    faiss.write_index(index, str(vectors))
    manifest = {
        "model": gem.name,
        "fingerprint": gem.fingerprint,
        "dim": gem.dim,
        "store": "faiss",
        "chunk_tokens": 16,
        "generation": 1,
        "documents": 1,
        "chunks": 3,
        "files": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (documents, vectors)
        },
        "metric": "cosine",
        "format_version": 1,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text(TEXT)
    return folder


def test_it_opens_unchanged(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    gem = FakeGem()
    hits = Index.open(folder, gem).search("with clean water", 3)  # type: ignore[arg-type]
    assert {hit.chunk.id: hit.chunk.title for hit in hits} == dict(zip(IDS, TITLES, strict=True))
    assert hits[0].chunk.id == IDS[1]
    assert gem.embedded == []
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_sync_embeds_only_what_is_new(folder: Path) -> None:
    gem = FakeGem()
    index = Index.open(folder, gem)  # type: ignore[arg-type]
    report = index.sync([folder.parent / "docs", Document("new", "A lamp gives light.")])
    assert (report.unchanged, report.added) == (["docs/guide.md"], ["new"])
    assert gem.embedded == ["A lamp gives light."]
    reopened = Index.open(folder, FakeGem())  # type: ignore[arg-type]
    assert reopened.search("with clean water", 1)[0].chunk.id == IDS[1]
