"""`gem-rag serve --engine vllm` is OpenAI's API to its clients, under load and bad input."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import schemathesis
from conftest import Served
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from serving import ALIAS, MODEL, metric, refusal, wait_until

from gem_rag.model import Gem

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

EMBEDDINGS = "/v1/embeddings"
QUESTION = [{"role": "user", "content": "What does an index hold?"}]
PROMPT = "An index holds"
ANSWER = {"temperature": 0, "max_tokens": 24}
# Of mixed lengths, each unlike the others from its first words on.
TEXTS = [" ".join([f"Item {n}", *["vectors of text"] * (n * 7 % 19)]) for n in range(64)]
SHORT = TEXTS[:3]
DEADLINE = 60  # seconds


@pytest.fixture(scope="module")
def api(url: str) -> str:
    return f"{url}/v1"


@pytest.fixture(scope="module")
def client(api: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=api, api_key="x", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def gem(plain_tiny: Gem) -> Gem:
    """The model that is served, in this process."""
    return plain_tiny


def embedded(client: openai.OpenAI, given: Any, **wanted: Any) -> np.ndarray:
    """Vectors of what is given, as the client hands them over."""
    response = client.embeddings.create(model=MODEL, input=given, **wanted)
    assert [entry.index for entry in response.data] == list(range(len(response.data)))
    return np.array([entry.embedding for entry in response.data])


def same_vectors(found: Any, wanted: Any) -> bool:
    """Whether unit vectors point the same way, row by row."""
    found, wanted = np.atleast_2d(found), np.atleast_2d(wanted)
    assert found.shape == wanted.shape
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    return bool((found * wanted).sum(axis=1).min() >= 0.9999)


def chatted(client: openai.OpenAI, model: str = MODEL) -> str:
    response = client.chat.completions.create(model=model, messages=QUESTION, **ANSWER)
    return response.choices[0].message.content or ""


# -- OpenAI's client -----------------------------------------------------------------------------


def test_chat_says_what_the_model_says(client: openai.OpenAI, gem: Gem) -> None:
    response = client.chat.completions.create(model=MODEL, messages=QUESTION, **ANSWER)
    text = response.choices[0].message.content
    assert text
    assert text == gem.chat(QUESTION, **ANSWER).text
    assert response.usage is not None
    assert response.usage.prompt_tokens == len(gem.tokenize_chat(QUESTION))
    assert chatted(client, ALIAS) == text


def test_a_streamed_chat_is_the_plain_one_in_pieces(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, **ANSWER)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == chatted(client)


def test_a_completion_says_what_the_model_says(client: openai.OpenAI, gem: Gem) -> None:
    response = client.completions.create(model=MODEL, prompt=PROMPT, **ANSWER)
    assert response.choices[0].text
    assert response.choices[0].text == gem.generate([PROMPT], **ANSWER)[0].text


def test_embeddings_are_the_models_in_both_encodings(client: openai.OpenAI, gem: Gem) -> None:
    numbers = embedded(client, SHORT, encoding_format="float")
    assert same_vectors(numbers, gem.embed_documents(SHORT))
    assert np.allclose(embedded(client, SHORT), numbers, atol=1e-5)  # base64 on the wire
    assert same_vectors(embedded(client, SHORT[1]), numbers[1])


def test_base64_is_little_endian_float32(api: str, gem: Gem) -> None:
    body = {"model": MODEL, "input": SHORT[0], "encoding_format": "base64"}
    [entry] = httpx.post(f"{api}/embeddings", json=body).json()["data"]
    vector = np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4")
    assert same_vectors(vector, gem.embed_documents(SHORT[:1]))


@pytest.mark.parametrize("name", ["input_type", "prompt_name"])
def test_the_use_goes_by_either_name(client: openai.OpenAI, gem: Gem, name: str) -> None:
    queries = embedded(client, SHORT, extra_body={name: "query"})
    assert same_vectors(queries, gem.embed_queries(SHORT))
    documents = embedded(client, SHORT, extra_body={name: "document"})
    assert same_vectors(documents, gem.embed_documents(SHORT))


def test_fewer_dimensions_are_the_first_ones_at_unit_length(client: openai.OpenAI) -> None:
    whole, part = embedded(client, SHORT), embedded(client, SHORT, dimensions=32)
    assert part.shape == (3, 32)
    first = whole[:, :32]
    assert same_vectors(part, first / np.linalg.norm(first, axis=1, keepdims=True))


def test_token_ids_embed_as_their_text(client: openai.OpenAI, gem: Gem) -> None:
    ids = [encoded.ids for encoded in gem._tokenizer.encode(SHORT)]
    vectors = gem.embed_documents(SHORT)
    assert same_vectors(embedded(client, ids), vectors)
    assert same_vectors(embedded(client, ids[2]), vectors[2:])


def test_many_texts_come_back_in_order(client: openai.OpenAI, gem: Gem) -> None:
    found, wanted = embedded(client, TEXTS), gem.embed_documents(TEXTS)
    assert same_vectors(found, wanted)
    assert (found @ wanted.T).argmax(axis=1).tolist() == list(range(len(TEXTS)))


def test_usage_counts_the_tokens(client: openai.OpenAI, gem: Gem) -> None:
    usage = client.embeddings.create(model=MODEL, input=TEXTS).usage
    tokens = sum(len(encoded.ids) for encoded in gem._tokenizer.encode(TEXTS))
    assert (usage.prompt_tokens, usage.total_tokens) == (tokens, tokens)


# -- frameworks ----------------------------------------------------------------------------------


def test_langchain_chats_and_streams(api: str, client: openai.OpenAI) -> None:
    chat = pytest.importorskip("langchain_openai").ChatOpenAI(
        model=MODEL, base_url=api, api_key="x", **ANSWER
    )
    wanted = chatted(client)
    assert chat.invoke(QUESTION).content == wanted
    assert "".join(str(piece.content) for piece in chat.stream(QUESTION)) == wanted


def test_langchain_embeds(api: str, gem: Gem) -> None:
    embeddings = pytest.importorskip("langchain_openai").OpenAIEmbeddings(
        model=MODEL, base_url=api, api_key="x", check_embedding_ctx_length=False
    )
    assert same_vectors(embeddings.embed_documents(TEXTS), gem.embed_documents(TEXTS))
    assert same_vectors(embeddings.embed_query(SHORT[0]), gem.embed_documents(SHORT[:1]))


def test_llama_index_chats_streams_and_completes(api: str, client: openai.OpenAI) -> None:
    llms = pytest.importorskip("llama_index.llms.openai")
    messages = pytest.importorskip("llama_index.core.llms")
    asked = [messages.ChatMessage(role="user", content=QUESTION[0]["content"])]
    llm = llms.OpenAI(model=ALIAS, api_base=api, api_key="x", **ANSWER)
    wanted = chatted(client)
    assert llm.chat(asked).message.content == wanted
    assert "".join(piece.delta or "" for piece in llm.stream_chat(asked)) == wanted
    assert llm.complete(QUESTION[0]["content"]).text == wanted


def test_llama_index_embeds(api: str, gem: Gem) -> None:
    embedding = pytest.importorskip("llama_index.embeddings.openai").OpenAIEmbedding(
        model_name=MODEL, api_base=api, api_key="x"
    )
    found = embedding.get_text_embedding_batch(TEXTS)
    assert same_vectors(found, gem.embed_documents(TEXTS))


# -- many at once --------------------------------------------------------------------------------


def test_requests_together_give_what_they_give_alone(client: openai.OpenAI) -> None:
    texts = [writing(client, number) for number in range(16)]
    vectors = [embedding(client, number) for number in range(16)]
    mixed = [call for pair in zip(texts, vectors, strict=True) for call in pair]
    alone = [call() for call in mixed]
    together = all_at_once(mixed)
    assert together[::2] == alone[::2]
    for found, wanted in zip(together[1::2], alone[1::2], strict=True):
        assert same_vectors(found, wanted)


def writing(client: openai.OpenAI, number: int) -> Callable[[], str]:
    """Asks for a completion if the number is odd, and else for a chat's next message."""
    text = f"Explain step {number} of making an index."

    def complete() -> str:
        return client.completions.create(model=MODEL, prompt=text, **ANSWER).choices[0].text

    def chat() -> str:
        asked = [{"role": "user", "content": text}]
        response = client.chat.completions.create(model=MODEL, messages=asked, **ANSWER)
        return response.choices[0].message.content or ""

    return complete if number % 2 else chat


