"""Makes gem-tiny in stages: `python -m gem_tiny STAGE`, in this order:

    corpus          texts of the standard library, packages and documentation
    tokenizer       byte-level BPE, trained on them
    questions       rows of grounded question answering, for training and held out
    calls           rows of tool calls, and of small talk
    sequences       texts and rows as sequences of tokens
    pairs           training pairs with hard negatives
    language-model  from random weights, on documents and half of the rows; resumes from its state
    answering       the language model, on the other rows; resumes from its state
    gem             the special token; the language model stays as it is
    measure         figures on what is held out

Every stage reads what earlier ones wrote to the folder `--work`, and gives the same result for the
same seed. Each is a module of the same name in `gem_tiny.stages`.
"""

from __future__ import annotations

import typer

from gem_tiny.command_line import run_stage
from gem_tiny.stages.answering import answering
from gem_tiny.stages.calls import calls
from gem_tiny.stages.corpus import corpus
from gem_tiny.stages.gem import gem
from gem_tiny.stages.language_model import language_model
from gem_tiny.stages.measure import measure
from gem_tiny.stages.pairs import pairs
from gem_tiny.stages.questions import questions
from gem_tiny.stages.sequences import sequences
from gem_tiny.stages.tokenizer import tokenizer

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
for stage in (
    corpus,
    tokenizer,
    questions,
    calls,
    sequences,
    pairs,
    language_model,
    answering,
    gem,
    measure,
):
    app.command()(stage)


def main() -> None:
    """Run a stage."""
    run_stage(app, "gem-tiny")


if __name__ == "__main__":
    main()
