"""Sections of HTML documentation."""

from __future__ import annotations

from pathlib import Path

from gem_tiny.documentation import Section, parse_sections, read_sections

PAGE = """<!DOCTYPE html><html><head><title>files — Work with files — Python documentation</title>
</head><body><div class="related"><h3>Navigation</h3><a href="x">next</a></div>
<div role="main"><section id="module-files"><h1>files — Work with files<a class="headerlink"
href="#x">¶</a></h1><p>This module opens <code>files</code> and <em>closes</em> them.</p>
<section><h2>Opening</h2><dl><dt><span>files.open</span>(<em>path</em>)<a class="headerlink"
href="#y">¶</a></dt><dd><p>Open the file at a path.</p><pre><span>with</span> open(p):
    # a comment
    read()</pre></dd></dl></section></section></div></body></html>"""


def test_sections_of_a_page() -> None:
    first, second = parse_sections("library/files.html", PAGE)
    page = "files — Work with files"
    assert first == Section(
        "library/files.html",
        (page, "files — Work with files"),
        "This module opens files and closes them.",
        frozenset({"files"}),
    )
    assert second.title == (page, "Opening")
    assert second.text == (
        "files.open(path)\n    Open the file at a path.\n\n"
        "        with open(p):\n            # a comment\n            read()"
    )


def test_pages_that_list_or_repeat_are_left_out(tmp_path: Path) -> None:
    for name in ("files.html", "genindex.html", "_modules/files.html", "whatsnew/3.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(PAGE)
    (tmp_path / "empty.html").write_text("")
    assert {section.page for section in read_sections(tmp_path)} == {"files.html"}
