"""Makes what follows from the code in docs/: the command line, llms.txt, the rule's picture.

python scripts/docs_pages.py [--check]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import typer
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "scripts"))

from docs_sources import PAGES  # noqa: E402

NOTE = "<!-- Made by scripts/docs_pages.py; edit the docstrings and options in gem_rag/cli. -->\n"


def main(check: bool = False) -> None:
    """Write the pages; with --check, fail if one is not what the code says."""
    stale = []
    made = {**cli_pages(), "images/rule.svg": draw_rule()}
    made["llms.txt"] = llms_text(made)
    for name, text in made.items():
        file = DOCS / name
        if check and (not file.exists() or file.read_text(encoding="utf-8") != text):
            stale.append(file.relative_to(ROOT).as_posix())
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    if stale:
        raise SystemExit(f"{', '.join(stale)}: not up to date; run python scripts/docs_pages.py")


# -- the command line ------------------------------------------------------------------------


def cli_pages() -> dict[str, str]:
    """A page for each command, and one that lists them: text by name."""
    from gem_rag.cli.app import app

    root: Any = typer.main.get_command(app)
    pages = {}
    rows = []
    for name, command in root.commands.items():
        # A page called index would be the folder's own.
        file = "index-command.md" if name == "index" else f"{name}.md"
        pages[f"cli/{file}"] = f"{NOTE}\n" + "\n".join(_command(f"gem-rag {name}", command, "#"))
        rows.append(f"| [`gem-rag {name}`]({file}) | {_first_sentence(command.help)} |")
    table = "\n".join(["| | |", "|---|---|", *rows])
    pages["cli/index.md"] = (
        f"{NOTE}\n# The command line\n\n{table}\n\n"
        "`gem-rag COMMAND --help` prints what these pages say. `--json` prints JSON for scripts.\n"
        "An error is one line that says what to do; the exit code is 2 for incorrect usage and 1\n"
        "for failure.\n"
    )
    return pages


def _command(name: str, command: Any, heading: str) -> Iterator[str]:
    """Lines about a command, and about the commands in it."""
    yield f"{heading} {name}\n"
    yield f"{_paragraphs(command.help)}\n"
    for one, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _command(f"{name} {one}", inner, heading + "#")
    parameters = [p for p in command.params if not p.hidden and p.name != "help"]
    arguments = [p for p in parameters if p.nargs == -1 or not p.opts[0].startswith("-")]
    options = [p for p in parameters if p not in arguments]
    if getattr(command, "commands", None):
        return
    words = " ".join(_argument(one) for one in arguments)
    yield f"```text\n{name} {f'{words} ' if words else ''}[OPTIONS]\n```\n"
    for title, found in (("argument", arguments), ("option", options)):
        if found:
            rows = [_row(one, title) for one in found]
            yield "\n".join([f"| {title} | | default |", "|---|---|---|", *rows]) + "\n"


def _argument(parameter: Any) -> str:
    word = parameter.name.upper()
    word = f"{word}..." if parameter.nargs == -1 else word
    return word if parameter.required else f"[{word}]"


def _row(parameter: Any, kind: str) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(parameter.opts, key=len, reverse=True))
    if kind == "argument":
        names = f"`{parameter.name.upper()}`"
    default = "required" if parameter.required else _default(parameter)
    variable = f" Environment variable: `{parameter.envvar}`." if parameter.envvar else ""
    text = (parameter.help or "").replace("|", "\\|")
    return f"| {names} | {text}{variable} | {default} |"


def _default(parameter: Any) -> str:
    value = parameter.default
    if value is None or value is False or value == ():
        return ""
    return f"`{value.as_posix() if isinstance(value, Path) else value}`"


def _paragraphs(text: str | None) -> str:
    """A docstring's text, each paragraph on a line of its own."""
    parts = re.split(r"\n\s*\n", (text or "").strip())
    return "\n\n".join(" ".join(part.split()) for part in parts)


def _first_sentence(text: str | None) -> str:
    return _paragraphs(text).split("\n")[0].split(". ")[0].rstrip(".")


# -- llms.txt --------------------------------------------------------------------------------