def embedding(client: openai.OpenAI, number: int) -> Callable[[], np.ndarray]:
    """Asks for the vectors of 1 to 16 texts."""
    return lambda: embedded(client, TEXTS[number : 2 * number + 1])


def all_at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What calls give that start together, each in its own thread."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        start.wait(DEADLINE)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"input": "\xff"}', b"[" * 10_000])
def test_a_body_that_is_not_json_is_refused(api: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error = refusal(httpx.post(f"{api}/embeddings", content=body, headers=headers), 400)
    assert "not valid JSON" in error["message"]


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({}, "input", "Field required"),
        ({"input": None}, "input", "Field required"),
        ({"input": [1.5]}, "input", "should be a text"),
        ({"input": ["a", 1]}, "input", "should be a text"),
        ({"input": ""}, "input", "input 0 is empty"),
        ({"input": " \n"}, "input", "input 0 is empty"),
        ({"input": ["a", ""]}, "input", "input 1 is empty"),
        ({"input": [[]]}, "input", "input 0 is empty"),
        ({"input": []}, "input", "0 entries"),
        ({"input": "a", "messages": QUESTION}, "messages", "give one"),
        ({"input": "a" * 10**6}, "input", "input 0 has 1000000 characters"),
        ({"input": "a", "truncate_prompt_tokens": 10**6}, "truncate_prompt_tokens", "give from 1"),
        ({"input": "a", "use_activation": False}, "use_activation", "True"),
        ({"input": ["a", "word " * 200]}, "input", "input 1 has"),
        ({"input": [1] * 200}, "input", "input 0 has 200 tokens"),
        ({"input": [10**9]}, "input", "token 1000000000"),
        ({"input": [10**30]}, "input", "token 1000"),
        ({"input": [[1], [-1]]}, "input", "input 1 holds token -1"),
        ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "dimensions": 10**6}, "dimensions", "dimensions is 1000000"),
        ({"input": "a", "dimensions": "8"}, "dimensions", "valid integer"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "input_type": "answer"}, "input_type", "'query' or 'document'"),
        (
            {"input": "a", "input_type": "query", "prompt_name": "document"},
            "prompt_name",
            "differ",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_request_is_refused_by_name(api: str, given: Any, param: str, message: str) -> None:
    error = refusal(httpx.post(f"{api}/embeddings", json={"model": MODEL, **given}), 400)
    assert error["param"] == param
    assert message in error["message"]


def test_errors_have_the_type_and_the_code_that_vllm_gives(api: str) -> None:
    ours = {"model": MODEL, "input": "word " * 200}
    theirs = {"model": MODEL, "prompt": "word " * 2000, "max_tokens": 1}
    error = refusal(httpx.post(f"{api}/embeddings", json=ours), 400)
    of_vllm = refusal(httpx.post(f"{api}/completions", json=theirs), 400)
    assert (error["type"], error["code"]) == (of_vllm["type"], of_vllm["code"])


def test_a_body_of_another_type_is_refused_as_by_vllm(api: str) -> None:
    headers = {"content-type": "text/plain"}
    for path, body in (("embeddings", b'{"input": "a"}'), ("completions", b'{"prompt": "a"}')):
        answer = httpx.post(f"{api}/{path}", content=body, headers=headers)
        assert answer.status_code == answer.json()["error"]["code"] == 400


@pytest.mark.parametrize(
    ("path", "given"),
    [("embeddings", {"input": "a"}), ("chat/completions", {"messages": QUESTION})],
)
def test_another_model_is_not_found(api: str, path: str, given: Any) -> None:
    error = refusal(httpx.post(f"{api}/{path}", json={"model": "other", **given}), 404)
    assert error["param"] == "model"
    assert "other" in error["message"]


def test_the_client_raises_openais_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="input 0 is empty"):
        client.embeddings.create(model=MODEL, input="")
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.embeddings.create(model="other", input="a")


