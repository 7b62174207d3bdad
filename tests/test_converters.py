"""Files of other programs become Markdown, and citations name pages, slides, rows and cells.

In `files/`: costs.* by Gnumeric (ods by LibreOffice), of a table whose first and fourth row are
empty; talk.* and book.ipynb by pandoc.
"""

from __future__ import annotations

import json
from email.message import EmailMessage
from pathlib import Path

import pytest

from gem_rag.documents.converters import CONVERTERS
from gem_rag.documents.document import Document
from gem_rag.documents.readers import read_paths

FILES = Path(__file__).with_name("files")

pytest.importorskip("markitdown", reason="the files extra is not installed")


def read(file: Path) -> Document:
    (document,) = read_paths([file], file.parent)
    assert isinstance(document, Document)
    return document


def place_of(document: Document, words: str) -> str:
    assert document.text.count(words) == 1, document.text
    return document.place(document.text.index(words))


@pytest.mark.parametrize("suffix", ["xlsx", "xls", "ods"])
def test_rows_of_a_spreadsheet(suffix: str) -> None:
    document = read(FILES / f"costs.{suffix}")
    heading, _, header, rule, pump, valve = document.text.split("\n")
    sheet = heading.removeprefix("## ")
    assert header == "| item | price | note |"
    assert rule == "| --- | --- | --- |"
    assert pump == r"| pump | 12.5 | moves \| water |"
    assert valve == "| valve | 3 | closes pipes |"
    assert place_of(document, "item") == f"{sheet}, row 2"
    assert place_of(document, "12.5") == f"{sheet}, row 3"
    assert place_of(document, "closes") == f"{sheet}, row 5"


