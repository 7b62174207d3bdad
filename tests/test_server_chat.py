"""OpenAI's routes on the transformers engine: what they answer, and what they refuse by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

from client_checks import WEATHER
from fastapi.testclient import TestClient
from serving import ASKED, ENDLESS, MODEL, make_app, refusal

import gem_rag
from gem_rag.model import Gem
from gem_rag.rag.reranking import relevance

CHAT = "/v1/chat/completions"
SHORT = {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def gem() -> Iterator[Gem]:
    with gem_rag.load(MODEL) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(gem: Gem) -> Iterator[TestClient]:
    with TestClient(make_app(gem), base_url="http://127.0.0.1") as made:
        yield made


def answer(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post(CHAT, json={**SHORT, **fields})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def chunks(client: TestClient, path: str, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as OpenAI's do."""
    response = client.post(path, json={**fields, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


# -- chats -------------------------------------------------------------------------------------


def test_a_chat_is_what_the_model_says(client: TestClient, gem: Gem) -> None:
    wanted = gem.chat(ASKED, max_tokens=8)
    found = answer(client)
    [choice] = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": wanted.text, "refusal": None}
    assert choice["finish_reason"] == wanted.finish_reason
    assert found["object"] == "chat.completion"
    assert found["usage"] == {
        "prompt_tokens": wanted.prompt_tokens,
        "completion_tokens": len(wanted.tokens),
        "total_tokens": wanted.prompt_tokens + len(wanted.tokens),
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_streamed_chat_has_the_same_text_and_its_usage_last(client: TestClient) -> None:
    whole = answer(client)
    found = chunks(client, CHAT, **SHORT, stream_options={"include_usage": True})
    *pieces, last = found
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert deltas[0]["role"] == "assistant"
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    reasons = [piece["choices"][0]["finish_reason"] for piece in pieces]
    assert reasons == [None] * (len(pieces) - 1) + [whole["choices"][0]["finish_reason"]]
    assert len({piece["id"] for piece in found}) == 1


def test_usage_says_how_much_of_a_prompt_was_read_before(client: TestClient) -> None:
    """Of chats, whole and streamed, and of completions."""
    prompt = {"prompt": "list append insert pop. " * 20, "max_tokens": 2}
    messages = {"messages": [{"role": "user", "content": "file open read close. " * 20}]}
    usual = {"include_usage": True}
    for path, body in ((CHAT, messages), ("/v1/completions", prompt)):
        body = {"model": "gem-tiny", "max_tokens": 2, **body}
        first, second = (client.post(path, json=body).json()["usage"] for _ in range(2))
        assert first["prompt_tokens_details"]["cached_tokens"] < 64
        again = {"cached_tokens": first["prompt_tokens"] - 1}
        assert second["prompt_tokens_details"] == again
        streamed = chunks(client, path, **body, stream_options=usual)[-1]["usage"]
        assert streamed["prompt_tokens_details"] == again


def test_without_max_tokens_the_context_is_the_limit(client: TestClient, gem: Gem) -> None:
    prompt = len(gem.tokenize_chat(ASKED))
    found = chunks(client, "/v1/completions", **{**ENDLESS, "max_tokens": 5})
    assert found[-1]["choices"][0]["finish_reason"] == "length"
    too_many = client.post(CHAT, json={**SHORT, "max_tokens": gem.context_length})
    assert f"{prompt} tokens" in refusal(too_many, 400)["message"]
    assert answer(client, max_tokens=None)["usage"]["completion_tokens"] > 8


def test_sampling_repeats_with_a_seed(client: TestClient, gem: Gem) -> None:
    options = {"temperature": 1.5, "seed": 7, "top_p": 0.9, "top_k": 50}
    wanted = gem.chat(ASKED, max_tokens=8, **options).text
    found = [answer(client, **options)["choices"][0]["message"]["content"] for _ in range(2)]
    assert found == [wanted, wanted]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_tool_is_called_by_its_schema(client: TestClient, stream: bool, choice: Any) -> None:
    asked = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 60}
    if stream:
        found = chunks(client, CHAT, **{**SHORT, **asked})
        calls = [d["tool_calls"] for d in deltas(found) if "tool_calls" in d]
        [[call]] = calls
        assert call.pop("index") == 0
        reason = found[-1]["choices"][0]["finish_reason"]
    else:
        [whole] = answer(client, **asked)["choices"]
        [call], reason = whole["message"]["tool_calls"], whole["finish_reason"]
        assert whole["message"]["content"] is None
    assert reason == "tool_calls"
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Rome")


def deltas(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in found if chunk["choices"]]


def test_a_call_that_is_cut_says_so(client: TestClient) -> None:
    [choice] = answer(client, tools=[WEATHER], tool_choice="required", max_tokens=3)["choices"]
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["tool_calls"]) == 1


def test_no_tool_is_called_where_none_may_be(client: TestClient) -> None:
    [choice] = answer(client, tools=[WEATHER], tool_choice="none")["choices"]
    assert choice["message"]["content"] == answer(client)["choices"][0]["message"]["content"]


def test_a_reply_and_a_tools_result_may_be_sent_back(client: TestClient) -> None:
    asked = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 60}
    said = answer(client, **asked)["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "Sun."}
    assert answer(client, messages=[*ASKED, said, result])["choices"]


def test_an_answer_has_the_schema_that_was_asked_for(client: TestClient) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    [choice] = answer(client, response_format=form, max_tokens=40)["choices"]
    assert json.loads(choice["message"]["content"])["n"] in (1, 2)
    [cut] = answer(client, response_format=form, max_tokens=2)["choices"]
    assert cut["finish_reason"] == "length"
    assert "raise max_tokens" in cut["message"]["schema_error"]


# -- completions, tokens, models ----------------------------------------------------------------


def test_completions_continue_texts_and_token_ids(client: TestClient, gem: Gem) -> None:
    prompts = ["A list is", "A tuple is"]
    wanted = [found.text for found in gem.generate(prompts, max_tokens=16)]
    for given in (prompts, [gem.tokenize(prompt) for prompt in prompts]):
        response = client.post(
            "/v1/completions", json={"model": MODEL, "prompt": given, "temperature": 0}
        )
        assert [choice["text"] for choice in response.json()["choices"]] == wanted
    found = chunks(client, "/v1/completions", model=MODEL, prompt=prompts[0], temperature=0)
    assert "".join(chunk["choices"][0]["text"] for chunk in found) == wanted[0]


def test_tokens_are_those_the_model_reads(client: TestClient, gem: Gem) -> None:
    found = client.post("/tokenize", json={"prompt": "A list"}).json()
    assert found == {"count": 2, "max_model_len": 1024, "tokens": gem.tokenize("A list")}
    found = client.post("/tokenize", json={"messages": ASKED}).json()
    assert found["tokens"] == gem.tokenize_chat(ASKED)


def test_the_model_is_listed(client: TestClient) -> None:
    model, _ = client.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == (MODEL, 1024)
    assert client.get(f"/v1/models/{MODEL}").json() == model
    assert "use 'gem-tiny'" in refusal(client.get("/v1/models/other"), 404)["message"]


# -- scores ------------------------------------------------------------------------------------


def test_documents_are_put_in_the_order_of_their_relevance(client: TestClient, gem: Gem) -> None:
    texts = ["A tuple is immutable.", "Lists are created by square brackets.", "Rain."]
    asked = {"query": ASKED[0]["content"], "documents": [texts[0], {"text": texts[1]}, texts[2]]}
    wanted = relevance(gem, asked["query"], texts)
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        results = client.post(path, json=asked).json()["results"]
        assert [one["index"] for one in results] == list((-wanted).argsort())
        assert [one["document"]["text"] for one in results] == [
            texts[i] for i in (-wanted).argsort()
        ]
    [best] = client.post("/rerank", json={**asked, "top_n": 1}).json()["results"]
    assert best == results[0]
    scores = client.post("/score", json={"text_1": asked["query"], "text_2": texts}).json()["data"]
    by_index = {one["index"]: one["relevance_score"] for one in results}
    assert [one["score"] for one in scores] == pytest.approx([by_index[i] for i in range(3)], 1e-4)


def test_pairs_that_do_not_fit_are_refused(client: TestClient) -> None:
    error = refusal(client.post("/score", json={"text_1": ["a", "b"], "text_2": ["c"]}), 400)
    assert "text_1 has 2 entries and text_2 1" in error["message"]


# -- what is refused by name ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "param", "said"),
    [
        ({"model": "gem-tini"}, 404, "model", "did you mean 'gem-tiny'"),
        ({"model": "rag/docs"}, 404, "model", "there is no model 'rag/docs' here"),
        ({"messages": []}, 400, "messages", "at least 1 item"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, None, "the role 'king'"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "messages", "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None, "text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            400,
            "messages",
            "give it",
        ),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, 400, None, "shorten"),
        ({"temprature": 1}, 400, "temprature", "did you mean 'temperature'"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"temperature": 1e-300}, 400, "temperature", "give 0, or 0.001 and more"),
        ({"temperature": 1e300}, 400, "temperature", "less than or equal to 1000"),
        ({"temperature": "hot"}, 400, "temperature", "valid number"),
        ({"top_p": 0}, 400, None, "top_p must be above 0"),
        ({"n": 0}, 400, "n", "greater than or equal to 1"),
        ({"n": 2, "stream": True}, 400, "n", "one answer can be streamed"),
        ({"best_of": 2}, 400, "best_of", "knows only 1"),
        ({"logprobs": 21}, 400, "logprobs", "or from 0 to 20"),
        ({"top_logprobs": 21}, 400, "top_logprobs", "less than or equal to 20"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias", "leave it out"),
        ({"presence_penalty": 3}, 400, "presence_penalty", "less than or equal to 2"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"max_completion_tokens": 5}, 400, "max_tokens", "say the same"),
        ({"tool_choice": "get_wether"}, 400, "tool_choice", "should be 'auto'"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "tools[0]"),
        ({"response_format": {"type": "xml"}}, 400, None, "response_format must be"),
        (
            {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
            400,
            "chat_template_kwargs",
            "own",
        ),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, 400, "stream_options", "unknown field 'x'"),
        ({"rag": {"k": 3}}, 400, "rag", "rag/NAME"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_obeyed_is_refused_by_name(
    client: TestClient, fields: Any, status: int, param: str | None, said: str
) -> None:
    error = refusal(client.post(CHAT, json={**SHORT, **fields}), status)
    assert error["param"] == param
    assert said in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "logprobs": False, "presence_penalty": 0, "logit_bias": {}, "user": "me"},
        {"metadata": {"chat": "1"}, "store": False, "parallel_tool_calls": True},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": ASKED[0]["content"]}]}
            ]
        },
        {"max_tokens": None, "max_completion_tokens": 8},
    ],
    ids=str,
)
def test_what_changes_nothing_is_taken(client: TestClient, fields: Any) -> None:
    assert answer(client, **fields)["choices"] == answer(client)["choices"]


