"""What clients of other makers get from a server of gem-tiny and an index "docs", on any engine.

Each check takes the server's address and the model in this process.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from helpers import close_to
from serving import ALIAS, ASKED, DEADLINE, ENDLESS, LISTS, MODEL, QUESTION, metric, wait_until

from gem_rag.model import Gem

Check = Callable[[str, Gem], None]
QUOTE = "Lists are created by square brackets."
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
INDEXED = "rag/docs"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
        },
    },
}
RUNNING = "gem_rag:requests_running"


def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)


def chatted(gem: Gem) -> str:
    return gem.chat(ASKED, max_tokens=12).text


# -- OpenAI's client -----------------------------------------------------------------------------


def openai_lists_chats_streams_and_embeds(url: str, gem: Gem) -> None:
    with openai_client(url) as client:
        assert [model.id for model in client.models.list()] == [MODEL, ALIAS, INDEXED]
        chat = client.chat.completions.create(model=MODEL, messages=ASKED, **GREEDY)
        assert chat.choices[0].message.content == chatted(gem)
        pieces = list(
            client.chat.completions.create(
                model=MODEL, messages=ASKED, stream=True,
                stream_options={"include_usage": True}, **GREEDY,
            )
        )  # fmt: skip
        text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        assert text == chatted(gem)
        assert pieces[-1].usage == chat.usage
        done = client.completions.create(model=MODEL, prompt="A list is", **GREEDY)
        assert done.choices[0].text == gem.generate(["A list is"], max_tokens=12)[0].text
        vectors = client.embeddings.create(model=MODEL, input=["A list", "A tuple"]).data
        found = np.array([entry.embedding for entry in vectors], np.float32)
        assert close_to(found, gem.embed_documents(["A list", "A tuple"]))


def openai_chats_with_documents(url: str, gem: Gem) -> None:
    with openai_client(url) as client:
        message = client.chat.completions.create(model=INDEXED, messages=ASKED).choices[0].message
        assert message.content == f"{QUOTE} [1]"
        assert message.annotations is not None
        [annotation] = message.annotations
        assert annotation.url_citation.title == "manual/lists.md, line 3"
        assert httpx.get(annotation.url_citation.url).status_code == 200
        pieces = list(client.chat.completions.create(model=INDEXED, messages=ASKED, stream=True))
        assert "".join(p.choices[0].delta.content or "" for p in pieces) == message.content
        cited = [
            a for p in pieces for a in (p.choices[0].delta.model_extra or {}).get("annotations", [])
        ]
        assert [a["url_citation"] for a in cited] == [annotation.url_citation.model_dump()]


def openai_calls_tools(url: str, gem: Gem) -> None:
    for choice, own in (("required", "any"), ("auto", "auto"), ("none", "none")):
        wanted = gem.chat(ASKED, [WEATHER], own, max_tokens=60)
        with openai_client(url) as client:
            [found] = client.chat.completions.create(
                model=MODEL, messages=ASKED, tools=[WEATHER], tool_choice=choice,
                temperature=0, max_tokens=60,
            ).choices  # fmt: skip
        called = [json.loads(call.function.arguments) for call in found.message.tool_calls or ()]
        assert called == [call.arguments for call in wanted.tool_calls]
        assert (found.message.content or "") == wanted.text


def openai_raises_its_own_errors(url: str, gem: Gem) -> None:
    with openai_client(url) as client:
        with pytest.raises(openai.NotFoundError, match="rag/dogs"):
            client.chat.completions.create(model="rag/dogs", messages=ASKED)
        said: Any = [*ASKED, {"role": "assistant", "content": "x"}]
        with pytest.raises(openai.BadRequestError, match="no question"):
            client.chat.completions.create(model=INDEXED, messages=said)


# -- LangChain's and LlamaIndex's ----------------------------------------------------------------


def langchain_chats_and_embeds(url: str, gem: Gem) -> None:
    made = pytest.importorskip("langchain_openai")
    common = {"base_url": f"{url}/v1", "api_key": "x", "max_retries": 0}
    chat = made.ChatOpenAI(model=MODEL, **GREEDY, **common)
    assert chat.invoke(QUESTION).content == chatted(gem)
    assert "".join(str(piece.content) for piece in chat.stream(QUESTION)) == chatted(gem)
    documents = made.ChatOpenAI(model=INDEXED, **common)
    assert documents.invoke(QUESTION).content == f"{QUOTE} [1]"
    embeddings = made.OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, **common)
    found = np.array(embeddings.embed_documents(["A list"]), np.float32)
    assert close_to(found, gem.embed_documents(["A list"]))


def llama_index_chats_and_embeds(url: str, gem: Gem) -> None:
    llms = pytest.importorskip("llama_index.llms.openai")
    core = pytest.importorskip("llama_index.core.llms")
    made = pytest.importorskip("llama_index.embeddings.openai")
    common = {"api_base": f"{url}/v1", "api_key": "x", "max_retries": 0}
    llm = llms.OpenAI(model=ALIAS, **GREEDY, **common)
    asked = [core.ChatMessage(role="user", content=QUESTION)]
    assert llm.chat(asked).message.content == chatted(gem)
    assert "".join(piece.delta or "" for piece in llm.stream_chat(asked)) == chatted(gem)
    embedding = made.OpenAIEmbedding(model_name=MODEL, **common)
    found = np.array(embedding.get_text_embedding_batch(["A list"]), np.float32)
    assert close_to(found, gem.embed_documents(["A list"]))


# -- MCP's ---------------------------------------------------------------------------------------


def mcp_searches_asks_and_reads(url: str, gem: Gem) -> None:
    asyncio.run(use_tools(f"{url}/mcp"))


async def use_tools(server: Any) -> None:
    """Use all tools of an MCP server, by the SDK's own client."""
    from mcp import Client

    async with Client(server) as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == ["search", "ask", "read_source"]
        answer = await called(client, "ask", question=QUESTION)
        assert answer["answer"] == f"{QUOTE} [1]"
        [citation] = answer["citations"]
        start, stop = citation["span"]
        read = await called(
            client, "read_source", source=citation["source"], start=start, stop=stop
        )
        assert (read["text"], read["place"], read["characters"]) == (QUOTE, "line 3", len(LISTS))
        passages = (await called(client, "search", question=QUESTION, k=1))["passages"]
        assert QUOTE in passages[0]["text"]
        wrong = [
            ("search", {"question": " "}, "empty"),
            ("search", {"question": "x", "index": "dogs"}, "did you mean 'docs'"),
            ("search", {"question": "x", "k": 0}, "greater than or equal to 1"),
            ("read_source", {"source": "no.md"}, "there is no document 'no.md'"),
            ("read_source", {"source": "manual/lists.md", "start": 9999}, "start before"),
        ]
        for name, arguments, said in wrong:
            result = await client.call_tool(name, arguments)
            assert result.is_error
            assert said in result.content[0].text  # type: ignore[union-attr]


