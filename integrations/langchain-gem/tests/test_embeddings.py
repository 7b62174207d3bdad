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
    vectors = GemEmbeddings().embed_documents(texts)
    assert {type(value) for row in vectors for value in row} == {float}
    np.testing.assert_allclose(vectors, gem.embed_documents(texts), atol=1e-5)
    query = GemEmbeddings().embed_query(texts[0])
    np.testing.assert_allclose(query, gem.embed_queries(texts[:1])[0], atol=1e-5)


def test_queries_and_documents_have_different_prompts() -> None:
    embeddings = GemEmbeddings(model=other_model(prompts=("question: ", "passage: ")))
    plain = GemEmbeddings()
    for vector, prompt in (
        (embeddings.embed_query("a text"), "question: "),
        (embeddings.embed_documents(["a text"])[0], "passage: "),
    ):
        np.testing.assert_allclose(vector, plain.embed_query(prompt + "a text"), atol=1e-5)


def test_settings_for_documents_and_for_queries() -> None:
    error = {"truncation": "error"}
    both = GemEmbeddings(encode_kwargs=error)
    with pytest.raises(InputError, match="tokens"):
        both.embed_documents([LONG])
    with pytest.raises(InputError, match="tokens"):
        both.embed_query(LONG)
    separate = GemEmbeddings(encode_kwargs=error, query_encode_kwargs={"truncation": "windows"})
    assert len(separate.embed_query(LONG)) == separate.gem.dim


def test_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = []
    original = Gem.embed_documents
    monkeypatch.setattr(
        Gem, "embed_documents", lambda *args, **kw: settings.append(kw) or original(*args, **kw)
    )
    GemEmbeddings(show_progress=True).embed_documents(["a text"])
    assert settings == [{"progress": True}]


def test_no_texts() -> None:
    assert GemEmbeddings().embed_documents([]) == []
