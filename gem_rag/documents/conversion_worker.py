"""The child process of `Converter`: python -m gem_rag.documents.conversion_worker

Reads one JSON object per line, {"path": ..., "format": a key of `CONVERTERS`}, and writes one,
{"text": ..., "title": ..., "places": [[first character, name], ...]} or {"error": ...}. A memory
limit protects the machine from files that grow without bound when they are unpacked.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from gem_rag.documents.converters import CONVERTERS

MEMORY_LIMIT = 2 << 30  # bytes of address space
_MAX_CHARACTERS = 50_000_000  # characters


def main() -> None:
    """Serve requests on standard input until it ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    responses = sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    for line in sys.stdin:
        request = json.loads(line)
        response = _respond(request["path"], request["format"])
        print(json.dumps(response), file=responses, flush=True)


def _respond(path: str, file_format: str) -> dict[str, Any]:
    try:
        text, title, places = CONVERTERS[file_format](Path(path))
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_LIMIT >> 30} GiB of memory to be converted"}
    except Exception as error:  # converters raise whatever their libraries do
        return {"error": _reason(error)}
    if len(text) > _MAX_CHARACTERS:
        return {"error": f"it unpacks to {len(text):,} characters, which is data and not prose"}
    # Lone surrogates cannot be encoded; what takes their place is as long.
    return {"text": text.encode("utf-8", "replace").decode(), "title": title, "places": places}


def _reason(error: Exception) -> str:
    """Why a conversion failed; markitdown hides the cause among its attempts."""
    attempts = getattr(error, "attempts", None) or ()
    cause = next((attempt.exc_info[1] for attempt in attempts if attempt.exc_info), error)
    names = {cls.__name__ for cls in type(cause).__mro__}
    if names & {"PDFPasswordIncorrect", "PDFEncryptionError", "PasswordError"}:
        return "it is protected by a password: save it without one"
    if names & _DAMAGE:
        return "it is damaged or cut off: save it again"
    if "MemoryError" in names:
        return f"it needs more than {MEMORY_LIMIT >> 30} GiB of memory to be converted"
    text = " ".join(str(cause).split())[:200]
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


_DAMAGE = frozenset(
    (
        "BadZipFile",
        "NotJSONError",
        "PDFException",
        "PDFSyntaxError",
        "PSEOF",
        "PSException",
        "PackageNotFoundError",
        "ValidationError",
        "XmlError",
        "ZipError",
    )
)  # names of the libraries' errors


if __name__ == "__main__":
    main()
