"""Embedding by copies of the model on a Ray cluster: the index is the same, whoever dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

import gem_rag
from gem_rag import Document, Index, InputError
from gem_rag.rag import writer
from gem_rag.rag.ray_embedding import RayEmbedder
from gem_rag.rag.reading import Reading, embed_readings

pytestmark = pytest.mark.slow
TEXTS = [f"A pump of size {n} moves water to floor {n % 9}." for n in range(120)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


def found(index: Index) -> list[tuple[str, float]]:
    hits = index.search("Which pump moves water to the seventh floor?", 20)
    return [(hit.chunk.source, round(hit.score, 5)) for hit in hits]


def kill_a_worker(killed: list[int], done: threading.Event) -> None:
    """SIGKILL the first copy of the model that has begun to embed."""
    while not (killed or done.is_set()):
        for process in psutil.Process().children(recursive=True):
            try:
                if "MapWorker(MapBatches(_Worker)).submit" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
                    break
            except psutil.Error:
                continue
        time.sleep(0.01)


@pytest.mark.usefixtures("cluster")
def test_two_workers_one_of_which_is_killed_make_the_same_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gem = gem_rag.load("gem-tiny")
    documents = [Document(f"{n:03}", text) for n, text in enumerate(TEXTS)]
    local = Index.open(tmp_path / "local", gem)
    local.sync(documents)
    index = Index.open(tmp_path / "index", gem)
    killed, done = list[int](), threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(killed, done))
    killer.start()
    try:
        report = index.sync(documents, embedder=RayEmbedder(gem, 2, batch=4))
    finally:
        done.set()
        killer.join()
    assert killed
    assert report.embedded == len(TEXTS)
    assert found(index) == found(local)
    assert [index.document(s) for s in index.sources] == [local.document(s) for s in local.sources]


def test_no_workers_are_refused() -> None:
    with pytest.raises(InputError, match="workers must be at least 1, not 0"):
        RayEmbedder(None, 0)  # type: ignore[arg-type]


def test_shards_are_kept_when_a_later_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an embedder gave is on disk before it is asked again."""
    from fakes import FakeGem

    monkeypatch.setattr(writer, "_FILE", 1)

    class Failing:
        shard = 50

        def __init__(self, gem: FakeGem, most: int) -> None:
            self.gem, self.left = gem, most

        def embed(self, readings: list[Reading]) -> object:
            self.left -= 1
            if self.left < 0:
                raise gem_rag.GemError("the cluster is gone")
            return embed_readings(self.gem, readings)

    gem = FakeGem()
    documents = [Document(f"{n:03}", text) for n, text in enumerate(TEXTS)]
    index = Index.open(tmp_path / "index", gem)  # type: ignore[arg-type]
    with pytest.raises(gem_rag.GemError, match="the cluster is gone"):
        index.sync(documents, embedder=Failing(gem, 1))  # type: ignore[arg-type]
    assert index.sync(documents).embedded == 70
