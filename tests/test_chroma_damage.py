"""A Chroma database that is not what was committed is never served, and can be made anew."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeGem

from gem_rag import Document, GemError, Index

TEXTS = [f"word{n} pump{n % 7} lamp{n % 5}" for n in range(40)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chroma") / "index"
    index = Index.open(folder, FakeGem(), "chroma")  # type: ignore[arg-type]
    index.sync([Document(str(n), text) for n, text in enumerate(TEXTS)])
    return folder


def search(folder: Path) -> list[tuple[str, float]]:
    index = Index.open(folder, FakeGem(), create=False)  # type: ignore[arg-type]
    return [(hit.chunk.source, round(hit.score, 4)) for hit in index.search("word3 pump3", 5)]


def empty(database: Path) -> None:
    (database / "chroma.sqlite3").write_bytes(b"")


def truncate(database: Path) -> None:
    file = database / "chroma.sqlite3"
    file.write_bytes(file.read_bytes()[:3000])


@pytest.mark.parametrize("damage", [shutil.rmtree, empty, truncate])
def test_a_damaged_database_is_named_with_the_remedy_which_works(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    wanted = search(whole)
    folder = Path(shutil.copytree(whole, tmp_path / "index"))
    damage(folder / "chroma")
    with pytest.raises(GemError, match=r"damaged.*--reembed --index"):
        search(folder)
    Index.reembed(folder, FakeGem())  # type: ignore[arg-type]
    assert search(folder) == wanted


def test_another_database_is_not_served(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    Index.open(other, FakeGem(), "chroma").sync(  # type: ignore[arg-type]
        [Document(str(n), f"other {n}") for n in range(60)]
    )
    folder = Path(shutil.copytree(whole, tmp_path / "index"))
    shutil.rmtree(folder / "chroma")
    shutil.copytree(other / "chroma", folder / "chroma")
    with pytest.raises(GemError, match="damaged"):
        search(folder)


@pytest.mark.slow
def test_flipped_bytes_are_noticed_or_harmless(whole: Path, tmp_path: Path) -> None:
    wanted = search(whole)
    files = [p for p in sorted((whole / "chroma").rglob("*")) if p.is_file() and p.stat().st_size]
    rng = random.Random(0)
    for number in range(40):
        folder = Path(shutil.copytree(whole, tmp_path / str(number)))
        file = folder / rng.choice(files).relative_to(whole)
        data = bytearray(file.read_bytes())
        at = rng.randrange(len(data))
        data[at] ^= 0xFF
        file.write_bytes(data)
        try:
            found = search(folder)
        except GemError:
            continue
        # Approximate search may miss a neighbor; what it returns has its true score.
        scores = dict(wanted)
        assert all(scores.get(source, score) == score for source, score in found)
        assert len(found) == 5
