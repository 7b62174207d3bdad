"""Index Python's language reference and ask it questions: python examples/demo.py [MODEL]

Runs and prints the `gem-rag` commands that a user would type. The reference is the one that
`help()` reads, in `pydoc_data`: half a megabyte of text that comes with Python. gem-tiny, the
default, is asked in the reference's own terms; other models in a person's own words too.
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
OWN_WORDS = (
    "How do I make a little function without a name?",
    "How can I stop a loop early?",
    "How can I make sure that some clean-up runs even if there is an error?",
    "Can I check a condition while debugging and switch the check off later?",
    "How do I throw an error on purpose?",
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
    model = sys.argv[1] if len(sys.argv) > 1 else "gem-tiny"
    run_gem_rag("index", str(docs), "--index", str(WORK / "index"), "--model", model)
    for question in QUESTIONS if model == "gem-tiny" else QUESTIONS + OWN_WORDS:
        run_gem_rag("ask", question, "--index", str(WORK / "index"))
    print(f"\ndone in {time.perf_counter() - start:.0f} s, set-up not counted")


if __name__ == "__main__":
    main()
