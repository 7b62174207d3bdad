"""Reading files: what becomes a document, what is skipped, and what each refusal says."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from gem_rag.documents.document import Document, LeftOut, Skipped
from gem_rag.documents.readers import read_paths
from gem_rag.errors import InputError

PYTHON = '''"""A module about paths."""

class Path:
    """A path."""

    def join(self, *parts: str, sep="/") -> str:
        """Join parts.

        With a separator between them.
        """

    async def read(self):
        pass

try:
    def fast(): "A fast one."
except ImportError:
    def fast(): "A slow one."
'''


def read(*paths: Path, base: Path) -> list[Document | Skipped]:
    return list(read_paths(paths, base))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path, base=path.parent)
    return str(caught.value)


def test_folder_gives_documents_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("# Two\n\nText.")
    (tmp_path / "a.txt").write_text("\n\nOne line\nand another")
    (tmp_path / "c.rst").write_text("=====\nThree\n=====\n\nText.")
    found = read(tmp_path, base=tmp_path)
    assert [(d.source, d.title, d.kind) for d in found if isinstance(d, Document)] == [
        ("a.txt", "One line", "text"),
        ("c.rst", "Three", "rst"),
        ("b/two.md", "Two", "markdown"),
    ]
    assert found[0].text == "\n\nOne line\nand another"


def test_hidden_and_unknown_files_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "notes.txt").write_text("hidden")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "seen.txt").write_text("seen")
    seen, left_out = read(tmp_path, base=tmp_path)
    assert seen.source == "seen.txt"
    assert left_out == LeftOut(Counter({".png": 1}))


def test_python_file_gives_one_document_for_each_docstring(tmp_path: Path) -> None:
    (tmp_path / "paths.py").write_text(PYTHON)
    found = {d.source: d.text for d in read(tmp_path, base=tmp_path)}
    assert found == {
        "paths.py": "# paths\nA module about paths.",
        "paths.py#Path": "# paths.Path\nA path.",
        "paths.py#Path.join": (
            "# paths.Path.join(self, *parts: str, sep='/')\n"
            "Join parts.\n\nWith a separator between them."
        ),
        "paths.py#fast": "# paths.fast()\nA fast one.",
        "paths.py#fast@2": "# paths.fast()\nA slow one.",
    }


def test_windows_line_ends_and_byte_order_mark_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read(tmp_path, base=tmp_path)[0].text == "one\ntwo\n"


def test_sources_do_not_depend_on_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("text")
    absolute = read(tmp_path / "docs", base=tmp_path)
    monkeypatch.chdir(tmp_path / "docs")
    assert read(Path("."), base=tmp_path) == absolute
    assert absolute[0].source == "docs/a.txt"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.md", b" \n\n\t", "is empty"),
        ("binary.txt", b"abc\0def", "is binary"),
        ("latin.txt", "caf\xe9".encode("latin-1"), "is not UTF-8 (byte 3): convert it"),
        ("line.txt", b"x" * 1_000_001, "a line of 1,000,001 characters"),
        ("broken.py", b"def (:", "is not Python that can be parsed"),
    ],
)
def test_unreadable_file_is_refused_when_named_and_skipped_in_a_folder(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)
    skipped = read(tmp_path, base=tmp_path)
    assert isinstance(skipped[0], Skipped)
    assert said in skipped[0].reason
    assert "\n" not in skipped[0].reason


def test_missing_path_and_unknown_kind_are_refused(tmp_path: Path) -> None:
    assert "there is no file or folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "picture.png").write_bytes(b"")
    assert "of no kind that can be indexed" in refusal(tmp_path / "picture.png")


def test_nothing_is_read_when_a_path_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    reader = read_paths([tmp_path / "a.txt", tmp_path / "nowhere"], tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        next(reader)


def test_html_is_converted(tmp_path: Path) -> None:
    pytest.importorskip("markitdown", reason="the files extra is not installed")
    page = "<html><body><h1>Pumps</h1><p>A pump <b>moves</b> water.</p></body></html>"
    (tmp_path / "page.html").write_text(page)
    (document,) = read(tmp_path, base=tmp_path)
    assert isinstance(document, Document)
    assert (document.title, document.kind) == ("Pumps", "markdown")
    assert "A pump **moves** water." in document.text


def test_headings_of_html_lack_the_mark_that_links_to_them(tmp_path: Path) -> None:
    pytest.importorskip("markitdown", reason="the files extra is not installed")
    page = (
        '<html><body><h1>Pumps<a class="headerlink" href="#pumps">\u00b6</a></h1><p>See '
        '<a href="#valves">valves</a>, <a href="#f"><img alt="figure" src="f.png"/></a>.</p>'
        '<h2><a href="#valves">#</a> Valves</h2><p>They close.</p></body></html>'
    )
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (document,) = read(tmp_path, base=tmp_path)
    assert isinstance(document, Document)
    lines = document.text.splitlines()
    assert "# Pumps" in lines
    assert "## Valves" in lines
    assert "[valves](#valves)" in document.text
    assert "figure" in document.text


def test_word_and_pdf_are_converted(tmp_path: Path) -> None:
    pytest.importorskip("markitdown", reason="the files extra is not installed")
    (tmp_path / "a.docx").write_bytes(_docx("Valves close pipes."))
    (tmp_path / "b.pdf").write_bytes(_pdf("Filters hold dust."))
    texts = [d.text for d in read(tmp_path, base=tmp_path) if isinstance(d, Document)]
    assert "Valves close pipes." in texts[0]
    assert "Filters hold dust." in texts[1]


def test_damaged_document_is_skipped_with_a_reason(tmp_path: Path) -> None:
    pytest.importorskip("markitdown", reason="the files extra is not installed")
    (tmp_path / "a.docx").write_bytes(_docx("text")[:200])
    assert "cannot be converted" in refusal(tmp_path / "a.docx")


def _docx(text: str) -> bytes:
    """The smallest Word file with one paragraph."""
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006"
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/relationships/officeDocument" Target="word/document.xml"/>'
        "</Relationships>",
        "word/document.xml": f'<w:document xmlns:w="{word}"><w:body><w:p><w:r><w:t>{text}</w:t>'
        "</w:r></w:p></w:body></w:document>",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _pdf(text: str) -> bytes:
    """One page with one line of text, written out by hand."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return out + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n"
        b"%%%%EOF\n" % (size, table, size, len(out))
    )