def test_rows_of_several_sheets(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Pumps"
    book.active.append(["name"])
    book.create_sheet("Nothing")
    other = book.create_sheet("Valves")
    other.append(["name", None, "use"])
    other.append(["gate", None, "=1+1"])
    other["A3"] = "ball"
    book.save(tmp_path / "two.xlsx")
    document = read(tmp_path / "two.xlsx")
    assert "Nothing" not in document.text
    assert place_of(document, "| gate |") == "Valves, row 2"
    assert place_of(document, "| ball |  |  |") == "Valves, row 3"


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t"), ("d.csv", "\t")]
)
def test_rows_of_a_table(name: str, separator: str, tmp_path: Path) -> None:
    rows = [["item", "note"], ["pump", "moves | water"], ["valve", '"closes\npipes"']]
    text = "".join(separator.join(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    document = read(tmp_path / name)
    assert document.title == name
    assert document.text.split("\n")[0] == "| item | note |"
    assert place_of(document, r"moves \| water") == "row 2"
    assert place_of(document, "closes pipes") == "row 3"


def test_a_table_of_one_column_is_one(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("name\npump\nvalve\n")
    assert read(tmp_path / "names.csv").text == "| name |\n| --- |\n| pump |\n| valve |"


def test_slides() -> None:
    document = read(FILES / "talk.pptx")
    assert "Slide number" not in document.text
    assert place_of(document, "A pump moves water.") == "slide 2"  # the first is the title's
    assert place_of(document, "A valve closes pipes.") == "slide 3"
    assert place_of(document, "Say it twice.") == "slide 3"


@pytest.mark.parametrize("name", ["talk.docx", "talk.epub"])
def test_prose(name: str) -> None:
    document = read(FILES / name)
    assert "# Valves" in document.text
    assert place_of(document, "A valve closes pipes.") == ""


def test_cells_of_a_notebook() -> None:
    document = read(FILES / "book.ipynb")
    assert "```python\nprint(1 + 1)\n```" in document.text
    assert place_of(document, "A pump moves water.") == "cell 1"
    assert place_of(document, "print(1 + 1)") == "cell 2"
    assert place_of(document, "A valve closes pipes.") == "cell 3"


def test_what_cells_printed(tmp_path: Path) -> None:
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["one\n", "two\n"]},
        {"output_type": "execute_result", "execution_count": 1, "metadata": {},
         "data": {"text/plain": "'```'", "image/png": "AAAA"}},
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": "AAAA"}},
    ]  # fmt: skip
    cell = {"cell_type": "code", "execution_count": 1, "metadata": {}, "source": "f()",
            "outputs": outputs}  # fmt: skip
    notebook = {"cells": [cell], "metadata": {"kernelspec": {"name": "ir", "language": "R",
                "display_name": "R"}}, "nbformat": 4, "nbformat_minor": 4}  # fmt: skip
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    document = read(tmp_path / "a.ipynb")
    assert document.text == "```R\nf()\n```\n\n```\none\ntwo\n```\n\n````\n'```'\n````"


def test_mail(tmp_path: Path) -> None:
    message = EmailMessage()
    message["From"], message["To"] = "Ada <ada@example.com>", "Bob <bob@example.com>"
    message["Subject"] = "Pumps für Köln"
    message.set_content("The pump is late.\n")
    message.add_alternative("<p>The pump is <b>late</b>.</p>", subtype="html")
    message.add_attachment(b"%PDF-", maintype="application", subtype="pdf", filename="bill.pdf")
    (tmp_path / "a.eml").write_bytes(message.as_bytes())
    document = read(tmp_path / "a.eml")
    assert document.title == "Pumps für Köln"
    assert document.text == (
        "- From: Ada <ada@example.com>\n- To: Bob <bob@example.com>\n\nThe pump is late.\n\n"
        "- Attachment: bill.pdf"
    )


def test_mail_of_html_alone(tmp_path: Path) -> None:
    message = EmailMessage()
    message["Subject"] = "Valves"
    message.set_content("<style>p {}</style><p>They are <b>shut</b>.</p>", subtype="html")
    (tmp_path / "a.eml").write_bytes(message.as_bytes())
    assert read(tmp_path / "a.eml").text == "They are **shut**."


@pytest.mark.parametrize("with_table", [False, True], ids=["prose", "table"])
def test_pages_of_a_pdf(with_table: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    with PdfPages(tmp_path / "a.pdf") as pages:
        for text in ("Pumps move water.", "", "Valves close pipes.", "Filters hold dust."):
            figure = Figure()
            figure.text(0.1, 0.9, text)
            if with_table and text.startswith("Valves"):
                rows = [[f"{name} {row}" for name in ("item", "cost", "use")] for row in range(8)]
                axes = figure.add_subplot()
                axes.axis("off")
                axes.table(rows)
            pages.savefig(figure)
    document = read(tmp_path / "a.pdf")
    assert place_of(document, "Pumps move water.") == "page 1"
    assert place_of(document, "Valves close pipes.") == "page 3"
    assert place_of(document, "Filters hold dust.") == "page 4"
    if with_table:
        assert place_of(document, "cost 7") == "page 3"


def test_lines_of_text_and_of_definitions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Pumps\n\nmove\nwater.\n")
    assert place_of(read(tmp_path / "a.txt"), "move") == "line 3"
    (tmp_path / "a.rs").write_text("// Pumps\nfn main() {}\n")
    code = read(tmp_path / "a.rs")
    assert (code.title, place_of(code, "main")) == ("a.rs", "line 2")
    (tmp_path / "a.py").write_text('\n\ndef f():\n    """Do it.\n\n    Twice.\n    """\n')
    assert place_of(read(tmp_path / "a.py"), "Twice") == "line 3"
    assert Document("made here", "text").place(2) == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.xlsx", "damaged or cut off"),
        ("a.pptx", "damaged or cut off"),
        ("a.ipynb", "damaged or cut off"),
        ("a.epub", "damaged or cut off"),
    ],
)
def test_damaged_files_are_named(name: str, said: str, tmp_path: Path) -> None:
    whole = next(FILES.glob(f"*{Path(name).suffix}")).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Exception, match=said):
        list(read_paths([tmp_path / name], tmp_path))


def test_every_format_has_a_reader() -> None:
    from gem_rag.documents import readers

    assert set(readers._CONVERTED.values()) == set(CONVERTERS)
