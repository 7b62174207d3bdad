"""An agent of LlamaIndex on one model that calls three tools, searches with them, and answers.

    pip install llama-index-llms-gem
    python examples/llama_index_agent.py [MODEL]

Prints each event as it comes, then asks all questions at once, whose answers share passes of the
model. A call always follows its tool's schema; whether it makes sense is up to the model, and
gem-tiny and gem-smollm2-135m are often wrong.
"""

from __future__ import annotations

import asyncio
import sys

from agent_tools import INSTRUCTIONS, QUESTIONS, make_tools
from llama_index.core import Settings
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult
from llama_index.llms.gem import GemLLM

import gem_rag


async def main() -> None:
    with gem_rag.load(sys.argv[1] if len(sys.argv) > 1 else "gem-tiny") as gem:
        Settings.tokenizer = gem.tokenize
        llm = GemLLM(gem, max_tokens=60)
        agent = FunctionAgent(tools=make_tools(gem), llm=llm, system_prompt=INSTRUCTIONS)
        for question in QUESTIONS:
            await ask(agent, question)
        answers = await asyncio.gather(*(answer(agent, question) for question in QUESTIONS))
        print("\nAll at once:", *answers, sep="\n  ")


async def ask(agent: FunctionAgent, question: str) -> None:
    """Ask, and print what the agent does about it."""
    print(f"\n{question}")
    handler = agent.run(question)
    async for event in handler.stream_events():
        if isinstance(event, AgentStream):
            print(event.delta, end="", flush=True)
        elif isinstance(event, ToolCallResult):
            print(f"  calls {event.tool_name}({event.tool_kwargs})")
            print(f"  gets {event.tool_output.content[:80]!r}")
    await handler
    print()


async def answer(agent: FunctionAgent, question: str) -> str:
    return str(await agent.run(question))


if __name__ == "__main__":
    asyncio.run(main())
