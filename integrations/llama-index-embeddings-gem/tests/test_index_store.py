"""An index as LlamaIndex's vector store, by the cases that its own simple store is tested with."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import (
    ImageNode,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from llama_index.embeddings.gem import GemEmbedding, GemVectorStore

import gem_rag
from gem_rag import Gem, GemError, Index, InputError

QUESTION = "How do I append an item to a list?"
TEXTS = {
    "files": "open(path) returns a file object; close it when you are done.",
    "lists": "list.append(x) adds an item to the end of the list.",
    "dicts": "dict.get(key) returns None where the key is missing.",
}
METADATA: dict[str, dict[str, Any]] = {
    "files": {"area": "Input and output", "rank": 1, "tags": ["io", "builtin"], "old": False},
    "lists": {"area": "Sequences", "rank": 2, "tags": ["builtin"]},
    "dicts": {"area": "Mappings", "rank": 2.5, "tags": [], "note": None},
}
ALL = set(TEXTS)


def make_nodes() -> list[TextNode]:
    """Nodes of two documents; their metadata are not embedded."""
    return [
        TextNode(
            id_=name,
            text=text,
            metadata=METADATA[name],
            excluded_embed_metadata_keys=list(METADATA[name]),
            relationships={
                NodeRelationship.SOURCE: RelatedNodeInfo(
                    node_id="io" if name == "files" else "data"
                )
            },
        )
        for name, text in TEXTS.items()
    ]


@pytest.fixture
def store(gem: Gem, tmp_path: Path) -> GemVectorStore:
    filled = GemVectorStore(tmp_path / "index", gem)
    assert filled.add(make_nodes()) == list(TEXTS)
    return filled


def found(store: GemVectorStore, **settings: Any) -> list[str]:
    """Ids of the nodes that a query finds, three at most."""
    query = VectorStoreQuery(**{"query_str": QUESTION, "similarity_top_k": 3, **settings})
    return store.query(query).ids or []


def where(*filters: Any, condition: FilterCondition = FilterCondition.AND) -> MetadataFilters:
    """Filters of (key, operator, value)."""
    return MetadataFilters(
        filters=[
            one if isinstance(one, MetadataFilters) else MetadataFilter(
                key=one[0], operator=FilterOperator(one[1]), value=one[2]
            )
            for one in filters
        ],
        condition=condition,
    )  # fmt: skip


# -- queries -----------------------------------------------------------------------------------


async def test_a_query_finds_what_is_nearest(store: GemVectorStore, gem: Gem) -> None:
    scores = gem.embed_documents(list(TEXTS.values())) @ gem.embed_queries([QUESTION])[0]
    order = np.argsort(-scores).tolist()
    query = VectorStoreQuery(query_str=QUESTION, similarity_top_k=2)
    result = store.query(query)
    assert result.ids == [list(TEXTS)[place] for place in order[:2]]
    assert result.similarities == pytest.approx(scores[order[:2]].tolist(), abs=1e-5)
    assert [node.get_content() for node in result.nodes or ()] == [TEXTS[i] for i in result.ids]
    assert await store.aquery(query) == result


def test_an_embedding_is_a_query_by_itself(store: GemVectorStore, gem: Gem) -> None:
    vector = gem.embed_queries([QUESTION])[0].tolist()
    assert found(store, query_str=None, query_embedding=vector) == found(store)
    doubled = [2 * value for value in vector]
    assert found(store, query_str="open a file", query_embedding=doubled) == found(store)
    assert found(store, query_str=None, query_embedding=vector, mode="hybrid") == found(store)
    with pytest.raises(InputError, match=r"not \(1, 3\): embed with that model"):
        found(store, query_embedding=[1.0, 0.0, 0.0])
    with pytest.raises(InputError, match="give query_str or query_embedding"):
        found(store, query_str=None)


def test_modes_are_the_rankings_of_the_index(store: GemVectorStore) -> None:
    words = {"query_str": "None key missing", "mode": VectorStoreQueryMode.TEXT_SEARCH}
    assert found(store, **words) == ["dicts"]
    assert found(store, **{**words, "mode": VectorStoreQueryMode.SPARSE}) == ["dicts"]
    hybrid = {**words, "mode": VectorStoreQueryMode.HYBRID}
    assert found(store, **hybrid)[0] == "dicts"
    assert set(found(store, **hybrid)) == ALL
    assert found(store, **hybrid, alpha=0) == ["dicts"]
    assert found(store, **hybrid, alpha=1) == found(store, query_str="None key missing")
    assert len(found(store, **hybrid, hybrid_top_k=1)) == 1
    assert set(found(store, mode=VectorStoreQueryMode.SEMANTIC_HYBRID)) == ALL
    with pytest.raises(InputError, match=r"alpha=0\.7 is not supported"):
        found(store, **hybrid, alpha=0.7)
    with pytest.raises(InputError, match="no query mode 'svm' here: use default, mmr"):
        found(store, mode=VectorStoreQueryMode.SVM)


def test_mmr_puts_repetitions_behind(gem: Gem, tmp_path: Path) -> None:
    store = GemVectorStore(tmp_path / "index", gem)
    texts = [TEXTS["lists"], TEXTS["lists"] + " It is the end.", TEXTS["dicts"]]
    store.add([TextNode(id_=str(n), text=text) for n, text in enumerate(texts)])
    assert set(found(store, similarity_top_k=2)) == {"0", "1"}
    mmr = {"mode": VectorStoreQueryMode.MMR, "similarity_top_k": 2}
    assert "2" in found(store, **mmr, mmr_threshold=0.1)
    assert found(store, **mmr, mmr_threshold=1.0) == found(store, similarity_top_k=2)
    query = VectorStoreQuery(query_str=QUESTION, **mmr)
    assert "2" in (store.query(query, mmr_threshold=0.1).ids or [])


def test_settings_of_the_index_reach_a_query(store: GemVectorStore) -> None:
    assert not store.query(VectorStoreQuery(query_str=QUESTION), min_score=0.999).ids
    index = VectorStoreIndex.from_vector_store(store, store.embed_model)
    retriever = index.as_retriever(vector_store_kwargs={"ranking": "words"})
    assert [node.node_id for node in retriever.retrieve("missing")] == ["dicts"]


def test_an_empty_store_finds_nothing(gem: Gem, tmp_path: Path) -> None:
    store = GemVectorStore(tmp_path / "index", gem)
    assert found(store) == []
    assert store.get_nodes() == []
    store.clear()
    store.delete("nothing")
    assert store.add([]) == []


# -- filters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([("area", "==", "Sequences")], {"lists"}),
        ([("rank", "==", 2)], {"lists"}),
        ([("old", "==", 0)], {"files"}),
        ([("rank", "!=", 2)], {"files", "dicts"}),
        ([("old", "!=", 1)], ALL),  # LlamaIndex: what is missing is not equal
        ([("rank", ">", 1)], {"lists", "dicts"}),
        ([("rank", ">=", 2)], {"lists", "dicts"}),
        ([("rank", "<", 2)], {"files"}),
        ([("rank", "<=", 2)], {"files", "lists"}),
        ([("rank", ">", 1), ("rank", "<", 2.5)], {"lists"}),
        ([("rank", "<", 1), ("rank", ">", 2)], set()),
        ([("area", ">", 1)], set()),  # text is not compared with a number
        ([("area", "in", ["Sequences", "Mappings"])], {"lists", "dicts"}),
        ([("area", "nin", ["Sequences", "Mappings"])], {"files"}),
        ([("nothing", "nin", ["a"])], ALL),
        ([("nothing", "==", "a")], set()),
        ([("tags", "any", ["io", "x"])], {"files"}),
        ([("tags", "all", ["io", "builtin"])], {"files"}),
        ([("tags", "contains", "builtin")], {"files", "lists"}),
        ([("area", "text_match", "Input")], {"files"}),
        ([("area", "text_match", "input")], set()),
        ([("area", "text_match_insensitive", "INPUT")], {"files"}),
        ([("tags", "is_empty", None)], {"dicts"}),
        ([("note", "is_empty", None)], ALL),
        ([("old", "is_empty", None)], {"lists", "dicts"}),
        ([("ref_doc_id", "==", "io")], {"files"}),
    ],
    ids=str,
)  # fmt: skip
def test_every_operator(store: GemVectorStore, filters: list[Any], wanted: set[str]) -> None:
    assert set(found(store, filters=where(*filters))) == wanted
    assert {node.node_id for node in store.get_nodes(filters=where(*filters))} == wanted


def test_conditions_and_nested_filters(store: GemVectorStore) -> None:
    sequences, low = ("area", "==", "Sequences"), ("rank", "<", 2)
    both = where(sequences, low, condition=FilterCondition.OR)
    neither = where(sequences, low, condition=FilterCondition.NOT)
    assert set(found(store, filters=both)) == {"lists", "files"}
    assert found(store, filters=neither) == ["dicts"]
    assert found(store, filters=where(both, ("tags", "contains", "io"))) == ["files"]
    not_both = where(both, condition=FilterCondition.NOT)
    assert found(store, filters=not_both) == ["dicts"]
    assert set(found(store, filters=where())) == ALL


def test_a_filter_applies_before_the_best_are_chosen(store: GemVectorStore) -> None:
    assert found(store, similarity_top_k=1) == ["lists"]
    mappings = where(("area", "text_match", "Map"))
    assert found(store, similarity_top_k=1, filters=mappings) == ["dicts"]


def test_a_filter_that_cannot_be_is_refused(store: GemVectorStore) -> None:
    with pytest.raises(InputError, match="'text_match' of 'rank' looks for text, not 2"):
        found(store, filters=where(("rank", "text_match", 2)))


def test_nodes_and_documents_can_be_named(store: GemVectorStore) -> None:
    assert set(found(store, node_ids=["files", "dicts", "nothing"])) == {"files", "dicts"}
    assert set(found(store, node_ids=[])) == ALL  # what LlamaIndex's retriever gives for all
    assert set(found(store, doc_ids=["data"])) == {"lists", "dicts"}
    assert found(store, doc_ids=["data"], node_ids=["lists", "files"]) == ["lists"]


def test_of_equal_texts_the_one_that_is_asked_for_is_found(store: GemVectorStore) -> None:
    store.add([TextNode(id_="twin", text=TEXTS["lists"], metadata={"year": 1})])
    twin = where(("year", "==", 1))
    assert found(store, filters=twin) == found(store, node_ids=["twin"]) == ["twin"]
    assert "twin" not in found(store, doc_ids=["data"])


# -- nodes -------------------------------------------------------------------------------------


def test_nodes_come_back_as_they_were(gem: Gem, tmp_path: Path) -> None:
    store = GemVectorStore(tmp_path / "index", gem)
    relationships = {
        NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"a": 1}),
        NodeRelationship.NEXT: RelatedNodeInfo(node_id="next"),
        NodeRelationship.CHILD: [RelatedNodeInfo(node_id="child")],
    }
    metadata = {"text": "a", "nested": {"b": [1]}, "none": None, "_node_id": "mine"}
    one, hidden = {"a": 1}, ["a"]
    nodes = [
        TextNode(id_="plain", text="A text. ", start_char_idx=3, end_char_idx=11),
        TextNode(id_="rich", text="One\n\ntext.", metadata=metadata, relationships=relationships),
        TextNode(id_="first", text="Text.", metadata=one, text_template="{content} {metadata_str}"),
        TextNode(id_="hidden", text="Text.", metadata=one, excluded_embed_metadata_keys=hidden),
        IndexNode(id_="index", text="See there.", index_id="there"),
        ImageNode(id_="image", text="A picture.", image="AA=="),
    ]
    store.add(nodes)
    again = {node.node_id: node for node in GemVectorStore(tmp_path / "index").get_nodes()}
    assert again.keys() == {node.node_id for node in nodes}
    for node in nodes:
        assert type(again[node.node_id]) is type(node)
        assert again[node.node_id].to_dict() == node.to_dict()


async def test_nodes_are_replaced_and_deleted(store: GemVectorStore) -> None:
    await store.async_add(
        [TextNode(id_="lists", text="A list is a sequence.", metadata={"new": 1})]
    )
    assert len(await store.aget_nodes()) == 3
    [node] = await store.aget_nodes(["lists", "nothing"])
    assert (node.get_content(), node.metadata) == ("A list is a sequence.", {"new": 1})
    await store.adelete("io")
    assert set(found(store)) == {"lists", "dicts"}
    await store.adelete("unknown")
    await store.adelete_nodes(["dicts", "unknown"])
    assert found(store) == ["lists"]
    await store.aclear()
    assert found(store) == store.get_nodes() == []


def test_nodes_are_selected_by_ids_and_filters(store: GemVectorStore) -> None:
    assert [node.node_id for node in store.get_nodes(["lists", "files", "lists"])] == [
        "lists",
        "files",
    ]
    assert store.get_nodes([]) == []
    low = where(("rank", "<=", 2))
    assert [node.node_id for node in store.get_nodes(["dicts", "lists"], low)] == ["lists"]
    store.delete_nodes([])
    store.delete_nodes(["dicts", "lists"], low)
    assert set(found(store)) == {"files", "dicts"}
    store.delete_nodes(filters=low)
    assert found(store) == ["dicts"]
    with pytest.raises(InputError, match=r"clear\(\) deletes everything"):
        store.delete_nodes()


def test_a_long_node_is_found_once_and_whole(store: GemVectorStore) -> None:
    long = "\n\n".join(f"Paragraph {n} says that append adds to a list." for n in range(80))
    store.add([TextNode(id_="long", text=long, metadata={"area": "long"})])
    assert len(store.client) > 8
    result = store.query(VectorStoreQuery(query_str=QUESTION, similarity_top_k=3))
    assert len(set(result.ids or ())) == 3
    [node] = [one for one in result.nodes or () if one.node_id == "long"]
    assert node.get_content(MetadataMode.NONE) == long


def test_documents_of_the_index_itself_are_nodes_too(store: GemVectorStore) -> None:
    store.client.sync([gem_rag.Document("loops", "A loop ends.", metadata={"area": "Loops"})])
    [node] = store.get_nodes(["loops"])
    assert (node.get_content(), node.metadata) == ("A loop ends.", {"area": "Loops"})
    assert found(store, filters=where(("area", "==", "Loops"))) == ["loops"]
    assert set(found(store, filters=where(("area", "is_empty", None)))) == set()


# -- embeddings --------------------------------------------------------------------------------


@pytest.fixture
def embedded(gem: Gem, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts of documents that the model has embedded since."""
    texts: list[str] = []
    embed = gem.embed_documents

    def record(batch: list[str], **settings: Any) -> Any:
        texts.extend(batch)
        return embed(batch, **settings)

    monkeypatch.setattr(gem, "embed_documents", record)
    return texts


