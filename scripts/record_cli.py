"""Records the two commands of the README as a picture: docs/images/cli.svg, from a real run.

python scripts/record_cli.py

Indexes a part of Python's language reference with gem-tiny and asks it a question.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

from rich.console import Console
from rich.text import Text

OUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "cli.svg"
TOPICS = ("function", "lambda", "yield", "with", "class", "raise", "import", "assignment")
COMMANDS = (
    ("index", "docs/"),
    ("ask", "How are default parameter values evaluated?"),
)
_BOLD = re.compile(r"\*\*([A-Z][^*]+)\*\*")
_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # they would come from another host


def main() -> None:
    """Run the commands, and write what they print."""
    console = Console(record=True, width=98, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as scratch:
        docs = Path(scratch) / "docs"
        docs.mkdir()
        for topic in TOPICS:
            text = _BOLD.sub(r"\1", topics[topic])
            (docs / f"{topic}.txt").write_text(text, encoding="utf-8")
        for words in COMMANDS:
            console.print(Text(f"$ gem-rag {shlex.join(words)}", style="bold"))
            console.print(Text(run(words, Path(scratch))))
    svg = console.export_svg(title="gem-rag", unique_id="cli")
    OUT.write_text(_FONT.sub("", svg).rstrip() + "\n", encoding="utf-8")


def run(words: tuple[str, ...], folder: Path) -> str:
    """What a command prints."""
    command = (sys.executable, "-m", "gem_rag", *words)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.rstrip() + "\n"


if __name__ == "__main__":
    main()
