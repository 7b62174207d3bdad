"""`GemEmbeddings`: the model's own vectors, as plain floats."""

from __future__ import annotations

import numpy as np
import pytest
from langchain_gem import GemEmbeddings
from standard import other_model

from gem_rag import Gem, InputError

LONG = "word " * 400


def test_vectors_are_the_models(gem: Gem) -> None:
    texts = ["two\nlines\n", "  spaces  ", "</s> is text"]
    found = GemEmbeddings().embed_documents(texts)
    assert {type(value) for row in found for value in row} == {float}
    np.testing.assert_allclose(found, gem.embed_documents(texts), atol=1e-5)
    query = GemEmbeddings().embed_query(texts[0])
    np.testing.assert_allclose(query, gem.embed_queries(texts[:1])[0], atol=1e-5)


def test_queries_and_documents_have_prompts_of_their_own() -> None:
    embeddings = GemEmbeddings(model=other_model(prompts=("question: ", "passage: ")))
    plain = GemEmbeddings()
    for found, prompt in (
        (embeddings.embed_query("a text"), "question: "),
        (embeddings.embed_documents(["a text"])[0], "passage: "),
    ):
        np.testing.assert_allclose(found, plain.embed_query(prompt + "a text"), atol=1e-5)


def test_settings_for_documents_and_for_queries() -> None:
    error = {"overlong": "error"}
    both = GemEmbeddings(encode_kwargs=error)
    with pytest.raises(InputError, match="tokens"):
        both.embed_documents([LONG])
    with pytest.raises(InputError, match="tokens"):
        both.embed_query(LONG)
    apart = GemEmbeddings(encode_kwargs=error, query_encode_kwargs={"overlong": "windows"})
    assert len(apart.embed_query(LONG)) == apart.gem.dim


def test_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = Gem.embed_documents
    monkeypatch.setattr(
        Gem, "embed_documents", lambda *args, **kw: seen.append(kw) or original(*args, **kw)
    )
    GemEmbeddings(show_progress=True).embed_documents(["a text"])
    assert seen == [{"progress": True}]


def test_no_texts_and_empty_texts() -> None:
    assert GemEmbeddings().embed_documents([]) == []
    with pytest.raises(InputError, match="text 1 is empty"):
        GemEmbeddings().embed_documents(["a text", " "])
