"""The two kinds of failure a user can meet; both carry one sentence with a remedy."""


class GemError(RuntimeError):
    """Something went wrong that is not the caller's mistake."""

    exit_code = 1  # of the command line


class InputError(GemError, ValueError):
    """What the caller gave cannot be used; the message names it and the remedy."""

    exit_code = 2
