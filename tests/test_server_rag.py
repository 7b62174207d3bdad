"""Indexes over HTTP: searches, answers with citations, documents, and `rag/NAME` as a model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient
from serving import ASKED, LISTS, MODEL, QUESTION, make_app, make_index, refusal

import gem_rag
from gem_rag.errors import GemError
from gem_rag.model import Gem
from gem_rag.rag.database import write_lock
from gem_rag.rag.index import Index
from gem_rag.server.catalog import Catalog, IndexFolder

ASK, SEARCH, DOCUMENTS = "/v1/rag/ask", "/v1/rag/search", "/v1/rag/documents"
UPLOADED = "index-uploads/{}"


@pytest.fixture(scope="module")
def gem() -> Iterator[Gem]:
    with gem_rag.load(MODEL) as loaded:
        yield loaded


@pytest.fixture
def folder(tmp_path: Path, gem: Gem) -> IndexFolder:
    return make_index(tmp_path, gem)


@pytest.fixture
def index(folder: IndexFolder, gem: Gem) -> Index:
    return Index.open(folder.folder, gem)


@pytest.fixture
def client(folder: IndexFolder, gem: Gem) -> Iterator[TestClient]:
    with TestClient(make_app(gem, folder), base_url="http://127.0.0.1:8000") as made:
        yield made


def events(text: str) -> list[tuple[str, Any]]:
    """Names and data of server-sent events."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


# -- searches and answers ------------------------------------------------------------------------


def test_a_search_finds_what_the_index_finds(client: TestClient, index: Index) -> None:
    found = client.post(SEARCH, json={"question": QUESTION, "k": 2}).json()
    wanted = index.search(QUESTION, 2)
    assert [hit["text"] for hit in found["data"]] == [hit.chunk.text for hit in wanted]
    assert [hit["place"] for hit in found["data"]] == [hit.place for hit in wanted]
    for hit in found["data"]:
        assert LISTS[slice(*hit["span"])] == hit["text"]


def test_a_search_takes_the_settings_of_the_library(client: TestClient) -> None:
    nothing = {"question": QUESTION, "sources": ["other.md"]}
    assert client.post(SEARCH, json=nothing).json()["data"] == []
    some = {"question": QUESTION, "where": {"type": ["md"]}, "ranking": "words", "k": 1}
    assert len(client.post(SEARCH, json=some).json()["data"]) == 1
    assert client.post(SEARCH, json={**some, "where": {"type": {"ne": "md"}}}).json()["data"] == []


def test_an_answer_cites_the_document(client: TestClient, index: Index) -> None:
    found = client.post(ASK, json={"question": QUESTION}).json()
    wanted = index.ask(QUESTION)
    assert found["text"] == wanted.text
    [citation] = found["citations"]
    assert LISTS[slice(*citation["span"])] == citation["quote"]
    assert citation["quote"] == "Lists are created by square brackets."
    assert (citation["source"], citation["place"]) == ("manual/lists.md", "line 3")
    assert set(found["timings"]) == {"rewrite", "search", "generate"}
    assert found["usage"]["completion_tokens"] > 0


def test_a_streamed_answer_shows_passages_then_words_then_citations(client: TestClient) -> None:
    whole = client.post(ASK, json={"question": QUESTION}).json()
    response = client.post(ASK, json={"question": QUESTION, "stream": True})
    found = events(response.text)
    names = [name for name, _ in found]
    words = len(names) - 3
    assert words > 1
    assert names == ["passages", *["text"] * words, "citations", "done"]
    assert found[0][1]["passages"] == whole["passages"]
    assert "".join(data["text"] for name, data in found if name == "text") == whole["text"]
    assert found[-2][1]["citations"] == whole["citations"]
    assert found[-1][1]["usage"] == whole["usage"]


def test_an_answer_that_is_cut_says_so(client: TestClient) -> None:
    found = client.post(ASK, json={"question": QUESTION, "max_tokens": 2}).json()
    assert found["finish_reason"] == "length"
    asked = {"model": "rag/docs", "messages": ASKED, "max_tokens": 2}
    [choice] = client.post("/v1/chat/completions", json=asked).json()["choices"]
    assert choice["finish_reason"] == "length"


