"""Searching by vectors, by words, and by both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeGem
from typer.testing import CliRunner

from gem_rag.cli.app import app
from gem_rag.core.arrays import FloatArray
from gem_rag.documents.document import Document
from gem_rag.errors import InputError
from gem_rag.evaluation.words import WordIndex
from gem_rag.rag.index import Index

STORES = ["faiss", "chroma"]
TEXTS = {
    "pump": "A pump moves water through pipes of the XJ-900.",
    "lamp": "A lamp gives light at night.",
    "door": "A door opens a room, and closes it.",
}
# By vectors alone a lamp is nearest to everything, then a door, then a pump.
TOWARDS = {"lamp": 0.8, "door": 0.5, "pump": 0.39}


class OneWay(FakeGem):
    """A model to which all questions are the same."""

    def _vectors(self, texts: Any) -> FloatArray:
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            towards = next((c for name, c in TOWARDS.items() if name in text.lower()), 1.0)
            row[:2] = towards, (1 - towards**2) ** 0.5
        return rows

    def embed_queries(self, texts: Any, **_: Any) -> FloatArray:
        return self._vectors(["a question"] * len(texts))

    def embed_documents(self, texts: Any, **_: Any) -> FloatArray:
        return self._vectors(texts)


def open_index(folder: Path, store: Any = None) -> Index:
    index = Index.open(folder, OneWay(), store)
    index.sync([Document(name, text) for name, text in TEXTS.items()])
    return index


def found(index: Index, question: str, k: int = 5, **options: Any) -> list[str]:
    return [hit.chunk.source for hit in index.search(question, k, **options)]


@pytest.mark.parametrize("store", STORES)
def test_a_name_is_found_by_words_where_vectors_do_not_know_it(tmp_path: Path, store: str) -> None:
    index = open_index(tmp_path, store)
    assert found(index, "xj-900", ranking="vectors") == ["lamp", "door", "pump"]
    assert found(index, "xj-900", ranking="words") == ["pump"]
    assert found(index, "xj-900", ranking="hybrid") == found(index, "xj-900")
    assert found(index, "xj-900") == ["pump", "lamp", "door"]
    assert found(index, "xj-900", 1, ranking="hybrid") == ["pump"]
    assert found(index, "nothing of it", ranking="words") == []
    assert found(index, "nothing of it", ranking="hybrid") == ["lamp", "door", "pump"]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("ranking", ["vectors", "words", "hybrid"])
def test_scores_are_cosines_in_every_ranking(tmp_path: Path, store: str, ranking: Any) -> None:
    for hit in open_index(tmp_path, store).search("water of the door", ranking=ranking):
        assert hit.score == pytest.approx(TOWARDS[hit.chunk.source], abs=1e-5)


def test_what_is_nearest_is_found_beyond_what_either_gives(tmp_path: Path) -> None:
    """Chunks of equal texts take places in both rankings, and none among the hits."""
    index = Index.open(tmp_path, OneWay())
    copies = [Document(f"lamp {number}", TEXTS["lamp"]) for number in range(80)]
    index.sync([*copies, *(Document(name, text) for name, text in TEXTS.items())])
    for ranking in ("vectors", "hybrid"):
        hits = index.search("light of the pump", 3, ranking=ranking)
        assert {hit.chunk.text for hit in hits} == set(TEXTS.values())


def test_words_follow_what_is_committed(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    assert found(index, "window", ranking="words") == []
    index.sync([Document("window", "A window lets in light.")])
    assert found(index, "window", ranking="words") == ["window"]


def test_questions_are_searched_in_one_batch(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    together = index.search_many(["xj-900", "night"], 2, ranking="hybrid")
    assert [[hit.chunk.source for hit in hits] for hits in together] == [
        ["pump", "lamp"], ["lamp", "door"],
    ]  # fmt: skip


def test_other_rankings_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ranking must be one of .*hybrid, not 'hybird'"):
        open_index(tmp_path).search("x", ranking="hybird")  # type: ignore[arg-type]


def test_texts_of_stop_words_have_no_words() -> None:
    index = WordIndex(["the of and", "a an"])
    rows, scores = index.search(["the pump"], 5)
    assert rows.shape == scores.shape == (1, 2)
    assert not scores.any()
    assert not index.scores(["the pump"]).any()


@pytest.mark.slow
def test_the_commands_take_a_ranking(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "docs" / f"{name}.txt").write_text(text)
    folder = str(tmp_path / "index")
    assert (
        CliRunner().invoke(app, ["index", str(tmp_path / "docs"), "--index", folder]).exit_code == 0
    )
    options = ["--index", folder, "-k", "1", "--ranking"]
    shown = CliRunner().invoke(app, ["search", "xj-900", *options, "words"])
    assert "pump.txt" in shown.stdout
    answered = CliRunner().invoke(app, ["ask", "What moves water?", *options, "hybrid"])
    assert answered.exit_code == 0
    wrong = CliRunner().invoke(app, ["search", "xj-900", *options, "hybird"])
    assert wrong.exit_code != 0


# -- which documents, how near, how different ----------------------------------------------------


@pytest.mark.parametrize("ranking", ["vectors", "words", "hybrid"])
@pytest.mark.parametrize("store", STORES)
def test_only_documents_that_a_pattern_matches_are_found(
    tmp_path: Path, store: str, ranking: str
) -> None:
    (tmp_path / "docs" / "old").mkdir(parents=True)
    for number in range(30):
        (tmp_path / "docs" / f"{number}.md").write_text(f"A lamp, number {number}.")
    (tmp_path / "docs" / "old" / "a.md").write_text("A lamp of old.")
    (tmp_path / "docs" / "b.py").write_text('"""A lamp in code."""\ndef f():\n    """A lamp."""\n')
    index = open_index(tmp_path / "index", store)
    index.sync(tmp_path / "docs")
    options: Any = {"ranking": ranking}
    assert found(index, "lamp", 9, sources=["old/"], **options) == ["docs/old/a.md"]
    of_code = found(index, "lamp", 9, sources=["*.py"], **options)
    assert sorted(of_code) == ["docs/b.py", "docs/b.py#f"]
    assert found(index, "lamp", 9, sources=["lamp"], **options) == ["lamp"]  # made in Python
    assert found(index, "lamp", 9, sources=["nowhere"], **options) == []
    assert len(found(index, "lamp", 40, sources=["/docs/*", "!*.py", "!old"], **options)) == 30


def test_no_chunk_of_a_lower_score_is_found(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    assert found(index, "anything", min_score=0.4) == ["lamp", "door"]
    assert found(index, "xj-900", ranking="hybrid", min_score=0.4) == ["lamp", "door"]
    assert found(index, "xj-900", ranking="words", min_score=0.4) == []


def test_diverse_hits_are_unlike_each_other(tmp_path: Path) -> None:
    """Worked by hand: cosines with the question .9, .5, .1; of the lamp with the door .827, with
    the pump .524. At .9, .05 - .744 is less than .01 - .472; at .1, .45 - .083 is more."""
    index = open_index(tmp_path)
    assert found(index, "x", 2) == ["lamp", "door"]
    assert found(index, "x", 2, diversity=0.9) == ["lamp", "pump"]
    assert found(index, "x", 3, diversity=0.9) == ["lamp", "pump", "door"]
    assert found(index, "x", 2, diversity=0.1) == ["lamp", "door"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_score": 1.5}, "min_score must be a cosine, from -1 to 1, not 1.5"),
        ({"diversity": 2}, "diversity must be from 0 to 1, not 2"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_index(tmp_path).search("x", **options)


def test_the_command_line_narrows_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_index(tmp_path)
    monkeypatch.setattr(sys.modules["gem_rag.cli.app"], "open_index", lambda *_: index)
    run = CliRunner().invoke
    assert "door" not in run(app, ["search", "x", "--min-score", "0.6"]).stdout
    assert "lamp" not in run(app, ["search", "x", "--source", "door", "--source", "pump"]).stdout
    assert run(app, ["search", "x", "--diversity", "0.5"]).exit_code == 0
