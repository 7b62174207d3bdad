"""`Converter`: converts files of other programs to Markdown in a child process with limits.

If a file hangs, fills memory or crashes its converter, only that file is lost, not the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from gem_rag.errors import InputError

TIMEOUT = 120.0  # seconds for one file
MAX_FILE_BYTES = 200_000_000  # bytes


@dataclass(frozen=True)
class ConvertedFile:
    """A converted file.

    Attributes:
        text: Its text as Markdown.
        title: The title recorded in the file, or nothing.
        places: As of a document.
    """

    text: str
    title: str
    places: tuple[tuple[int, str], ...]


class Converter:
    """Converts files; starts its child process for the first one, and again after a crash.

    Args:
        timeout: Seconds for one file.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None

    def convert(self, path: Path, file_format: str) -> ConvertedFile:
        """Convert one file.

        Args:
            path: The file.
            file_format: A key of `converters.CONVERTERS`.

        Raises:
            InputError: The converter is not installed, or cannot read the file.
        """
        if find_spec("markitdown") is None:
            raise InputError(f"{path} needs a converter: pip install 'gem-rag[files]'")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise InputError(
                f"{path} has {size >> 20:,} MiB, more than is converted "
                f"({MAX_FILE_BYTES >> 20} MiB): split it, or leave it out"
            )
        answer = self._request({"path": str(path.absolute()), "format": file_format})
        if "error" in answer:
            reason = answer["error"]
            remedy = "" if ": " in reason else ": save it again, or leave it out"
            raise InputError(f"{path} cannot be converted ({reason}){remedy}")
        places = tuple((start, name) for start, name in answer["places"])
        return ConvertedFile(answer["text"], answer["title"], places)

    def close(self) -> None:
        """End the child process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Converter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _request(self, request: dict[str, str]) -> dict[str, Any]:
        process = self._ensure_process()
        assert process.stdin is not None
        assert process.stdout is not None
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(self._timeout, stop)
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.close()
        if expired.is_set():
            return {"error": f"it takes longer than {self._timeout:.0f} s"}
        return {"error": "its converter crashed"}

    def _ensure_process(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gem_rag.documents.conversion_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        return self._process