# -- an index as a chat model --------------------------------------------------------------------


def test_an_index_is_a_model_whose_answers_bear_citations(client: TestClient) -> None:
    assert client.get("/v1/models").json()["data"][-1]["id"] == "rag/docs"
    asked = {"model": "rag/docs", "messages": ASKED}
    message = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]
    [annotation] = message["annotations"]
    cited = annotation["url_citation"]
    assert message["content"][cited["start_index"] : cited["end_index"]] == "[1]"
    assert cited["title"] == "manual/lists.md, line 3"
    place = parse_qs(urlsplit(cited["url"]).query)
    span = slice(int(place["start"][0]), int(place["stop"][0]))
    text = client.get(f"{DOCUMENTS}/text", params={"source": place["source"][0]}).json()["text"]
    assert text[span] == "Lists are created by square brackets."


def test_a_streamed_chat_ends_with_its_annotations(client: TestClient) -> None:
    asked = {"model": "rag/docs", "messages": ASKED}
    whole = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]
    response = client.post("/v1/chat/completions", json={**asked, "stream": True})
    data = [line.removeprefix("data: ") for line in response.text.split("\n\n")[:-2]]
    deltas = [json.loads(one)["choices"][0]["delta"] for one in data]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["content"]
    assert deltas[-2] == {"annotations": whole["annotations"]}


def test_earlier_messages_are_the_conversation(client: TestClient) -> None:
    said = {"role": "assistant", "content": "By brackets. [1]", "annotations": []}
    asked = {"model": "rag/docs", "messages": [*ASKED, said, *ASKED]}
    assert client.post("/v1/chat/completions", json=asked).status_code == 200
    history = [{"question": QUESTION, "answer": "By brackets."}]
    assert client.post(ASK, json={"question": QUESTION, "history": history}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"messages": [{"role": "system", "content": "x"}, *ASKED]}, "messages", "role 'system'"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "x"}]}, "messages", "no question"),
        ({"response_format": {"type": "json_object"}}, "response_format", "leave it out"),
        ({"model": "rag/dogs"}, "model", "did you mean 'rag/docs'"),
        ({"rag": {"style": "verse"}}, "rag", "rag.style: Input should be 'free'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_chat_that_documents_cannot_answer_is_refused(
    client: TestClient, fields: Any, param: str, said: str
) -> None:
    asked = {"model": "rag/docs", "messages": ASKED, **fields}
    response = client.post("/v1/chat/completions", json=asked)
    error = refusal(response, 404 if param == "model" else 400)
    assert error["param"] == param
    assert said in error["message"]


def test_no_completion_comes_from_an_index(client: TestClient) -> None:
    response = client.post("/v1/completions", json={"model": "rag/docs", "prompt": "a"})
    assert "/v1/chat/completions" in refusal(response, 400)["message"]


# -- documents -----------------------------------------------------------------------------------


def sources(client: TestClient) -> list[str]:
    return [one["source"] for one in client.get(DOCUMENTS).json()["data"]]


def test_files_are_uploaded_found_and_removed(client: TestClient, folder: IndexFolder) -> None:
    files = [("file", ("rain.md", b"# Rain\n\nRain falls from clouds.\n"))]
    report = client.post(DOCUMENTS, files=files, data={"index": "docs"}).json()
    source = UPLOADED.format("rain.md")
    assert (report["added"], report["skipped"]) == ([source], [])
    hits = client.post(SEARCH, json={"question": "Where does rain fall from?", "k": 1}).json()
    assert hits["data"][0]["source"] == source
    again = client.post(DOCUMENTS, files=files).json()
    assert (again["added"], again["embedded"]) == ([], 0)
    assert client.delete(DOCUMENTS, params={"source": source}).json()["removed"] == [source]
    assert sources(client) == ["manual/lists.md"]
    client.post("/v1/rag/sync", json={})
    assert sources(client) == ["manual/lists.md"], "an uploaded file that is removed is gone"


