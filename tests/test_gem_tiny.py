"""The bundled model: loads by name, retrieves, answers by quoting, and generates as its base."""

from __future__ import annotations

import sysconfig
from itertools import islice
from pathlib import Path

import pytest
import torch
from gem_tiny.docstring_pairs import extract_docstring_pairs
from gem_tiny.texts import is_held_out, read_docstrings
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.assets import GEM_TINY
from gem_rag.documents.document import Document
from gem_rag.evaluation.known_item import evaluate_known_items
from gem_rag.model import Gem

PROMPT = "Context:\n[1] # os.getcwd()\nReturn the current folder.\n\nQuestion: What does getcwd do?"


@pytest.fixture(scope="module")
def tiny() -> Gem:
    return gem_rag.load()


def test_it_is_what_its_card_says(tiny: Gem) -> None:
    assert tiny is gem_rag.load("gem-tiny")
    assert (tiny.config.k, tiny.dim, tiny.context_length) == (1, 256, 1024)
    assert tiny.config.scope == "special"
    assert sum(file.stat().st_size for file in GEM_TINY.folder.iterdir()) < 32e6


@pytest.mark.slow
def test_it_finds_held_out_docstrings_of_the_standard_library(tiny: Gem) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    assert (library / "json" / "__init__.py").exists()
    pairs = extract_docstring_pairs(read_docstrings())
    kept = list(islice((pair for pair in pairs if is_held_out(pair.module)), 300))
    assert len(kept) > 100
    scores = (
        tiny.embed_queries([pair.summary for pair in kept])
        @ tiny.embed_documents([pair.rest for pair in kept], truncation="windows").T
    )
    assert evaluate_known_items(scores, range(len(kept))).recall_10 > 0.5  # by chance 0.03


def test_its_generation_is_its_bases_bit_for_bit(tiny: Gem) -> None:
    base = AutoModelForCausalLM.from_pretrained(GEM_TINY.folder, dtype=torch.float32).eval()
    ids = torch.tensor([tiny.tokenize(PROMPT)])
    with torch.inference_mode():
        expected = base(ids).logits
        generated = base.generate(ids, max_new_tokens=32, do_sample=False)[0, ids.shape[1] :]
    for _ in range(100):
        tiny.embed_queries(["something in between"])
    with torch.inference_mode():
        assert torch.equal(tiny._engine._model(ids).logits, expected)
    (found,) = tiny.generate([PROMPT], max_tokens=32)
    assert list(found.tokens) == [t for t in generated.tolist() if t != 1][: len(found.tokens)]


def test_it_chats_and_quotes(tiny: Gem, tmp_path: Path) -> None:
    assert tiny.chat([{"role": "user", "content": "What does print do?"}], max_tokens=8).tokens
    index = gem_rag.Index.open(tmp_path / "index", tiny)
    index.sync(
        [
            Document("sort", "Sort the list in place. The sort is stable."),
            Document("open", "Open a file and return a stream. The mode is text by default."),
            Document("json", "Serialize an object to a JSON formatted string."),
        ]
    )
    answer = index.ask("How do I open a file?", k=1)
    assert answer.citations[0].source == "open"
    assert answer.citations[0].quote in index.document("open").text


def test_citations_say_which_line_they_begin_on(tiny: Gem, tmp_path: Path) -> None:
    (tmp_path / "io.md").write_text(
        "# Files\n\nA preface.\n\nOpen a file and return a stream. The mode is text by default.\n"
    )
    index = gem_rag.Index.open(tmp_path / "index", tiny)
    index.sync(tmp_path / "io.md")
    (citation, *_) = index.ask("How do I open a file?", k=1).citations
    text = index.document("io.md").text
    assert citation.place == f"line {1 + text.count(chr(10), 0, citation.span[0])}"
