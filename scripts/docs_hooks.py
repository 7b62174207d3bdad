"""Hooks of mkdocs: pages that live elsewhere in the repository, and links to its files.

A README is read on its own too, so the site shows it and does not copy it. Links are written so
that they work in the repository; here, links to files become links to their pages.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from docs_sources import PAGES, repository  # noqa: E402

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live elsewhere."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links to files of the repository links to pages."""
    return rewrite_links(markdown, page.file.src_uri, config.repo_url or "")


def rewrite_links(markdown: str, page: str, repository: str = "") -> str:
    """The text of a page with its links as the site needs them.

    Args:
        markdown: The text.
        page: Where the site has it, relative to docs/.
        repository: Address of the repository; without one, links to files that are no pages
            become plain text.
    """
    source = Path(PAGES.get(page, f"docs/{page}"))

    def rewrite(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        found = os.path.normpath(source.parent / target)
        place = _place(found)
        if place is None:
            text = match["text"]
            return f"[{text}]({repository}/blob/main/{found})" if repository else text
        relative = os.path.relpath(place, Path(page).parent)
        return f"{match['image']}[{match['text']}]({relative}{anchor and '#' + anchor})"

    # Code stands between the other parts, and stays as it is; a link's own text may hold code.
    blocks = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        block if block.startswith("```") else _LINK.sub(rewrite, block) for block in blocks
    )


def _place(found: str) -> str | None:
    """Where in docs/ a file of the repository is shown, or None."""
    names = {source: page for page, source in PAGES.items()}
    for name in (found, f"{found}/README.md"):
        if name in names:
            return names[name]
    return found.removeprefix("docs/") if found.startswith("docs/") else None


def on_config(config: MkDocsConfig) -> Any:
    """Name the repository, and watch the files that pages show, for `mkdocs serve`."""
    config.repo_url = repository() or None
    config.watch.extend(str(ROOT / source) for source in PAGES.values())
    return config
