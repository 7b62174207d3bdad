"""What a notebook needs around its cells: its packages are there, and errors are short.

Knows nothing about models.
"""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from gem_rag._utils.progress import quiet
from gem_rag.errors import GemError, InputError


def begin(**distributions: str) -> None:
    """To be called in a notebook's first cell.

    distributions: what is imported, and what to install where it is not to be found.

    Afterwards libraries draw no bars of their own, a name that is not there yet says that cells
    above have to be run, and gem-rag's errors are one line.

    Raises InputError if packages are missing: the command that installs them.
    """
    shell = _shell()
    if shell is not None:
        shell.set_custom_exc((NameError, GemError), _explain)
    missing = [name for name in distributions if find_spec(name) is None]
    if missing:
        wanted = " ".join(dict.fromkeys(f"'{distributions[name]}'" for name in missing))
        raise InputError(f"this notebook needs {', '.join(missing)}: pip install {wanted}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm asks for widgets
    quiet()


def _shell() -> Any:
    """IPython's, None outside of it."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def _explain(
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
    short = isinstance(error, GemError)
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset, exception_only=short)