def test_embeddings_of_the_same_model_are_used(
    gem: Gem, tmp_path: Path, embedded: list[str]
) -> None:
    store = GemVectorStore(tmp_path / "index", gem)
    documents = [Document(text=text, metadata={"area": name}) for name, text in TEXTS.items()]
    storage = StorageContext.from_defaults(vector_store=store)
    VectorStoreIndex.from_documents(
        documents, storage_context=storage, embed_model=GemEmbedding(gem)
    )
    assert len(embedded) == 3 + 1  # one of them again, to see whether they are its own
    assert embedded[:3] == [node.get_content(MetadataMode.EMBED) for node in store_order(store)]
    vectors = gem.embed_documents(embedded[:3]) @ gem.embed_queries([QUESTION])[0]
    result = store.query(VectorStoreQuery(query_str=QUESTION, similarity_top_k=3))
    assert result.similarities == pytest.approx(sorted(vectors.tolist(), reverse=True), abs=1e-5)


def store_order(store: GemVectorStore) -> list[Any]:
    """The nodes in the order of `TEXTS`."""
    nodes = {node.metadata["area"]: node for node in store.get_nodes()}
    return [nodes[name] for name in TEXTS]


def test_a_given_embedding_is_what_is_searched(gem: Gem, tmp_path: Path) -> None:
    """The shortest text's is checked; that of another is taken as it is."""
    store = GemVectorStore(tmp_path / "index", gem)
    about = gem.embed_documents(["open a file"])[0]
    short, long = TextNode(id_="short", text="x"), TextNode(id_="long", text="Something else.")
    short.embedding = gem.embed_documents(["x"])[0].tolist()
    long.embedding = (3 * about).tolist()  # made a unit vector
    store.add([short, long])
    query = VectorStoreQuery(query_embedding=about.tolist())
    assert store.query(query).similarities == pytest.approx([1.0], abs=1e-5)


