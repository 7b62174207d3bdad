"""Set-up for notebooks: a check of their packages, quiet libraries, and short errors."""

from __future__ import annotations

import logging
import os
import warnings
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from gem_rag._utils.deprecation import warn_renamed
from gem_rag._utils.progress import silence_libraries
from gem_rag.errors import GemError, InputError


def setup_notebook(**requirements: str) -> None:
    """Prepare a notebook; to be called in its first cell.

    Afterwards libraries draw no progress bars of their own, gem-rag's errors are one line, and the
    error for an undefined name says that the cells above must be run first.

    Args:
        **requirements: For each module that the notebook imports, what to install if it is missing.

    Raises:
        InputError: Modules are missing; the message gives the command that installs them.
    """
    shell = _ipython_shell()
    if shell is not None:
        shell.set_custom_exc((NameError, GemError), _show_error)
    missing = [module for module in requirements if find_spec(module) is None]
    if missing:
        packages = " ".join(dict.fromkeys(f"'{requirements[module]}'" for module in missing))
        raise InputError(f"this notebook needs {', '.join(missing)}: pip install {packages}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm asks for widgets
    logging.getLogger("ray.widgets").setLevel(logging.WARNING)  # and so does Ray, for vLLM
    silence_libraries()


def begin(**distributions: str) -> None:
    """Deprecated: `setup_notebook`."""
    warn_renamed("gem_rag.interop.notebook.begin", "setup_notebook")
    setup_notebook(**distributions)


def _ipython_shell() -> Any:
    """The running IPython shell; None outside IPython."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def _show_error(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType,
    tb_offset: int | None = None,
) -> None:
    if isinstance(error, NameError):
        error.add_note(
            f"{error.name!r} is made in a cell above: run the notebook's cells in their order"
        )
    only_message = isinstance(error, GemError)
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset, exception_only=only_message)