def test_uploads_show_their_progress(client: TestClient) -> None:
    files = [("file", (f"{n}.txt", f"Text number {n}.".encode())) for n in range(3)]
    found = events(client.post(DOCUMENTS, files=files, data={"stream": "true"}).text)
    steps = [(data["files"], data["of"]) for name, data in found if name == "progress"]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert len(found[-1][1]["added"]) == 3


def test_a_file_that_cannot_be_read_is_reported_and_not_kept(
    client: TestClient, folder: IndexFolder
) -> None:
    files = [("file", ("a.txt", b"Text.")), ("file", ("b.pdf", b"this is no PDF"))]
    report = client.post(DOCUMENTS, files=files).json()
    assert report["added"] == [UPLOADED.format("a.txt")]
    [skipped] = report["skipped"]
    assert skipped["source"] == UPLOADED.format("b.pdf")
    assert str(folder.folder.parent) not in skipped["reason"]
    kept = folder.folder.with_name("index-uploads")
    assert [path.name for path in kept.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../../evil.txt", None),
        ("..\\evil.txt", None),
        (".hidden.txt", "give it a plain name"),
        ("..", "give it a plain name"),
        ("a\u202eb.txt", "give it a plain name"),
        ("a.exe", "of no kind that can be indexed"),
        ("a" * 300 + ".txt", "too long"),
    ],
)
def test_names_of_files_lead_nowhere_else(
    client: TestClient, folder: IndexFolder, name: str, said: str | None
) -> None:
    before = {path for path in folder.folder.parent.rglob("*") if path.is_file()}
    response = client.post(DOCUMENTS, files=[("file", (name, b"Text."))])
    added = set(folder.folder.parent.rglob("*.txt")) - before
    if said is None:
        assert response.status_code == 200
        assert [path.parent.name for path in added] == ["index-uploads"]
    else:
        assert said in refusal(response, 400)["message"]
        assert not added


def test_documents_are_added_as_json(client: TestClient) -> None:
    document = {"source": "made", "text": "Snow is frozen rain.", "metadata": {"year": 2024}}
    report = client.post(DOCUMENTS, json={"documents": [document]}).json()
    assert report["added"] == ["made"]
    found = client.post(SEARCH, json={"question": "snow", "where": {"year": 2024}}).json()
    assert [hit["source"] for hit in found["data"]] == ["made"]
    assert (
        client.get(f"{DOCUMENTS}/text", params={"source": "made"}).json()["text"]
        == (document["text"])
    )


def test_a_sync_follows_the_files(client: TestClient, folder: IndexFolder) -> None:
    (folder.folder.parent / "manual" / "new.md").write_text("# New\n\nSomething new.\n")
    assert client.post("/v1/rag/sync", json={}).json()["added"] == ["manual/new.md"]


