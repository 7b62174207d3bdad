"""`gem-rag chat`: a conversation on the terminal, or with lines from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gem_rag.cli.common import (
    DEFAULT_MODEL,
    DEFAULT_RANKING,
    DiversityOption,
    HitsOption,
    MarginOption,
    MinScoreOption,
    RankingOption,
    RerankedOption,
    SourcesOption,
    StyleOption,
    TemperatureOption,
    WhereOption,
    load_model,
    locate,
    open_index,
    print_notice,
    print_text,
    search_options,
)
from gem_rag.errors import InputError

if TYPE_CHECKING:
    from gem_rag.model import Gem
    from gem_rag.rag.conversation import Conversation, Turn

_DEFAULT_MAX_TOKENS = 256
_ONLY_WITH_INDEX = (
    "k",
    "ranking",
    "source",
    "where",
    "min_score",
    "diversity",
    "rerank",
    "style",
    "margin",
)
_ONLY_WITHOUT_INDEX = ("system",)


def chat(
    context: typer.Context,
    index: Annotated[
        Path | None,
        typer.Option("--index", "-i", help="Answer from this index, with citations."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"Installed model, hub name or folder; default: the index's, or {DEFAULT_MODEL}.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens in an answer.")
    ] = None,
    temperature: TemperatureOption = 0.0,
    k: HitsOption = 5,
    ranking: RankingOption = DEFAULT_RANKING,
    source: SourcesOption = None,
    where: WhereOption = None,
    min_score: MinScoreOption = None,
    diversity: DiversityOption = 0.0,
    rerank: RerankedOption = 0,
    style: StyleOption = None,
    margin: MarginOption = None,
) -> None:
    """Chat with a model, or with the documents of an index, one line at a time.

    With --index, follow-up questions are first rewritten to stand alone, and each answer is
    followed by its citations: number, file and place.

    An empty line or Ctrl-D ends the chat; Ctrl-C stops an answer.
    """
    _refuse_others(context, with_index=index is not None)
    if index is None:
        _chat_with_model(load_model(model or DEFAULT_MODEL), system, max_tokens, temperature)
        return
    from gem_rag.rag.conversation import Conversation

    conversation = Conversation(
        open_index(index, model),
        k,
        **search_options(ranking, source, where, min_score, diversity, rerank),
        style=style,  # type: ignore[arg-type]
        margin=margin,
        max_tokens=max_tokens,
        temperature=temperature,
    )
    _chat_with_index(conversation)


def _refuse_others(context: typer.Context, with_index: bool) -> None:
    """Raise InputError for an option that would be without effect."""
    for name in _ONLY_WITHOUT_INDEX if with_index else _ONLY_WITH_INDEX:
        given = context.get_parameter_source(name)
        if given is not None and given.name == "COMMANDLINE":
            place = "without" if with_index else "with"
            raise InputError(
                f"--{name.replace('_', '-')} has an effect only {place} --index: "
                f"{'leave one of them out' if with_index else 'add --index FOLDER'}"
            )


def _chat_with_model(
    gem: Gem, system: str | None, max_tokens: int | None, temperature: float
) -> None:
    room = min(max_tokens or _DEFAULT_MAX_TOKENS, gem.context_length // 2)
    messages = [{"role": "system", "content": system}] if system else []
    fixed = len(messages)
    for line in _read_lines():
        messages.append({"role": "user", "content": line})
        _drop_oldest_turns(gem, messages, fixed, room)
        pieces = gem.stream_chat(messages, max_tokens=room, temperature=temperature)
        answer, _ = _print_pieces(pieces)
        print("\n")
        messages.append({"role": "assistant", "content": answer.strip()})


def _chat_with_index(conversation: Conversation) -> None:
    """Answer lines; one that cannot be answered costs the exit code, not the conversation."""
    code = 0
    for line in _read_lines():
        try:
            _, turn = _print_pieces(conversation.stream(line))
        except InputError as error:
            print_notice(error)
            code = error.exit_code
            continue
        print("\n")
        if turn is not None:
            _print_sources(turn)
    if code:
        raise typer.Exit(code)


def _print_pieces(pieces: Generator[str, None, Any]) -> tuple[str, Any]:
    """Print an answer as it comes.

    Returns:
        The text that was printed, and the generator's return value; None if Ctrl-C ended it.
    """
    text = ""
    try:
        with closing(pieces):
            while True:
                piece = next(pieces)
                text += piece
                print_text(piece, end="")
    except StopIteration as end:
        return text, end.value
    except KeyboardInterrupt:
        return text, None


def _print_sources(turn: Turn) -> None:
    if turn.standalone != turn.question:
        print_text(f"asked as: {turn.standalone}")
    cited = [f"[{c.number}] {locate(c.source, c.place, c.span)}" for c in turn.citations]
    for line in dict.fromkeys(cited):  # sentences may share a place
        print_text(line)
    if not cited:
        print("no passage is cited")
    if left_out := len(turn.answer.unsupported):
        sentences = "1 sentence" if left_out == 1 else f"{left_out} sentences"
        print(f"left out: {sentences} that no passage supports")
    print()


def _read_lines() -> Iterator[str]:
    prompts = sys.stdin.isatty()
    while True:
        if prompts:
            print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _drop_oldest_turns(gem: Gem, messages: list[dict[str, str]], fixed: int, room: int) -> None:
    """Drop the oldest turns until there is room for an answer."""
    while (
        len(messages) > fixed + 1 and len(gem.tokenize_chat(messages)) + room > gem.context_length
    ):
        del messages[fixed : fixed + 2]
