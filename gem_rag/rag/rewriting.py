"""Follow-up questions made to stand alone, by the model that answers them."""

from __future__ import annotations

from collections.abc import Sequence

from gem_rag._utils.terminal import shorten
from gem_rag.generation.sampling import Generation
from gem_rag.model import Gem
from gem_rag.rag.citations import drop_numbers, split_words

_INSTRUCTIONS = (
    "Write the last question of the conversation so that it can be understood without the rest. "
    "Write the question alone."
)
# A base model follows nothing but examples, and a small chat model follows them best. The last one
# shows that a new subject is left as it is.
_EXAMPLES = (
    (
        "Q: What does a heat pump need?\nA: It needs electricity and a source of heat.\n"
        "Q: And how often is it serviced?",
        "How often is a heat pump serviced?",
    ),
    (
        "Q: How do I renew my passport?\nA: Apply online and send two photographs.\n"
        "Q: What about my son's?",
        "How do I renew my son's passport?",
    ),
    (
        "Q: Which plants need little water?\nA: Cacti and lavender need little.\n"
        "Q: When does the library open?",
        "When does the library open?",
    ),
)
_CUE = "Question alone:"
_MAX_TOKENS = 64
_MAX_ANSWER = 400  # characters of an earlier answer: what it is about is said early


def rewrite_question(gem: Gem, question: str, history: Sequence[tuple[str, str]]) -> str:
    """Make a question stand alone.

    Args:
        gem: The model that writes.
        question: The question.
        history: Earlier questions and their answers, oldest first. As many of the newest are read
            as fit the model's context; of a long answer, the beginning.

    Returns:
        What the model made of the question. The question as it is if there is no history that
        fits, or if what the model made is no use: see `_is_of_use`.
    """
    max_tokens = min(_MAX_TOKENS, gem.context_length // 4)
    turns = [(_line(asked), _line(_beginning(answered))) for asked, answered in history]
    prompt, read = _fit_prompt(gem, _line(question), turns, gem.context_length - max_tokens)
    if not read:
        return question
    (generation,) = gem.generate([prompt], max_tokens=max_tokens, stop="\n")
    written = _read_question(generation)
    return written if _is_of_use(written, question, read) else question


def _fit_prompt(
    gem: Gem, question: str, turns: Sequence[tuple[str, str]], room: int
) -> tuple[list[int], Sequence[tuple[str, str]]]:
    """The prompt with the most turns that fits in `room` tokens, and those turns."""
    prompt: list[int] = []
    for count in range(1, len(turns) + 1):
        longer = _build_prompt(gem, question, turns[-count:])
        if len(longer) > room:
            return prompt, turns[len(turns) - count + 1 :]
        prompt = longer
    return prompt, turns


def _build_prompt(gem: Gem, question: str, turns: Sequence[tuple[str, str]]) -> list[int]:
    lines = [f"Q: {asked}\nA: {answered}" for asked, answered in turns]
    conversation = "\n".join([*lines, f"Q: {question}"])
    if gem.has_chat_template:
        messages = [{"role": "system", "content": _INSTRUCTIONS}]
        for said, written in _EXAMPLES:
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": written})
        return gem.tokenize_chat([*messages, {"role": "user", "content": conversation}])
    examples = [f"{said}\n{_CUE} {written}" for said, written in _EXAMPLES]
    return gem.tokenize("\n\n".join([_INSTRUCTIONS, *examples, f"{conversation}\n{_CUE}"]))


def _beginning(answer: str) -> str:
    return shorten(drop_numbers(answer), _MAX_ANSWER)


def _line(text: str) -> str:
    return " ".join(text.split())


def _read_question(generation: Generation) -> str:
    """What was written, or nothing if it has no end."""
    if generation.finish_reason == "length":
        return ""
    return _line(drop_numbers(generation.text)).removeprefix("Q: ").strip('"')


def _is_of_use(written: str, question: str, turns: Sequence[tuple[str, str]]) -> bool:
    """Whether what a model has written is the question, and says more.

    It ends as the question does. It keeps some of what is new in it, so that it is not an earlier
    question again; adds words that were said before, and not more that nobody said.
    """
    words, asked = _words(written), _words(question)
    before = _words(" ".join(earlier for earlier, _ in turns))
    said = before | _words(" ".join(answered for _, answered in turns))
    added = words - asked
    return (
        written[-1:] == question.rstrip()[-1:]
        and bool(words & asked - before)
        and bool(added & said)
        and len(added - said) <= len(added & said)
    )


def _words(text: str) -> set[str]:
    return {word.form for word in split_words(text)}