@pytest.mark.parametrize("dim", ["same", "other"])
def test_embeddings_of_another_model_are_refused(gem: Gem, tmp_path: Path, dim: str) -> None:
    store = GemVectorStore(tmp_path / "index", gem)
    other: BaseEmbedding = MockEmbedding(embed_dim=gem.dim if dim == "same" else 8)
    index = VectorStoreIndex.from_vector_store(store, other)
    with pytest.raises(InputError, match="not that of 'gem-tiny', with which the index embeds"):
        index.insert(Document(text="A text."))
    assert store.get_nodes() == []


# -- LlamaIndex's indexes and pipelines --------------------------------------------------------


async def test_an_index_of_llama_index_runs_on_it(gem: Gem, tmp_path: Path) -> None:
    store = GemVectorStore(tmp_path / "index", gem)
    storage = StorageContext.from_defaults(vector_store=store)
    documents = [Document(text=text, doc_id=name) for name, text in TEXTS.items()]
    index = VectorStoreIndex.from_documents(
        documents, storage_context=storage, embed_model=store.embed_model
    )
    retriever = index.as_retriever(similarity_top_k=1)
    assert [node.node.ref_doc_id for node in retriever.retrieve(QUESTION)] == ["lists"]
    assert [node.node.ref_doc_id for node in await retriever.aretrieve(QUESTION)] == ["lists"]
    index.update_ref_doc(Document(text="A list is a sequence.", doc_id="lists"))
    [node] = store.get_nodes(filters=where(("ref_doc_id", "==", "lists")))
    assert node.get_content() == "A list is a sequence."
    index.delete_ref_doc("lists")
    index.delete_nodes([store.get_nodes()[0].node_id])
    assert len(store.get_nodes()) == 1
    await index.ainsert_nodes([TextNode(text=TEXTS["lists"])])
    assert retriever.retrieve(QUESTION)[0].text == TEXTS["lists"]

    storage.persist(str(tmp_path / "storage"))
    again = GemVectorStore(tmp_path / "index")
    context = StorageContext.from_defaults(
        vector_store=again, persist_dir=str(tmp_path / "storage")
    )
    loaded = load_index_from_storage(context, embed_model=again.embed_model)
    opened = VectorStoreIndex.from_vector_store(again, again.embed_model)
    for one in (loaded, opened):
        assert one.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0].text == TEXTS["lists"]


