"""The two kinds of failure a user can meet; both carry one sentence with a remedy."""


class GemError(RuntimeError):
    """Something went wrong that is not the caller's mistake."""

    exit_code = 1  # of the command line


class InputError(GemError, ValueError):
    """What the caller gave cannot be used; the message names it and the remedy."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