def test_log_probabilities(client: TestClient) -> None:
    asked = {"logprobs": True, "top_logprobs": 2, "temperature": 0}
    whole = answer(client, **asked)
    content = whole["choices"][0]["logprobs"]["content"]
    assert len(content) == whole["usage"]["completion_tokens"]
    for one in content:
        assert bytes(one["bytes"]).decode() == one["token"]
        assert one["token"] == one["top_logprobs"][0]["token"]  # the likeliest was taken
        assert len(one["top_logprobs"]) == 2
    *_, last = chunks(client, CHAT, **{**SHORT, **asked})
    assert [one["token"] for one in last["choices"][0]["logprobs"]["content"]] == [
        one["token"] for one in content
    ]
    asked = {"model": MODEL, "prompt": "The list", "max_tokens": 4, "logprobs": 2, "temperature": 0}
    [choice] = client.post("/v1/completions", json=asked).json()["choices"]
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"]
    assert [len(top) for top in found["top_logprobs"]] == [2] * len(found["tokens"])
    assert found["text_offset"][:2] == [0, len(found["tokens"][0])]


def test_several_answers_to_one_request(client: TestClient) -> None:
    whole = answer(client, n=3, temperature=1.5, seed=1)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in whole["choices"]}) > 1
    assert whole["usage"]["prompt_tokens"] == answer(client)["usage"]["prompt_tokens"]
    asked = {"model": MODEL, "prompt": ["The list", "A file"], "max_tokens": 4, "n": 2}
    found = client.post("/v1/completions", json={**asked, "temperature": 0}).json()
    texts = [choice["text"] for choice in found["choices"]]
    assert texts[0] == texts[1] != texts[2] == texts[3]


def test_penalties_reach_the_model(client: TestClient) -> None:
    asked = {"model": MODEL, "prompt": "The list", "max_tokens": 24, "temperature": 0}
    free, held = (
        client.post("/v1/completions", json={**asked, **more}).json()["choices"][0]["text"]
        for more in ({}, {"frequency_penalty": 2, "presence_penalty": 2})
    )
    assert free != held


def test_several_prompts_cannot_be_streamed(client: TestClient) -> None:
    asked = {"model": MODEL, "prompt": ["a", "b"], "stream": True}
    assert refusal(client.post("/v1/completions", json=asked), 400)["param"] == "prompt"


def test_routes_and_methods_that_are_not_there(client: TestClient) -> None:
    assert "no route /v1/images" in refusal(client.post("/v1/images"), 404)["message"]
    assert "does not take GET" in refusal(client.get(CHAT), 405)["message"]
