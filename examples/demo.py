"""Index Python's language reference and ask it three questions.

Runs and prints the `gem-rag` commands that a user would type. The reference is the one that
`help()` reads, in `pydoc_data`: half a megabyte of text that comes with Python.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

WORK = Path("build/demo")
QUESTIONS = (
    "What is a lambda expression?",
    "What does the yield statement do?",
    "How are default parameter values evaluated?",
)


def run_gem_rag(*arguments: str) -> None:
    print(f"\n$ gem-rag {shlex.join(arguments)}", flush=True)
    subprocess.run([Path(sys.executable).with_name("gem-rag"), *arguments], check=True)


def write_reference() -> Path:
    """Write Python's language reference to a folder, one file per topic."""
    docs = WORK / "python-reference"
    docs.mkdir(parents=True, exist_ok=True)
    for name, text in topics.items():
        (docs / f"{name}.rst").write_text(text, encoding="utf-8")
    return docs


def main() -> None:
    start = time.perf_counter()
    shutil.rmtree(WORK, ignore_errors=True)  # an index built with another gem-tiny would be refused
    docs = write_reference()
    size = sum(map(len, topics.values())) // 1000
    print(f"Python's language reference: {len(topics)} topics, {size} kB, in {docs}")
    run_gem_rag("index", str(docs), "--index", str(WORK / "index"))
    for question in QUESTIONS:
        run_gem_rag("ask", question, "--index", str(WORK / "index"))
    print(f"\ndone in {time.perf_counter() - start:.0f} s, set-up not counted")


if __name__ == "__main__":
    main()
