"""Builds every distribution as a wheel, installs each alone in a new environment, and uses it.

python scripts/check_wheels.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
USES = {
    "gem-rag": "import gem_rag; gem_rag.load().embed_queries(['What is a list?'])",
    "langchain-gem": "from langchain_gem import ChatGem, GemEmbeddings; "
    "GemEmbeddings().embed_query('What is a list?'); ChatGem(max_tokens=4).invoke('Hello')",
    "llama-index-llms-gem": "from llama_index.llms.gem import GemLLM; "
    "GemLLM(max_tokens=4).complete('A list is')",
    "llama-index-embeddings-gem": "from llama_index.embeddings.gem import GemEmbedding; "
    "GemEmbedding().get_query_embedding('What is a list?')",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch) / "wheels"
        for folder in (ROOT, *sorted((ROOT / "integrations").iterdir())):
            if (folder / "pyproject.toml").exists():
                run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
                    "--wheel-dir", str(wheels), str(folder))  # fmt: skip
        for name, use in USES.items():
            start = time.perf_counter()
            check(name, use, wheels, Path(scratch) / name)
            print(f"{name}: built, installed alone and used in {time.perf_counter() - start:.0f} s")


def check(name: str, use: str, wheels: Path, place: Path) -> None:
    venv.create(place, with_pip=True)
    python = str(place / "bin" / "python")
    versions = str(ROOT / "constraints.txt")
    install = (python, "-m", "pip", "install", "--quiet", "--constraint", versions)
    run(*install, "torch")  # first, so that its build for this machine is what the rest finds
    run(*install, "--find-links", str(wheels), name)
    run(python, "-c", use, cwd=place)


def run(*command: str, cwd: Path = ROOT) -> None:
    subprocess.run(command, check=True, cwd=cwd)


if __name__ == "__main__":
    main()
