"""An agent of LangGraph on one model that calls three tools, searches with them, and answers.

    pip install langchain langgraph langchain-gem
    python examples/langgraph_agent.py [MODEL]

Prints each step as it comes, and at last an answer of a schema. A call always follows its tool's
schema; whether it makes sense is up to the model, and
gem-tiny and gem-smollm2-135m are often wrong.
"""

from __future__ import annotations

import sys

from agent_tools import INSTRUCTIONS, QUESTIONS, make_tools
from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_gem import ChatGem
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

import gem_rag


class Total(BaseModel):
    """The result of an addition."""

    total: int


def main() -> None:
    with gem_rag.load(sys.argv[1] if len(sys.argv) > 1 else "gem-tiny") as gem:
        chat = ChatGem(model=gem, max_tokens=60)
        tools = make_tools(gem)
        agent = create_agent(chat, tools, system_prompt=INSTRUCTIONS, checkpointer=InMemorySaver())
        for number, question in enumerate(QUESTIONS):
            ask(agent, question, {"configurable": {"thread_id": str(number)}})
        structured = create_agent(chat, tools[:1], response_format=Total)
        result = structured.invoke({"messages": [("user", QUESTIONS[0])]})
        print(f"\n{QUESTIONS[0]} As a Total: {result['structured_response']!r}")


def ask(agent: object, question: str, config: RunnableConfig) -> None:
    """Ask, and print what the agent does about it."""
    print(f"\n{question}")
    messages = {"messages": [("user", question)]}
    for chunk, _ in agent.stream(messages, config, stream_mode="messages"):  # type: ignore[attr-defined]
        if isinstance(chunk, AIMessageChunk):
            print(chunk.text, end="", flush=True)
            for call in chunk.tool_calls:
                print(f"  calls {call['name']}({call['args']})")
        elif isinstance(chunk, ToolMessage):
            print(f"  gets {chunk.text[:80]!r}")
    print()


if __name__ == "__main__":
    main()
