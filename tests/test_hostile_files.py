"""One file never stops a run: what cannot be read is named, within bounds of time and memory."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from test_splitting_property import TOKENIZER

from gem_rag.documents import splitting
from gem_rag.documents.conversion import Converter
from gem_rag.documents.document import Document, Skipped
from gem_rag.documents.readers import read_paths
from gem_rag.documents.splitting import Splitter
from gem_rag.errors import InputError

NESTED = "x = " + "(" * 5000 + ")" * 5000


def read(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Texts, and reasons for what was skipped, by source."""
    entries = list(read_paths([folder], folder))
    texts = {e.source: e.text for e in entries if isinstance(e, Document)}
    return texts, {e.source: e.reason for e in entries if isinstance(e, Skipped)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fine.txt").write_text("A pump moves water.")
    return tmp_path


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(folder: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (folder / "a.txt").write_bytes(f"{mark}Ünïcode, 保証".encode(encoding))
    assert read(folder)[0]["a.txt"] == "Ünïcode, 保証"


def test_python_files_say_their_encoding(folder: Path) -> None:
    source = '# -*- coding: latin-1 -*-\n"""Für Pumpen."""\n'
    (folder / "m.py").write_bytes(source.encode("latin-1"))
    assert "Für Pumpen." in read(folder)[0]["m.py"]


def test_lone_surrogates_of_docstrings_are_written_out(folder: Path) -> None:
    (folder / "m.py").write_text('"""A cut emoji \\ud83d here."""\n')
    text = read(folder)[0]["m.py"]
    assert text.encode()
    assert "A cut emoji" in text


def test_names_that_are_no_text_are_written_out(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/r\xe9sum\xe9.md")).write_text("# CV\n\nText.")
    (source,) = [name for name in read(folder)[0] if name.endswith(".md")]
    assert source == "r\\xe9sum\\xe9.md"


@pytest.mark.parametrize("source", [NESTED, "def f(:\n", "x = 1\0"], ids=["deep", "syntax", "null"])
def test_python_that_cannot_be_parsed_is_named(folder: Path, source: str) -> None:
    (folder / "m.py").write_text(source)
    texts, skipped = read(folder)
    assert list(texts) == ["fine.txt"]
    assert "m.py" in skipped["m.py"]


def test_pipes_and_links_to_themselves_do_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "pipe.txt")
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "null.txt").symlink_to("/dev/zero")
    texts, skipped = read(folder)
    assert list(texts) == ["fine.txt"]
    assert set(skipped) == {"loop.txt", "null.txt", "pipe.txt"}


def test_content_decides_what_a_file_is(folder: Path) -> None:
    with zipfile.ZipFile(folder / "zip.pdf", "w") as archive:
        archive.writestr("x", "x")
    (folder / "binary.html").write_bytes(os.urandom(2000) + b"\0")
    (folder / "text.docx").write_text("no zip")
    texts, skipped = read(folder)
    assert list(texts) == ["fine.txt"]
    assert set(skipped) == {"binary.html", "text.docx", "zip.pdf"}


def test_a_converter_that_takes_too_long_is_ended_and_the_next_file_converts(folder: Path) -> None:
    page = folder / "page.html"
    page.write_text("<html><body><h1>Pump</h1><p>It moves water.</p></body></html>")
    with Converter(timeout=0.01) as converter:
        with pytest.raises(InputError, match="page.html cannot be converted .*longer than"):
            converter.convert(page, "html")
        converter._timeout = 60
        assert "# Pump" in converter.convert(page, "html").text


@pytest.mark.slow
def test_a_file_that_unpacks_without_end_costs_one_file(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        body = f"<w:p><w:r><w:t>{'A' * 1000}</w:t></w:r></w:p>" * 400_000
        archive.writestr(
            "word/document.xml",
            '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
            f"<w:body>{body}</w:body></w:document>",
        )
        archive.writestr("[Content_Types].xml", "<Types/>")
    texts, skipped = read(folder)
    assert list(texts) == ["fine.txt"]
    assert "bomb.docx cannot be converted" in skipped["bomb.docx"]


def test_what_is_hidden_on_a_page_is_not_read(folder: Path) -> None:
    (folder / "page.html").write_text(
        "<html><head><title>Return policy</title></head><body><a href='#main'>Skip to content</a>"
        "<nav>Home</nav><script>secret</script><template>tpl</template>"
        "<div style='display: none'>editor</div><main id=main><h1>Returns</h1><p>Thirty days."
        "</p></main></body></html>"
    )
    (document,) = read_paths([folder / "page.html"], folder)
    assert isinstance(document, Document)
    assert document.title == "Return policy"
    assert document.text.split() == ["#", "Returns", "Thirty", "days."]


@pytest.mark.parametrize(
    "text", ["0f" * 50_000, "a" * 300_000, "\u200d" * 40_000], ids=["hex", "letter", "joiners"]
)
def test_one_unbroken_run_is_split_in_short_blocks(text: str) -> None:
    """The splitter's time grows with the square of a run."""
    blocks = [stop - start for start, stop in splitting._blocks(text, 0, len(text))]
    assert sum(blocks) == len(text)
    assert max(blocks) <= 400
    chunks = Splitter(TOKENIZER, 160).split(Document("s", text))
    assert sum(len(chunk.text) for chunk in chunks) == len(text)