async def called(client: Any, name: str, **arguments: Any) -> Any:
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result.content
    return result.structured_content


# -- clients that leave --------------------------------------------------------------------------


def a_client_that_leaves_takes_its_work_with_it(url: str, gem: Gem) -> None:
    asyncio.run(asyncio.wait_for(leave(url), 6 * DEADLINE))


async def leave(url: str) -> None:
    """Leave in the middle of a stream, and while waiting for a whole answer."""
    endless = {**ENDLESS, "max_tokens": 900}
    many = {**endless, "prompt": [endless["prompt"]] * 16}
    assert await settles(url, RUNNING, 0)  # the server may still be closing earlier connections
    async with httpx.AsyncClient(timeout=DEADLINE) as client:
        for leaves in (
            lambda: leaves_a_stream(client, url, endless),
            lambda: leaves_without_an_answer(client, url, many),
        ):
            # vLLM's processes wait for each other by spinning: with two cores, others may get no
            # turn before a text is complete, and then there is nothing left to leave.
            for _ in range(6):
                left_early = await leaves()
                assert await settles(url, RUNNING, 0)
                if left_early:
                    break
            assert left_early
    assert await settles(url, "gem_rag:texts_generating", 0)


async def settles(url: str, name: str, count: int) -> bool:
    return await asyncio.to_thread(wait_until, lambda: metric(url, name) == count)


async def leaves_a_stream(client: httpx.AsyncClient, url: str, body: Any) -> bool:
    """Leave after the first piece; whether the text was not complete by then."""
    asked = {**body, "stream": True}
    async with client.stream("POST", f"{url}/v1/completions", json=asked) as stream:
        lines = stream.aiter_lines()  # which closes the stream when it is collected
        assert (await anext(lines)).startswith("data: ")
        return await asyncio.to_thread(metric, url, RUNNING) == 1


async def leaves_without_an_answer(client: httpx.AsyncClient, url: str, body: Any) -> bool:
    """Leave once the texts are being generated; whether they were not complete by then."""
    waiting = asyncio.create_task(client.post(f"{url}/v1/completions", json=body))
    while not waiting.done():
        if await asyncio.to_thread(metric, url, RUNNING) == 1:
            waiting.cancel()
            return True
    assert waiting.result().is_success, waiting.result().text
    return False


CHECKS: list[Check] = [
    openai_lists_chats_streams_and_embeds,
    openai_chats_with_documents,
    openai_calls_tools,
    openai_raises_its_own_errors,
    langchain_chats_and_embeds,
    llama_index_chats_and_embeds,
    mcp_searches_asks_and_reads,
    a_client_that_leaves_takes_its_work_with_it,
]
