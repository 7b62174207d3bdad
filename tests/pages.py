"""Pages of the documentation: their code, links and paths, for the tests that check them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import typer

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "integrations/*/README.md",
        "models/*/README.md",
        "gem_rag/assets/*/README.md",
        "benchmarks/*.md",
    )
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_PLACE = re.compile(
    r"(?:gem_rag|tests|scripts|examples|benchmarks|integrations|models|docs|notebooks|docker)/[\w./-]*"
)


def main() -> None:
    """Print how much there is to check: python tests/pages.py"""
    outside = [link for page in PAGES for link in _targets(page) if "://" in link]
    print(f"{len(PAGES)} pages")
    print(f"{sum(len(blocks(page, 'python')) for page in PAGES)} blocks of Python, which are run")
    print(f"{sum(len(shell_lines(page)) for page in PAGES)} commands in blocks, which are parsed")
    print(f"{sum(1 for page in PAGES for _ in mentions(page))} commands in running text, likewise")
    print(f"{sum(1 for page in PAGES for _ in links(page))} links to files and headings, checked")
    print(f"{len(outside)} links to {len(set(outside))} other addresses, not followed")
    print(f"{sum(1 for page in PAGES for _ in places(page))} files named in code, which must exist")


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    text: str


def name_of(path: Path) -> str:
    """A page's path in the repository."""
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages."""
    found = [Block(*match) for match in _FENCE.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if block.language in languages]


def run_python(page: Path, **replaced: str) -> int:
    """Run all Python blocks of a page in order, as one program; the number of blocks.

    Args:
        page: The page.
        **replaced: Texts in the code, by a name for each: "old -> new".
    """
    found = blocks(page, "python")
    code = "\n".join(block.text for block in found)
    for change in replaced.values():
        old, new = change.split(" -> ")
        assert old in code, f"{name_of(page)} has no {old}"
        code = code.replace(old, new)
    exec(compile(code, str(page), "exec", dont_inherit=True), {"__name__": "__main__"})
    return len(found)


def shell_lines(page: Path) -> list[str]:
    """The commands of a page, fenced or indented, without comments."""
    text = page.read_text(encoding="utf-8")
    fenced = "\n".join(block.text for block in blocks(page, "bash", "sh", "console"))
    indented = re.findall(r"^ {4}((?:gem-rag|pip install|make|python) .*(?:\\\n.*)*)$", text, re.M)
    lines = "\n".join([fenced, *indented]).replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def check_shell(line: str) -> None:
    """Fail unless a line is a command that this repository or its packages have."""
    words = shlex.split(line, comments=True)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program, *rest = words
    if program == "torchrun":
        program, rest = "gem-rag", rest[rest.index("gem_rag") + 1 :]
    checks = {
        "gem-rag": check_gem_rag,
        "make": _check_make,
        "pip": _check_pip,
        "python": _check_python,
        ".venv/bin/python": _check_python,
        "vllm": lambda given: given[:1] == ["serve"],
    }
    assert program in checks, f"what is {program}? {line}"
    assert checks[program](rest) is not False, line


@cache
def _command_line() -> Any:
    from gem_rag.cli.app import app

    return typer.main.get_command(app)


def _find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The innermost command that words name, and the words after its name."""
    command = _command_line()
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def check_gem_rag(words: list[str]) -> None:
    """Parse a command line; raises click's error for what it does not understand."""
    command, rest = _find_command(words)
    assert not hasattr(command, "commands"), f"there is no command {words[0]}"
    command.make_context(words[0], rest)


def check_mention(text: str) -> None:
    """Check a command in running text, which may leave out what it needs."""
    command, rest = _find_command(shlex.split(text)[1:])
    if getattr(command, "commands", None):
        assert not rest or rest[0].startswith("-") or rest[0].isupper(), text
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    takes_more = (command.context_settings or {}).get("ignore_unknown_options")
    for word in rest:
        if re.match(r"-\w|--\w", word) and not takes_more:
            assert word.split("=")[0] in known, text


def mentions(page: Path) -> Iterator[str]:
    """Commands in running text: `gem-rag eval rag --margin`."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for span in _SPAN.findall(text):
        if re.match(r"gem-rag [a-z-]", span):
            yield span


def places(page: Path) -> Iterator[str]:
    """Files and folders of the repository that a page names in code."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for span in _SPAN.findall(text):
        for word in span.split():
            if _PLACE.fullmatch(word):
                yield word


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Paths and anchors of a page's links within the repository."""
    for target in _targets(page):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            yield path, anchor


def _targets(page: Path) -> list[str]:
    """What a page's links lead to, outside of code."""
    text = _SPAN.sub("", _FENCE.sub("", page.read_text(encoding="utf-8")))
    return _LINK.findall(text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown and GitHub make them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    kept = (re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles)
    return {re.sub(r"\s+", "-", title) for title in kept}


def _check_make(words: list[str]) -> bool:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = " ".join(re.findall(r"^([a-z][\w \-]*):(?!=)", text, re.M)).split()
    return all(word in targets for word in words if "=" not in word)


def _check_pip(words: list[str]) -> bool:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = re.findall(r"gem-rag\[([\w,-]+)\]", " ".join(words))
    extras = {extra for group in wanted for extra in group.split(",")}
    return words[0] == "install" and extras <= set(project["optional-dependencies"])


def _check_python(words: list[str]) -> bool:
    if words[0] == "-m":
        return words[1] in ("pytest", "gem_rag", "gem_tiny", "gem_smollm2")
    return (ROOT / words[0]).is_file()


if __name__ == "__main__":
    main()
