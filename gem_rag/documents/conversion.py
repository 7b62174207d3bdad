"""`Converter`: PDF, Word and HTML files to Markdown, in a child process with limits.

A file that hangs, fills memory or crashes its converter costs one file and not the run.
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

from gem_rag.errors import InputError

TIMEOUT = 120.0  # seconds for one file
LARGEST_FILE = 200_000_000  # bytes


@dataclass(frozen=True)
class Converted:
    """A file's text as Markdown, and the title that its format records, if any."""

    text: str
    title: str


class Converter:
    """Starts the child process with the first file, and again after a file that ended it."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None

    def convert(self, path: Path, file_format: str) -> Converted:
        """Convert one file.

        Args:
            path: The file.
            file_format: "pdf", "docx" or "html".

        Raises:
            InputError: The converter is not installed, or cannot read the file.
        """
        if find_spec("markitdown") is None:
            raise InputError(f"{path} needs a converter: pip install 'gem-rag[files]'")
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise InputError(
                f"{path} has {size >> 20:,} MiB, more than is converted "
                f"({LARGEST_FILE >> 20} MiB): split it, or leave it out"
            )
        answer = self._ask({"path": str(path.absolute()), "format": file_format})
        if "error" in answer:
            reason = answer["error"]
            remedy = "" if ": " in reason else ": save it again, or leave it out"
            raise InputError(f"{path} cannot be converted ({reason}){remedy}")
        return Converted(answer["text"], answer["title"])

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

    def _ask(self, request: dict[str, str]) -> dict[str, str]:
        process = self._started()
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
            answer: dict[str, str] = json.loads(line)
            return answer
        self.close()
        if expired.is_set():
            return {"error": f"it takes longer than {self._timeout:.0f} s"}
        return {"error": "its converter crashed"}

    def _started(self) -> subprocess.Popen[str]:
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
