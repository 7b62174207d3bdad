"""The main job on real input: index Python's language reference, ask it three questions.

Runs the `gem-rag` commands a user would type, and shows them. The reference is the one that
`help()` reads, in `pydoc_data`: half a megabyte of text on every machine that has Python.
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


def gem_rag(*arguments: str) -> None:
    print(f"\n$ gem-rag {shlex.join(arguments)}", flush=True)
    subprocess.run([Path(sys.executable).with_name("gem-rag"), *arguments], check=True)


def write_reference() -> Path:
    """Python's language reference as a folder of files."""
    docs = WORK / "python-reference"
    docs.mkdir(parents=True, exist_ok=True)
    for name, text in topics.items():
        (docs / f"{name}.rst").write_text(text, encoding="utf-8")
    return docs


def main() -> None:
    start = time.perf_counter()
    shutil.rmtree(WORK, ignore_errors=True)  # an index by another gem-tiny would be refused
    docs = write_reference()
    size = sum(map(len, topics.values())) // 1000
    print(f"Python's language reference: {len(topics)} topics, {size} kB, in {docs}")
    gem_rag("index", str(docs), "--index", str(WORK / "index"))
    for question in QUESTIONS:
        gem_rag("ask", question, "--index", str(WORK / "index"))
    print(f"\ndone in {time.perf_counter() - start:.0f} s, set-up not counted")


if __name__ == "__main__":
    main()