async def test_a_pipeline_keeps_it_in_sync(gem: Gem, tmp_path: Path) -> None:
    store = GemVectorStore(tmp_path / "index", gem)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), store.embed_model],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    documents = [Document(text=text, doc_id=name) for name, text in TEXTS.items()]
    assert len(pipeline.run(documents=documents)) == 3
    assert pipeline.run(documents=documents) == []
    changed = [Document(text="Changed.", doc_id="files"), documents[1]]
    assert len(await pipeline.arun(documents=changed)) == 1
    assert {node.get_content() for node in store.get_nodes()} == {"Changed.", TEXTS["lists"]}


# -- the store itself --------------------------------------------------------------------------


def test_it_is_opened_on_first_use(
    store: GemVectorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(gem_rag, "load", pytest.fail)
        unopened = GemVectorStore(tmp_path / "index", store="faiss", ranking="words")
        copies = [GemVectorStore.from_dict(unopened.to_dict()), pickle.loads(pickle.dumps(store))]
        assert len(pickle.dumps(store)) < 10_000
    for copy in copies:
        assert copy.client is not store.client
        assert found(copy, query_str="append")[0] == "lists"
    assert copies[0].ranking == "words"
    assert copies[0].gem is store.embed_model.gem is store.client.gem


def test_an_index_or_its_folder(store: GemVectorStore, tmp_path: Path, chat_folder: Path) -> None:
    given = GemVectorStore(store.client)
    assert given.client is store.client
    assert given.to_dict()["folder"] == str(tmp_path / "index")
    with pytest.raises(InputError, match="an Index has its model"):
        GemVectorStore(store.client, "gem-tiny")
    with pytest.raises(GemError, match="made by model 'gem-tiny'"):
        found(GemVectorStore(tmp_path / "index", chat_folder))
    chroma = GemVectorStore(tmp_path / "other", store="chroma")
    chroma.add(make_nodes())
    assert found(chroma) == found(store)


def test_a_context_of_chunks_is_kept(gem: Gem, tmp_path: Path) -> None:
    """Vectors that were made without it are not used where there is some."""
    index = Index.open(tmp_path / "index", gem, chunk_tokens=32, context_tokens=128)
    text = "\n\n".join(f"Paragraph {n} says that append adds to a list." for n in range(6))
    node = TextNode(id_="long", text=text)
    node.embedding = gem.embed_documents([text])[0].tolist()
    GemVectorStore(index).add([node])
    other = Index.open(tmp_path / "other", gem, chunk_tokens=32, context_tokens=128)
    other.sync([gem_rag.Document("long", text)])
    scores = [[hit.score for hit in one.search(QUESTION, 9)] for one in (index, other)]
    assert len(scores[0]) > 1
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


async def test_the_event_loop_is_not_blocked(
    store: GemVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def record(*args: Any, **settings: Any) -> list[list[Any]]:
        threads.append(threading.current_thread())
        return [[]]

    monkeypatch.setattr(Index, "search_many", record)
    await store.aquery(VectorStoreQuery(query_str=QUESTION))
    assert threads
    assert threading.main_thread() not in threads
