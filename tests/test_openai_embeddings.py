"""Embedding requests in OpenAI's form: what is understood, what is refused, what comes back."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

from fastapi import FastAPI
from fastapi.testclient import TestClient
from helpers import BOS, SPECIAL_TOKENS, VOCABULARY, close_to, vectors_of, written

from gem_rag.core.config import GemConfig
from gem_rag.core.layout import Row
from gem_rag.engines.vllm.openai_embeddings import (
    MAX_INPUTS,
    ApiError,
    EmbeddingCodec,
    EmbeddingRequest,
    embeddings_router,
    parse_request,
)
from gem_rag.model import Gem

LONGEST = 60


def request(**fields: Any) -> EmbeddingRequest:
    return parse_request(json.dumps(fields).encode())


def refused(codec: EmbeddingCodec, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        codec.rows(request(**fields))
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
    assert request(input="a", user="me", truncate_prompt_tokens=3).inputs == ["a"]


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
        parse_request(body)
    error = caught.value
    assert (error.status, error.type, error.param) == (400, "invalid_request_error", param)
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
        parse_request(body)


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
    assert codec.rows(request(input=texts, **fields)) == wanted


def test_rows_embed_as_the_model_itself_does(codec: EmbeddingCodec, gem: Gem) -> None:
    text = "The quick brown fox"
    for use, wanted in (
        ("query", gem.embed_queries([text])),
        ("document", gem.embed_documents([text])),
    ):
        [row] = codec.rows(request(input=text, input_type=use))
        assert close_to(vectors_of(gem, Row.whole(row)), wanted)


def test_two_uses_that_differ_are_refused(codec: EmbeddingCodec) -> None:
    error = refused(codec, input="a", input_type="query", prompt_name="document")
    assert (error.status, error.param) == (400, "prompt_name")


def test_names_of_special_tokens_are_plain_text(codec: EmbeddingCodec, gem: Gem) -> None:
    text = "".join(SPECIAL_TOKENS)
    [row] = codec.rows(request(input=text))
    assert row == gem._tokenizer.encode(["passage: " + text])[0].ids
    assert row[0] == BOS
    assert not set(row[1:]) & set(range(len(SPECIAL_TOKENS)))
    assert "".join(written(gem, row)) == "passage: " + text


@pytest.mark.parametrize("value", [[5, 6, 7], [[5, 6, 7]]])
def test_token_ids_are_embedded_as_they_are(codec: EmbeddingCodec, value: Any) -> None:
    assert codec.rows(request(input=value)) == [[5, 6, 7]]


def test_every_token_of_the_vocabulary_may_be_sent(codec: EmbeddingCodec) -> None:
    assert codec.rows(request(input=[0, VOCABULARY - 1])) == [[0, VOCABULARY - 1]]


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
    assert plain_codec.rows(request(input=[5, 6], input_type=use)) == [[5, 6]]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "input 0 is empty"),
        (" \n", "input 0 is empty"),
        (["a", ""], "input 1 is empty"),
        ([[5], []], "input 1 is empty"),
        ([[]], "input 0 is empty"),
        ([], "input has 0 entries: give from 1 to 2048"),
        (["a"] * (MAX_INPUTS + 1), "input has 2049 entries"),
        ([[5]] * (MAX_INPUTS + 1), "input has 2049 entries"),
    ],
    ids=str,
)
def test_nothing_and_too_much_are_refused(codec: EmbeddingCodec, value: Any, said: str) -> None:
    error = refused(codec, input=value)
    assert (error.status, error.param) == (400, "input")
    assert said in error.message


def test_as_many_inputs_as_openai_takes_are_taken(codec: EmbeddingCodec) -> None:
    assert len(codec.rows(request(input=[[5]] * MAX_INPUTS))) == MAX_INPUTS


def test_an_input_that_is_too_long_is_refused(codec: EmbeddingCodec) -> None:
    assert codec.rows(request(input=[5] * LONGEST)) == [[5] * LONGEST]
    for value in ([[5], [5] * (LONGEST + 1)], ["a", "a " * LONGEST]):
        error = refused(codec, input=value)
        assert (error.status, error.param) == (400, "input")
        assert error.code == "context_length_exceeded"
        assert "input 1 has " in error.message
        assert f"at most {LONGEST}" in error.message


@pytest.mark.parametrize("model", ["tiny", "alias", None])
def test_a_model_is_called_by_any_of_its_names(codec: EmbeddingCodec, model: str | None) -> None:
    assert codec.rows(request(input=[5], model=model)) == [[5]]


@pytest.mark.parametrize("model", ["other", "", "Tiny"])
def test_another_model_is_not_found(codec: EmbeddingCodec, model: str) -> None:
    error = refused(codec, input=[5], model=model)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert "'tiny'" in error.message


def test_more_dimensions_than_there_are_are_refused(codec: EmbeddingCodec, gem: Gem) -> None:
    assert codec.rows(request(input=[5], dimensions=gem.dim)) == [[5]]
    error = refused(codec, input=[5], dimensions=gem.dim + 1)
    assert (error.status, error.param) == (400, "dimensions")


# -- vectors to responses ----------------------------------------------------------------------


def embeddings(response: dict[str, Any]) -> list[Any]:
    return [entry["embedding"] for entry in response["data"]]


def test_a_response_is_in_openais_form(codec: EmbeddingCodec, vectors: np.ndarray) -> None:
    rows = [[1, 2], [3], [4, 5, 6]]
    found = codec.response(request(input=rows, model="alias"), rows, vectors)
    assert json.loads(json.dumps(found)) == {
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
    assert codec.response(request(input=[5]), [[5]], vectors[:1])["model"] == "tiny"


def test_tokens_of_the_prompt_are_counted(codec: EmbeddingCodec, vectors: np.ndarray) -> None:
    asked = request(input="The quick brown fox")
    rows = codec.rows(asked)
    used = codec.response(asked, rows, vectors[:1])["usage"]
    assert used == {"prompt_tokens": len(rows[0]), "total_tokens": len(rows[0])}


@pytest.mark.parametrize("dimensions", [None, 5])
def test_base64_is_the_floats_little_endian(
    codec: EmbeddingCodec, vectors: np.ndarray, dimensions: int | None
) -> None:
    rows = [[5], [6], [7]]
    asked = {"input": rows, "dimensions": dimensions}
    floats = embeddings(codec.response(request(**asked), rows, vectors))
    texts = embeddings(codec.response(request(**asked, encoding_format="base64"), rows, vectors))
    assert [np.frombuffer(base64.b64decode(text), "<f4").tolist() for text in texts] == floats


@pytest.mark.parametrize("dimensions", [1, 5, 31])
def test_fewer_dimensions_are_the_first_ones_made_unit_vectors(
    codec: EmbeddingCodec, vectors: np.ndarray, dimensions: int
) -> None:
    rows = [[5], [6], [7]]
    found = np.array(
        embeddings(codec.response(request(input=rows, dimensions=dimensions), rows, vectors))
    )
    assert found.shape == (3, dimensions)
    lengths = np.linalg.norm(vectors[:, :dimensions], axis=1, keepdims=True)
    assert np.allclose(found * lengths, vectors[:, :dimensions], atol=1e-6)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


# -- the route ---------------------------------------------------------------------------------


@pytest.fixture
def client(codec: EmbeddingCodec, gem: Gem) -> TestClient:
    async def answer(asked: EmbeddingRequest) -> dict[str, Any]:
        if asked.user == "unlucky":
            raise ApiError("the engine has died", status=503, type="server_error")
        rows = codec.rows(asked)
        return codec.response(asked, rows, vectors_of(gem, *map(Row.whole, rows)))

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
        (b"{", 400, {"type": "invalid_request_error", "param": None, "code": None}),
        (b"{}", 400, {"type": "invalid_request_error", "param": "input", "code": None}),
        (
            b'{"input": "a", "model": "other"}', 404,
            {"type": "not_found_error", "param": "model", "code": "model_not_found"},
        ),
        (
            json.dumps({"input": [5] * (LONGEST + 1)}).encode(), 400,
            {"type": "invalid_request_error", "param": "input", "code": "context_length_exceeded"},
        ),
        (
            b'{"input": "a", "user": "unlucky"}', 503,
            {"type": "server_error", "param": None, "code": None},
        ),
    ],
    ids=["json", "input", "model", "length", "engine"],
)  # fmt: skip
def test_errors_have_openais_shape(
    client: TestClient, body: bytes, status: int, error: dict[str, Any]
) -> None:
    answer = client.post("/v1/embeddings", content=body)
    assert answer.status_code == status
    found = answer.json()
    assert list(found) == ["error"]
    assert found["error"].pop("message")
    assert found["error"] == error


def test_the_route_is_described_by_the_requests_own_schema(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]["/v1/embeddings"]["post"]
    schema = described["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["input"]
    assert set(schema["properties"]) == set(EmbeddingRequest.model_fields)