def llms_text(made: dict[str, str]) -> str:
    """The site's pages for language models (llmstxt.org): title, address and first sentence."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    lines = [f"# {site['site_name']}", "", f"> {site['site_description']}"]
    for entry in site["nav"]:
        [(title, inner)] = entry.items()
        pages = inner if isinstance(inner, list) else [{title: inner}]
        lines += (
            ["", f"## {title}", ""] if isinstance(inner, list) else [""] * (lines[-1][0] == ">")
        )
        for page in pages:
            [(name, path)] = page.items() if isinstance(page, dict) else [(title, page)]
            lines.append(f"- [{name}]({_address(path)}): {_summary(path, made)}")
    return "\n".join(lines) + "\n"


def _address(page: str) -> str:
    """Where the site has a page, relative to llms.txt."""
    return f"{page.removesuffix('index.md').removesuffix('.md').rstrip('/')}/".lstrip("/") or "./"


def _summary(page: str, made: dict[str, str]) -> str:
    """The first sentence of a page."""
    file = ROOT / PAGES.get(page, f"docs/{page}")
    text = made[page] if page in made else file.read_text(encoding="utf-8")
    text = re.sub(r"\A---\n.*?\n---\n|<!--.*?-->|^```.*?^```$", "", text, flags=re.M | re.S)
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.strip() and not paragraph.lstrip().startswith(
            ("#", "|", "!", "-", ":::", " ")
        ):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
            return re.split(r"(?<=[.!?]) ", plain)[0].rstrip(":").replace("**", "")
    raise SystemExit(f"{file} has no paragraph to describe it by")


# -- the rule --------------------------------------------------------------------------------

_CELL = 30
_LEFT, _TOP = 120, 108
_GREY = "#767676"  # to be read on white and on a dark page: the picture has no background


def draw_rule() -> str:
    """The attention rule as a picture, drawn from `may_attend`: a text of five tokens, two special
    tokens over all of it, and two suffix tokens as in training."""
    from gem_rag.core.attention import may_attend
    from gem_rag.core.layout import Role, TokenFacts

    names = ["t1", "t2", "t3", "t4", "t5", "GEM 1", "GEM 2", "s1", "s2"]
    role = np.array([Role.TEXT] * 5 + [Role.SPECIAL] * 2 + [Role.SUFFIX] * 2)
    count = len(names)
    position = np.array([0, 1, 2, 3, 4, 5, 5, 6, 7])
    facts = TokenFacts(np.arange(count), role, position, np.zeros(count, int), np.full(count, 5))
    rows = TokenFacts(*(array[:, None] for array in facts))
    columns = TokenFacts(*(array[None, :] for array in facts))
    return _svg(names, role.tolist(), may_attend(rows, columns))


def _svg(names: list[str], roles: list[int], allowed: Any) -> str:
    colors = {0: "#5c6bc0", 1: "#ef6c00", 2: "#388e3c"}
    size = _CELL * len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + size + 230} '
        f'{_TOP + size + 16}" font-family="sans-serif" font-size="13" role="img">',
        "<title>Which token (row) attends to which (column)</title>",
        f'<text x="{_LEFT}" y="24" fill="{_GREY}">attends to</text>',
    ]
    for place, (name, role) in enumerate(zip(names, roles, strict=True)):
        middle = place * _CELL + _CELL / 2
        parts.append(
            f'<text x="{_LEFT - 10}" y="{_TOP + middle + 5:g}" text-anchor="end" '
            f'fill="{colors[role]}">{name}</text>'
        )
        parts.append(
            f'<text transform="translate({_LEFT + middle + 5:g} {_TOP - 8}) rotate(-60)" '
            f'fill="{colors[role]}">{name}</text>'
        )
    for row, column in np.ndindex(allowed.shape):
        fill = colors[roles[row]] if allowed[row, column] else f"{_GREY}1a"
        parts.append(
            f'<rect x="{_LEFT + column * _CELL + 1}" y="{_TOP + row * _CELL + 1}" '
            f'width="{_CELL - 2}" height="{_CELL - 2}" rx="3" fill="{fill}"/>'
        )
    said = ("text: the text so far", "special token: its text, itself", "suffix (training only)")
    for role, words in enumerate(said):
        x, y = _LEFT + size + 18, _TOP + 20 + role * 26
        parts.append(
            f'<rect x="{x}" y="{y - 12}" width="14" height="14" rx="3" fill="{colors[role]}"/>'
        )
        parts.append(f'<text x="{x + 22}" y="{y}" fill="{_GREY}">{words}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    typer.run(main)
