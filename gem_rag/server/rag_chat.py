"""Indexes as chat models: `rag/NAME` answers from the documents of the index NAME."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from gem_rag.aio import run_in_thread
from gem_rag.rag.answer import Answer
from gem_rag.rag.conversation import Conversation, Turn
from gem_rag.server.catalog import PREFIX, Catalog, ServedIndex
from gem_rag.server.chat_messages import ChatMessage, CitedReply, messages_of
from gem_rag.server.errors import ApiError
from gem_rag.server.generation_fields import limit_tokens, sampling_options
from gem_rag.server.rag_fields import RagFields, annotation

if TYPE_CHECKING:
    from gem_rag.server.chat import ChatRequest


async def start(
    catalog: Catalog, request: ChatRequest, base_url: str
) -> Generator[str, None, CitedReply]:
    """The pieces of an answer to the last message; the others are what was said before.

    Args:
        catalog: What is served.
        request: The request.
        base_url: Of the server, for addresses in citations.

    Raises:
        ApiError: There is no such index, or the messages are not questions and answers in turn.
        GemError: As `Conversation.find`.
    """
    name = request.model.removeprefix(PREFIX)
    if name not in catalog.indexes:
        raise catalog.unknown_model(request.model)
    served = catalog.indexes[name]
    history, question = split_history(request.messages)
    catalog.check_question(question)
    conversation = converse(
        served,
        request.rag or RagFields(),
        history,
        max_tokens=limit_tokens(catalog, request.wanted_tokens, None),
        **sampling_options(request),
    )
    found = await run_in_thread(conversation.find, question)
    return _reply(served, conversation.stream_found(found), base_url)


def converse(
    served: ServedIndex,
    fields: RagFields,
    history: Sequence[tuple[str, str]],
    **sampling: Any,
) -> Conversation:
    """A conversation with an index in which some questions have been answered."""
    conversation = Conversation(
        served.index,
        fields.k,
        style=fields.style,
        margin=fields.margin,
        **fields.search_options,
        **sampling,
    )
    for question, answer in history:
        conversation.turns.append(Turn(question, question, Answer(answer, [], [])))
    return conversation


def split_history(messages: Sequence[ChatMessage]) -> tuple[list[tuple[str, str]], str]:
    """The questions and answers before the last message, and that. Raises ApiError."""
    history: list[tuple[str, str]] = []
    asked: list[str] = []
    for message in messages:
        if message.role == "user":
            asked.append(text_of(message))
        elif message.role == "assistant" and asked:
            history.append(("\n\n".join(asked), text_of(message)))
            asked = []
        else:
            raise ApiError(
                f"a model {PREFIX}NAME answers questions from documents by its own prompt, and a "
                f"message has the role {message.role!r}: send user messages, and its answers "
                "between them",
                param="messages",
            )
    if not asked:
        raise ApiError("the last message is no question: end with a user message", param="messages")
    return history, "\n\n".join(asked)


def text_of(message: ChatMessage) -> str:
    """A message's text. Raises ApiError if it has other parts."""
    messages_of([message])
    if not isinstance(message.content, list):
        return message.content or ""
    for part in message.content:
        if part.text is None:
            raise ApiError(
                f"a message holds {part.type!r}: the model reads text only", param="messages"
            )
    return "".join(part.text or "" for part in message.content)


def _reply(
    served: ServedIndex, pieces: Generator[str, None, Turn], base_url: str
) -> Generator[str, None, CitedReply]:
    """The pieces, and a reply with the answer's citations as annotations."""
    answer = (yield from pieces).answer
    annotations = tuple(
        annotation(citation, served.name, answer.text, base_url) for citation in answer.citations
    )
    return CitedReply(
        answer.text,
        (),
        "length" if answer.is_cut else "stop",
        answer.usage.get("prompt", 0),
        annotations=annotations,
        generated_tokens=answer.usage.get("generated", 0),
        reused_tokens=answer.usage.get("reused", 0),
    )