def test_embeddings_are_not_to_be_got(api: str) -> None:
    assert httpx.get(f"{api}/embeddings").status_code == httpx.codes.METHOD_NOT_ALLOWED


def test_a_refused_request_does_not_harm_the_next(client: openai.OpenAI, gem: Gem) -> None:
    with pytest.raises(openai.BadRequestError):
        embedded(client, [*SHORT, "word " * 200])
    assert same_vectors(embedded(client, SHORT), gem.embed_documents(SHORT))


# -- the schema ----------------------------------------------------------------------------------


def test_the_route_stands_in_the_schema(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert list(paths[EMBEDDINGS]) == ["post"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models"} <= set(paths)


def test_the_server_is_healthy(url: str) -> None:
    assert httpx.get(f"{url}/health").status_code == httpx.codes.OK


def test_requests_made_from_the_schema_get_what_it_promises(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    made = schema.include(path=EMBEDDINGS, method="POST").get_all_operations()
    [operation] = [result.ok() for result in made]
    modes = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    cases = st.one_of([operation.as_strategy(mode) for mode in modes])
    seen: set[int] = set()

    @settings(
        max_examples=50,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def answered_as_promised(case: schemathesis.Case) -> None:
        checks = [not_a_server_error, status_code_conformance, content_type_conformance]
        seen.add(case.call_and_validate(checks=checks, timeout=DEADLINE).status_code)

    answered_as_promised()
    assert {200, 400} <= seen


# -- what operators see ---------------------------------------------------------------------------


def test_metrics_count_embeddings(url: str, client: openai.OpenAI) -> None:
    ok = 'gem_rag:embedding_requests_total{status="200"}'
    refused = 'gem_rag:embedding_requests_total{status="400"}'
    tokens = "gem_rag:embedding_prompt_tokens_total"
    before = [metric(url, name) for name in (ok, refused, tokens)]
    response = client.embeddings.create(model=MODEL, input=SHORT)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=MODEL, input="")
    after = [metric(url, name) for name in (ok, refused, tokens)]
    assert after == [before[0] + 1, before[1] + 1, before[2] + response.usage.total_tokens]
    assert metric(url, "gem_rag:embedding_request_seconds_count") >= 2
    assert metric(url, "gem_rag:embedding_rows_waiting") == 0


def test_a_client_that_leaves_takes_its_request_with_it(served: Served, api: str) -> None:
    server = served.server
    cancelled = 'gem_rag:embedding_requests_total{status="cancelled"}'
    before = metric(server.url, cancelled)
    large = {"model": MODEL, "input": TEXTS * 200}  # 12,800 texts
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{api}/embeddings", json=large, timeout=httpx.Timeout(60, read=1))
    assert wait_until(lambda: metric(server.url, cancelled) == before + 1, DEADLINE)
    assert metric(server.url, "gem_rag:embedding_rows_waiting") <= 1
    assert httpx.get(f"{server.url}/load").json() == {"server_load": 0}
    assert "Traceback" not in server.log.read_text(errors="replace")


def test_load_counts_embeddings_that_are_under_way(url: str, api: str) -> None:
    large = {"model": MODEL, "input": TEXTS * 15}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{api}/embeddings", json=large, timeout=DEADLINE)
        loads = (httpx.get(f"{url}/load").json()["server_load"] for _ in iter(answer.done, True))
        assert 1 in loads
        assert answer.result().status_code == httpx.codes.OK
