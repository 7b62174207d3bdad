"""Indexes of formats 1 and 2: they open as they are, and nothing is embedded again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import chromadb
import faiss
import numpy as np
import pytest
from chromadb.config import Settings
from fakes import FakeGem

from gem_rag.documents.document import Document
from gem_rag.errors import GemError
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


FORMAT_2 = Path(__file__).parent / "files" / "index-of-format-2"  # as gem-rag wrote it


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


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FORMAT_2, tmp_path / "index"))


def found(folder: Path, gem: FakeGem) -> list[tuple[str, str, float, str]]:
    index = Index.open(folder, gem, create=False)  # type: ignore[arg-type]
    return [
        (hit.chunk.source, hit.chunk.title, round(hit.score, 4), hit.place)
        for hit in index.search("clean water", 3)
    ]


WANTED = [  # as that version found them
    ("docs/guide.md", "Pump guide > Cleaning", 0.2693, "line 5"),
    ("docs/guide.md", "Pump guide", 0.0774, "line 1"),
    ("note", "", -0.0876, ""),
]


def test_format_2_opens_unchanged(second: Path) -> None:
    before = {file.name: file.read_bytes() for file in second.iterdir()}
    gem = FakeGem()
    assert found(second, gem) == WANTED
    assert gem.embedded == []
    assert {file.name: file.read_bytes() for file in second.iterdir()} == before


def test_a_sync_puts_todays_format_in_the_place_of_format_2(second: Path) -> None:
    gem = FakeGem()
    index = Index.open(second, gem)  # type: ignore[arg-type]
    assert index.sync([Document("new", "A door opens.")]).embedded == 1
    names = {file.name for file in second.iterdir()}
    assert names >= {"index.db", *index.manifest.files}
    assert not names & {"manifest.json", "documents-1.jsonl", "vectors-1.faiss"}
    assert [hit for hit in found(second, gem) if hit[0] != "new"][:2] == WANTED[:2]
    assert index.manifest.generation == 3
    assert gem.embedded == ["A door opens."]


def test_format_2_is_embedded_again_by_another_model(second: Path) -> None:
    index = Index.reembed(second, FakeGem("other", 32))  # type: ignore[arg-type]
    assert (index.manifest.dim, len(index)) == (32, 3)
    assert not (second / "manifest.json").exists()
    assert index.search("clean water", 1)[0].chunk.source == "docs/guide.md"


def test_a_damaged_file_of_format_2_is_named(second: Path) -> None:
    file = second / "vectors-1.faiss"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(GemError, match=r"vectors-1.faiss is damaged"):
        found(second, FakeGem())
    file.unlink()
    with pytest.raises(GemError, match=r"vectors-1.faiss is missing"):
        found(second, FakeGem())


def test_a_damaged_manifest_of_format_2_is_named(second: Path) -> None:
    (second / "manifest.json").write_text("{")
    with pytest.raises(GemError, match="manifest.json is damaged"):
        found(second, FakeGem())


def test_format_2_in_chroma_moves_too(second: Path) -> None:
    """Its vectors stood in a file beside the database."""
    vectors = faiss.read_index(str(second / "vectors-1.faiss"))
    np.save(second / "vectors-1.npy", vectors.reconstruct_n(0, vectors.ntotal))
    (second / "vectors-1.faiss").unlink()
    manifest = json.loads((second / "manifest.json").read_text())
    digest = hashlib.sha256((second / "vectors-1.npy").read_bytes()).hexdigest()
    files = {"documents-1.jsonl": manifest["files"]["documents-1.jsonl"], "vectors-1.npy": digest}
    manifest |= {"store": "chroma", "files": files}
    (second / "manifest.json").write_text(json.dumps(manifest))
    database = chromadb.PersistentClient(
        str(second / "chroma"), Settings(anonymized_telemetry=False)
    )
    database.create_collection(f"gem-{manifest['fingerprint'][:32]}").add(
        ids=["a"], embeddings=[[1.0] * 64]
    )
    gem = FakeGem()
    assert found(second, gem) == WANTED
    index = Index.open(second, gem)  # type: ignore[arg-type]
    index.sync([Document("new", "A door opens.")])
    assert gem.embedded == ["A door opens."]
    assert [hit for hit in found(second, gem) if hit[0] != "new"][:2] == WANTED[:2]
    assert not (second / "vectors-1.npy").exists()
