"""Embedding requests in OpenAI's form: what is understood, what is refused, what comes back."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient
from helpers import BOS, SPECIAL_TOKENS, VOCABULARY, build_tokenizer, close_to, vectors_of, written

from gem_rag.core.config import GemConfig
from gem_rag.core.layout import Row
from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.model import Gem
from gem_rag.server import bodies, embedding_codec
from gem_rag.server.embedding_codec import EmbeddingCodec
from gem_rag.server.embeddings import EmbeddingRequest, embeddings_router
from gem_rag.server.errors import ApiError

LONGEST = 60
JSON = {"content-type": "application/json"}


def request(**fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest.parse(json.dumps(fields).encode())


def rows_of(codec: EmbeddingCodec, asked: EmbeddingRequest) -> list[list[int]]:
    return asyncio.run(codec.rows(asked))


def response(codec: EmbeddingCodec, asked: EmbeddingRequest, rows: Any, vectors: Any) -> Any:
    return json.loads(codec.response(asked, rows, vectors))


def refused(codec: EmbeddingCodec, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        rows_of(codec, request(**fields))
    return caught.value


@pytest.fixture
def codec(gem: Gem) -> EmbeddingCodec:
    """For a model with prompts."""
    return EmbeddingCodec(
        gem._tokenizer, gem.config, vocabulary=VOCABULARY, max_length=LONGEST, dim=gem.dim,
        names=["tiny", "alias"],
    )  # fmt: skip


@pytest.fixture
def plain_codec(gem: Gem) -> EmbeddingCodec:
    """For a model without prompts."""
    return EmbeddingCodec(
        gem._tokenizer, GemConfig(), vocabulary=VOCABULARY, max_length=LONGEST, dim=gem.dim,
        names=["tiny"],
    )  # fmt: skip


@pytest.fixture
def mute_codec(gem: Gem) -> EmbeddingCodec:
    """For a model without a chat template."""
    return EmbeddingCodec(
        SafeTokenizer(build_tokenizer(chat_template=None)), GemConfig(), vocabulary=VOCABULARY,
        max_length=LONGEST, dim=gem.dim, names=["tiny"],
    )  # fmt: skip


@pytest.fixture
def vectors(gem: Gem) -> np.ndarray:
    """Three unit vectors."""
    found = np.random.default_rng(0).normal(size=(3, gem.dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


# -- bodies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_input_is_texts_or_token_ids(value: Any) -> None:
    assert request(input=value).input == value


def test_what_is_left_out_has_openais_defaults() -> None:
    found = request(input="a")
    assert (found.model, found.dimensions, found.use) == (None, None, None)
    assert found.encoding_format == "float"


def test_unknown_fields_are_ignored() -> None:
    assert request(input="a", user="me", priority=3).inputs == ["a"]


@pytest.mark.parametrize(
    ("value", "inputs"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])],
)
def test_one_input_is_a_list_of_one(value: Any, inputs: Any) -> None:
    assert request(input=value).inputs == inputs


BAD_BODIES = [
    (b"", None),
    (b"{", None),
    (b"\xff", None),
    (b'{"input": "\\ud800"}', None),
    (b"[]", None),
    (b"null", None),
    (b'"text"', None),
    (b"{}", "input"),
    (b'{"input": null}', "input"),
    (b'{"input": 1}', "input"),
    (b'{"input": true}', "input"),
    (b'{"input": {"text": "a"}}', "input"),
    (b'{"input": [true]}', "input"),
    (b'{"input": [1.5]}', "input"),
    (b'{"input": [null]}', "input"),
    (b'{"input": [1, "a"]}', "input"),
    (b'{"input": ["a", 1]}', "input"),
    (b'{"input": ["a", [1]]}', "input"),
    (b'{"input": [[1], 2]}', "input"),
    (b'{"input": [[1, "2"]]}', "input"),
    (b'{"input": [["a"]]}', "input"),
    (b'{"input": [[[1]]]}', "input"),
    (b'{"input": "a", "model": 3}', "model"),
    (b'{"input": "a", "encoding_format": "hex"}', "encoding_format"),
    (b'{"input": "a", "encoding_format": null}', "encoding_format"),
    (b'{"input": "a", "dimensions": 0}', "dimensions"),
    (b'{"input": "a", "dimensions": -1}', "dimensions"),
    (b'{"input": "a", "dimensions": "3"}', "dimensions"),
    (b'{"input": "a", "dimensions": 1.5}', "dimensions"),
    (b'{"input": "a", "dimensions": true}', "dimensions"),
    (b'{"input": "a", "input_type": "passage"}', "input_type"),
    (b'{"input": "a", "prompt_name": 1}', "prompt_name"),
]


@pytest.mark.parametrize(("body", "param"), BAD_BODIES, ids=[str(b[0]) for b in BAD_BODIES])
def test_a_bad_body_is_refused_by_the_name_of_its_field(body: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        EmbeddingRequest.parse(body)
    error = caught.value
    assert (error.status, error.param) == (400, param)
    assert error.message.startswith(f"{param}: " if param else "the body")
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the body is not valid JSON"),
        (b"[]", "the body: Input should be an object"),
        (b"{}", "input: Field required"),
        (b'{"input": 1}', "a text, a list of texts, token ids or a list of them"),
    ],
)
def test_a_refusal_says_what_is_wrong(body: bytes, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        EmbeddingRequest.parse(body)


# -- requests to token rows --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "passage: "),
        ({"input_type": "document"}, "passage: "),
        ({"input_type": "query"}, "query: "),
        ({"prompt_name": "query"}, "query: "),
        ({"prompt_name": "query", "input_type": "query"}, "query: "),
    ],
)
def test_texts_get_the_prompt_of_their_use(
    codec: EmbeddingCodec, gem: Gem, fields: dict[str, str], prompt: str
) -> None:
    texts = ["The quick brown fox", "a lazy dog"]
    wanted = [found.ids for found in gem._tokenizer.encode([prompt + text for text in texts])]
    assert rows_of(codec, request(input=texts, **fields)) == wanted


def test_rows_embed_as_the_model_itself_does(codec: EmbeddingCodec, gem: Gem) -> None:
    text = "The quick brown fox"
    for use, wanted in (
        ("query", gem.embed_queries([text])),
        ("document", gem.embed_documents([text])),
    ):
        [row] = rows_of(codec, request(input=text, input_type=use))
        assert close_to(vectors_of(gem, Row.whole(row)), wanted)


def test_two_uses_that_differ_are_refused(codec: EmbeddingCodec) -> None:
    error = refused(codec, input="a", input_type="query", prompt_name="document")
    assert (error.status, error.param) == (400, "prompt_name")


def test_names_of_special_tokens_are_plain_text(codec: EmbeddingCodec, gem: Gem) -> None:
    text = "".join(SPECIAL_TOKENS)
    [row] = rows_of(codec, request(input=text))
    assert row == gem._tokenizer.encode(["passage: " + text])[0].ids
    assert row[0] == BOS
    assert not set(row[1:]) & set(range(len(SPECIAL_TOKENS)))
    assert "".join(written(gem, row)) == "passage: " + text


@pytest.mark.parametrize("value", [[5, 6, 7], [[5, 6, 7]]])
def test_token_ids_are_embedded_as_they_are(codec: EmbeddingCodec, value: Any) -> None:
    assert rows_of(codec, request(input=value)) == [[5, 6, 7]]


def test_every_token_of_the_vocabulary_may_be_sent(codec: EmbeddingCodec) -> None:
    assert rows_of(codec, request(input=[0, VOCABULARY - 1])) == [[0, VOCABULARY - 1]]


@pytest.mark.parametrize("token", [-1, VOCABULARY, 10**30])
def test_a_token_out_of_the_vocabulary_is_refused(codec: EmbeddingCodec, token: int) -> None:
    error = refused(codec, input=[[5], [6, token]])
    assert (error.status, error.param) == (400, "input")
    assert f"input 1 holds token {token}, and the model's tokens are 0 to 319" in error.message


@pytest.mark.parametrize("use", ["query", "document"])
def test_token_ids_cannot_be_given_a_prompt(codec: EmbeddingCodec, use: str) -> None:
    error = refused(codec, input=[5, 6], input_type=use)
    assert (error.status, error.param) == (400, "input_type")


@pytest.mark.parametrize("use", ["query", "document"])
def test_token_ids_may_have_a_use_without_a_prompt(plain_codec: EmbeddingCodec, use: str) -> None:
    assert rows_of(plain_codec, request(input=[5, 6], input_type=use)) == [[5, 6]]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "input 0 is empty"),
        (" \n", "input 0 is empty"),
        (["a", ""], "input 1 is empty"),
        ([[5], []], "input 1 is empty"),
        ([[]], "input 0 is empty"),
        ([], "input has 0 entries: give at least one"),
    ],
    ids=str,
)
def test_nothing_is_refused(codec: EmbeddingCodec, value: Any, said: str) -> None:
    error = refused(codec, input=value)
    assert (error.status, error.param) == (400, "input")
    assert said in error.message


@pytest.mark.parametrize("value", [[5], "a"])
def test_any_number_of_inputs_is_taken(codec: EmbeddingCodec, value: Any) -> None:
    assert len(rows_of(codec, request(input=[value] * 5000))) == 5000


def test_inputs_of_many_slices_stay_in_order(
    codec: EmbeddingCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text {number}" for number in range(100)]
    wanted = rows_of(codec, request(input=texts))
    monkeypatch.setattr(embedding_codec, "_SLICE", 50)
    assert rows_of(codec, request(input=texts)) == wanted
    error = refused(codec, input=[*texts, "a " * LONGEST])
    assert "input 100 has " in error.message


def test_a_text_that_is_far_too_long_is_refused_before_it_is_tokenized(
    codec: EmbeddingCodec, gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(gem._tokenizer), "encode", None)
    error = refused(codec, input=["a", "a" * 1_000_000])
    assert (error.status, error.param) == (400, "input")
    assert "input 1 has 1000000 characters" in error.message
    assert "truncate_prompt_tokens=-1" in error.message


def test_a_request_that_is_cancelled_is_not_tokenized_further(
    codec: EmbeddingCodec, gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_codec, "_SLICE", 1)
    encode, seen = type(gem._tokenizer).encode, list[str]()

    async def cancel_at_the_third() -> None:
        loop = asyncio.get_running_loop()

        def counted(self: Any, texts: Any, special: bool) -> Any:
            seen.extend(texts)
            if len(seen) == 3:
                loop.call_soon_threadsafe(task.cancel)
            return encode(self, texts, special)

        monkeypatch.setattr(type(gem._tokenizer), "encode", counted)
        task = asyncio.ensure_future(codec.rows(request(input=["text"] * 1000)))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_at_the_third())
    assert 3 <= len(seen) < 1000


# -- vLLM's fields -----------------------------------------------------------------------------


def test_truncation_keeps_the_first_or_the_last_tokens(codec: EmbeddingCodec, gem: Gem) -> None:
    text = " ".join(f"word{number}" for number in range(200))
    whole = gem._tokenizer.encode(["passage: " + text])[0].ids
    assert whole[0] == BOS
    assert len(whole) > LONGEST
    for limit, length in ((-1, LONGEST), (LONGEST, LONGEST), (7, 7)):
        cut = {"input": text, "truncate_prompt_tokens": limit}
        assert rows_of(codec, request(**cut)) == [whole[:length]]
        last = rows_of(codec, request(**cut, truncation_side="left"))
        assert last == [[BOS, *whole[1 - length :]]]


def test_token_ids_are_truncated_too(codec: EmbeddingCodec) -> None:
    ids = [5 + number % 9 for number in range(LONGEST + 5)]
    assert rows_of(codec, request(input=ids, truncate_prompt_tokens=3)) == [ids[:3]]
    left = request(input=ids, truncate_prompt_tokens=-1, truncation_side="left")
    assert rows_of(codec, left) == [ids[-LONGEST:]]


def test_short_inputs_are_not_truncated(codec: EmbeddingCodec) -> None:
    whole = rows_of(codec, request(input=["a b", "c"]))
    assert rows_of(codec, request(input=["a b", "c"], truncate_prompt_tokens=-1)) == whole


def test_megabytes_are_truncated_before_they_are_tokenized(
    codec: EmbeddingCodec, gem: Gem, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, longest = type(gem._tokenizer).encode, list[int]()

    def measured(self: Any, texts: Any, special: bool) -> Any:
        longest.append(max(map(len, texts)))
        return encode(self, texts, special)

    monkeypatch.setattr(type(gem._tokenizer), "encode", measured)
    [row] = rows_of(codec, request(input="word " * 1_000_000, truncate_prompt_tokens=-1))
    assert len(row) == LONGEST
    assert max(longest) <= LONGEST * gem._tokenizer.max_token_length + len("passage: ")


@pytest.mark.parametrize("limit", [0, LONGEST + 1, 1])
def test_a_truncation_that_cannot_be_is_refused(codec: EmbeddingCodec, limit: int) -> None:
    error = refused(codec, input="some text", truncate_prompt_tokens=limit)
    assert (error.status, error.param) == (400, "truncate_prompt_tokens")


def test_special_tokens_may_be_left_out(codec: EmbeddingCodec) -> None:
    [plain] = rows_of(codec, request(input="some text"))
    assert plain[0] == BOS
    assert rows_of(codec, request(input="some text", add_special_tokens=False)) == [plain[1:]]


def test_a_conversation_is_embedded_by_the_chat_template(codec: EmbeddingCodec) -> None:
    messages = [{"role": "user", "content": "hello"}]
    tokenizer = codec._tokenizer
    wanted = tokenizer.encode_chat(messages, add_generation_prompt=False)
    assert rows_of(codec, request(messages=messages)) == [wanted]
    asked = request(messages=messages, add_generation_prompt=True)
    assert rows_of(codec, asked) == [tokenizer.encode_chat(messages)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "word " * 1000}]}, "input"),
        ({"messages": [{"content": 3}], "chat_template_kwargs": {"tokenize": 1}}, "messages"),
        (
            {"messages": [{"content": "a"}], "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
            "chat_template_kwargs",
        ),
    ],
)
def test_conversations_that_cannot_be_embedded_are_refused(
    codec: EmbeddingCodec, fields: dict[str, Any], param: str
) -> None:
    error = refused(codec, **fields)
    assert (error.status, error.param) == (400, param)


def test_a_model_without_a_chat_template_refuses_conversations(
    mute_codec: EmbeddingCodec,
) -> None:
    error = refused(mute_codec, messages=[{"role": "user", "content": "hello"}])
    assert error.param == "messages"
    assert "chat template" in error.message


@pytest.mark.parametrize(
    "field",
    [
        {"use_activation": False},
        {"embed_dtype": "float16"},
        {"endianness": "big"},
        {"padding": "max_length"},
        {"chat_template": "{{ messages }}"},
        {"truncation_side": "middle"},
        {"messages": [{"role": "user", "content": "both"}]},
    ],
)
def test_fields_that_cannot_be_obeyed_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        request(input="a", **field)
    assert caught.value.param == next(iter(field))


def test_an_unpaired_surrogate_is_refused_by_name(codec: EmbeddingCodec) -> None:
    with pytest.raises(ApiError, match="JSON"):
        request(input="\ud800")


def test_an_input_that_is_too_long_is_refused(codec: EmbeddingCodec) -> None:
    assert rows_of(codec, request(input=[5] * LONGEST)) == [[5] * LONGEST]
    for value in ([[5], [5] * (LONGEST + 1)], ["a", "a " * LONGEST]):
        error = refused(codec, input=value)
        assert (error.status, error.param) == (400, "input")
        assert "input 1 has " in error.message
        assert f"at most {LONGEST}" in error.message


@pytest.mark.parametrize("model", ["tiny", "alias", None])
def test_a_model_is_called_by_any_of_its_names(codec: EmbeddingCodec, model: str | None) -> None:
    assert rows_of(codec, request(input=[5], model=model)) == [[5]]


@pytest.mark.parametrize("model", ["other", "", "Tiny"])
def test_another_model_is_not_found(codec: EmbeddingCodec, model: str) -> None:
    error = refused(codec, input=[5], model=model)
    assert (error.status, error.param) == (404, "model")
    assert "'tiny'" in error.message


def test_more_dimensions_than_there_are_are_refused(codec: EmbeddingCodec, gem: Gem) -> None:
    assert rows_of(codec, request(input=[5], dimensions=gem.dim)) == [[5]]
    error = refused(codec, input=[5], dimensions=gem.dim + 1)
    assert (error.status, error.param) == (400, "dimensions")


# -- vectors to responses ----------------------------------------------------------------------


def embeddings(response: dict[str, Any]) -> list[Any]:
    return [entry["embedding"] for entry in response["data"]]


def test_a_response_is_in_openais_form(codec: EmbeddingCodec, vectors: np.ndarray) -> None:
    rows = [[1, 2], [3], [4, 5, 6]]
    found = response(codec, request(input=rows, model="alias", request_id="me"), rows, vectors)
    assert time.time() - 60 < found.pop("created") <= time.time()
    assert found == {
        "id": "embd-me",
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector.tolist()}
            for index, vector in enumerate(vectors)
        ],
        "model": "alias",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }


def test_a_response_names_the_model_where_the_request_does_not(
    codec: EmbeddingCodec, vectors: np.ndarray
) -> None:
    assert response(codec, request(input=[5]), [[5]], vectors[:1])["model"] == "tiny"


def test_tokens_of_the_prompt_are_counted(codec: EmbeddingCodec, vectors: np.ndarray) -> None:
    asked = request(input="The quick brown fox")
    rows = rows_of(codec, asked)
    used = response(codec, asked, rows, vectors[:1])["usage"]
    assert used == {"prompt_tokens": len(rows[0]), "total_tokens": len(rows[0])}


@pytest.mark.parametrize("dimensions", [None, 5])
def test_base64_is_the_floats_little_endian(
    codec: EmbeddingCodec, vectors: np.ndarray, dimensions: int | None
) -> None:
    rows = [[5], [6], [7]]
    asked = {"input": rows, "dimensions": dimensions}
    floats = embeddings(response(codec, request(**asked), rows, vectors))
    texts = embeddings(response(codec, request(**asked, encoding_format="base64"), rows, vectors))
    assert [np.frombuffer(base64.b64decode(text), "<f4").tolist() for text in texts] == floats


@pytest.mark.parametrize("dimensions", [1, 5, 31])
def test_fewer_dimensions_are_the_first_ones_made_unit_vectors(
    codec: EmbeddingCodec, vectors: np.ndarray, dimensions: int
) -> None:
    rows = [[5], [6], [7]]
    found = np.array(
        embeddings(response(codec, request(input=rows, dimensions=dimensions), rows, vectors))
    )
    assert found.shape == (3, dimensions)
    lengths = np.linalg.norm(vectors[:, :dimensions], axis=1, keepdims=True)
    assert np.allclose(found * lengths, vectors[:, :dimensions], atol=1e-6)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


# -- the route ---------------------------------------------------------------------------------


@pytest.fixture
def client(codec: EmbeddingCodec, gem: Gem) -> TestClient:
    async def answer(asked: EmbeddingRequest, raw_request: Request) -> Response:
        if asked.user == "unlucky":
            raise ApiError("the engine has died", status=503)
        rows = await codec.rows(asked)
        return Response(codec.response(asked, rows, vectors_of(gem, *map(Row.whole, rows))))

    app = FastAPI()
    app.include_router(embeddings_router(answer))
    return TestClient(app)


def test_the_route_answers_with_embeddings(client: TestClient, gem: Gem) -> None:
    texts = ["The quick brown fox", "a lazy dog"]
    answer = client.post("/v1/embeddings", json={"input": texts, "input_type": "query"})
    assert answer.status_code == 200
    found = np.array(embeddings(answer.json()), np.float32)
    assert close_to(found, gem.embed_queries(texts))


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"{", 400, {"type": "BadRequestError", "param": None, "code": 400}),
        (b"{}", 400, {"type": "BadRequestError", "param": "input", "code": 400}),
        (
            b'{"input": "a", "model": "other"}', 404,
            {"type": "NotFoundError", "param": "model", "code": 404},
        ),
        (
            json.dumps({"input": [5] * (LONGEST + 1)}).encode(), 400,
            {"type": "BadRequestError", "param": "input", "code": 400},
        ),
        (
            b'{"input": "a", "user": "unlucky"}', 503,
            {"type": "Service Unavailable", "param": None, "code": 503},
        ),
    ],
    ids=["json", "input", "model", "length", "engine"],
)  # fmt: skip
def test_errors_have_openais_shape(
    client: TestClient, body: bytes, status: int, error: dict[str, Any]
) -> None:
    answer = client.post("/v1/embeddings", content=body, headers=JSON)
    assert answer.status_code == status
    found = answer.json()
    assert list(found) == ["error"]
    assert found["error"].pop("message")
    assert found["error"] == error


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_bodies_that_are_not_json_by_their_type_are_refused(
    client: TestClient, content_type: str
) -> None:
    headers = {"content-type": content_type}
    answer = client.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
    assert answer.status_code == 400
    assert "send the body as application/json" in answer.json()["error"]["message"]


def test_a_body_beyond_all_bounds_is_not_parsed(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_BODY_BYTES", 1 << 20)
    body = json.dumps({"input": ["a" * 1000] * 2000}).encode()
    answer = client.post("/v1/embeddings", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, 413)


def test_the_route_is_described_by_the_requests_own_schema(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]["/v1/embeddings"]["post"]
    schema = described["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(EmbeddingRequest.model_fields)