def test_long_lists_come_in_parts(client: TestClient) -> None:
    documents = [{"source": f"made {n}", "text": f"Number {n}."} for n in range(4)]
    client.post(DOCUMENTS, json={"documents": documents})
    first = client.get(DOCUMENTS, params={"limit": 3}).json()
    assert (first["has_more"], first["total"]) == (True, 5)
    rest = client.get(DOCUMENTS, params={"limit": 3, "after": first["data"][-1]["source"]}).json()
    assert rest["has_more"] is False
    names = [one["source"] for one in first["data"] + rest["data"]]
    assert names == sources(client)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "said"),
    [
        (SEARCH, {"question": " "}, 400, None, "empty"),
        (SEARCH, {"question": "x", "k": 0}, 400, "k", "greater than or equal to 1"),
        (SEARCH, {"question": "x", "index": "dogs"}, 404, "index", "did you mean 'docs'"),
        (SEARCH, {"question": "x", "where": {"a": {"near": 1}}}, 400, None, "an operator of 'a'"),
        (SEARCH, {"question": "x", "diversity": 2}, 400, None, "diversity must be from 0 to 1"),
        (ASK, {"question": "x", "style": "verse"}, 400, "style", "'free', 'checked'"),
        (ASK, {"question": "word " * 200}, 400, "question", "the model embeds at most 160"),
        (SEARCH, {"question": "word " * 200}, 400, "question", "the model embeds at most 160"),
        (ASK, {"question": "x", "histori": []}, 400, "histori", "did you mean 'history'"),
        (DOCUMENTS, {"documents": []}, 400, "documents", "at least 1"),
        (DOCUMENTS, {"documents": [{"source": "a"}]}, 400, "documents", "Field required"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_requests_are_refused_by_name(
    client: TestClient, path: str, body: Any, status: int, param: str | None, said: str
) -> None:
    error = refusal(client.post(path, json=body), status)
    assert error["param"] == param
    assert said in error["message"]


def test_parameters_are_refused_by_name(client: TestClient) -> None:
    error = refusal(client.get(DOCUMENTS, params={"limit": "many"}), 400)
    assert error["param"] == "limit"
    assert refusal(client.delete(DOCUMENTS), 400)["param"] == "source"
    missing = client.get(f"{DOCUMENTS}/text", params={"source": "no.md"})
    assert refusal(missing, 404)["param"] == "source"
    gone = client.delete(DOCUMENTS, params={"source": "manual/list.md"})
    assert "did you mean 'manual/lists.md'" in refusal(gone, 404)["message"]


def test_forms_are_refused_by_name(client: TestClient) -> None:
    error = refusal(client.post(DOCUMENTS, files=[("files", ("a.txt", b"x"))]), 400)
    assert error["param"] == "files"
    error = refusal(client.post(DOCUMENTS, data={"file": "x"}, files=[("file", ("", b""))]), 400)
    assert "no files" in error["message"]


def test_an_index_that_is_written_by_another_process_is_busy(
    client: TestClient, folder: IndexFolder
) -> None:
    with write_lock(folder.folder):
        response = client.post("/v1/rag/sync", json={})
    assert "another process is writing" in refusal(response, 409)["message"]
    assert client.post("/v1/rag/sync", json={}).status_code == 200


def test_one_request_at_a_time_writes_while_others_read(
    client: TestClient, gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    sync = Index.sync

    def slow_sync(self: Index, *items: Any, **options: Any) -> Any:
        begun.set()
        assert go.wait(30)
        return sync(self, *items, **options)

    monkeypatch.setattr(Index, "sync", slow_sync)
    first: list[Any] = []
    thread = threading.Thread(
        target=lambda: first.append(client.post("/v1/rag/sync", json={}).status_code)
    )
    thread.start()
    try:
        assert begun.wait(30)
        second = client.post("/v1/rag/sync", json={})
        assert "is being synced" in refusal(second, 409)["message"]
        assert second.headers["retry-after"] == "5"
        assert client.post(SEARCH, json={"question": QUESTION}).status_code == 200
    finally:
        go.set()
        thread.join()
    assert first == [200]


def test_a_server_without_an_index_says_so(gem: Gem) -> None:
    client = TestClient(make_app(gem), base_url="http://127.0.0.1")
    error = refusal(client.post(SEARCH, json={"question": "x"}), 404)
    assert "start it with --index DIR" in error["message"]


def test_an_index_of_another_model_is_not_opened(folder: IndexFolder, talker: Gem) -> None:
    with pytest.raises(GemError, match="was made by model 'gem-tiny'"):
        Catalog.open(talker, [folder])


def test_one_of_several_indexes_must_be_named(
    gem: Gem, folder: IndexFolder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = make_index(tmp_path_factory.mktemp("other"), gem)._replace(name="other")
    client = TestClient(make_app(gem, folder, other), base_url="http://127.0.0.1")
    error = refusal(client.post(SEARCH, json={"question": "x"}), 400)
    assert "one of 'docs', 'other'" in error["message"]
    assert client.post(SEARCH, json={"question": "x", "index": "other"}).status_code == 200
