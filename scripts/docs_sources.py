"""Pages of the documentation that are files elsewhere in the repository, and its address."""

from __future__ import annotations

import tomllib
from pathlib import Path

# Where the site has a page, relative to docs/, and the file that it shows.
PAGES = {
    "index.md": "README.md",
    "integrations/langchain.md": "integrations/langchain-gem/README.md",
    "integrations/llama-index-embeddings.md": "integrations/llama-index-embeddings-gem/README.md",
    "integrations/llama-index-llms.md": "integrations/llama-index-llms-gem/README.md",
    "benchmarks/recorded.md": "benchmarks/README.md",
    "models/gem-tiny.md": "gem_rag/assets/gem-tiny/README.md",
    "models/gem-tiny-training.md": "models/gem-tiny/README.md",
    "models/gem-smollm2-135m.md": "models/gem-smollm2-135m/README.md",
    "models/families.md": "benchmarks/families.md",
    "models/families-on-vllm.md": "benchmarks/families-on-vllm.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}


def repository() -> str:
    """The repository's address, `Repository` of `project.urls`; empty while there is none."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    urls: dict[str, str] = tomllib.loads(text)["project"]["urls"]
    return urls.get("Repository", "").rstrip("/")
