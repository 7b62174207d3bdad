"""How an index grows: time, memory and disk from a thousand chunks to a million, beside its peers.

Beside plain Chroma and plain LangChain FAISS, which get the same texts and the same vectors (256
dimensions, from a stand-in for a model that costs next to nothing, with the clusters that texts'
vectors have). Each size is built, and then opened and searched in a process of its own; memory is
what the process has more than before. Building is timed in seconds of all cores, which other work
on the machine does not change. `recall` is the share of the ten nearest that are found.

    python benchmarks/index_scale.py [--size N ...] [--system NAME ...] [--plot FILE]
"""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from measuring import RESULTS, record
from tables import read_lines

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fakes import FakeGem

DIM, RANK = 256, 32
CHUNKS, WORDS = 20, 40  # of a document, of a chunk
VOCABULARY = 20_000
QUERIES = 100
BASIS = np.random.default_rng(0).normal(size=(RANK, DIM)).astype(np.float32)


class StandIn(FakeGem):
    """Vectors by the texts' digests: most of what they differ in lies in few directions."""

    def __init__(self) -> None:
        super().__init__("stand-in", DIM)

    def embed_documents(self, texts: Sequence[str], *, progress: bool = False) -> Any:
        return self.embed_queries(texts)

    def embed_queries(self, texts: Sequence[str]) -> Any:
        vectors = np.stack([self._vector(text) for text in texts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _vector(self, text: str) -> Any:
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        drawn = np.random.default_rng(seed).normal(size=RANK + DIM).astype(np.float32)
        return drawn[:RANK] @ BASIS * 0.2 + drawn[RANK:] * 0.5


GEM: Any = StandIn()


def make_documents(size: int) -> Iterator[list[str]]:
    """Paragraphs of documents, in words as frequent as those of a language."""
    rng = np.random.default_rng(1)
    names = np.array([f"word{n}" for n in range(VOCABULARY)])
    shares = 1 / np.arange(1, VOCABULARY + 1)
    shares /= shares.sum()
    for _ in range(size // CHUNKS):
        drawn = names[rng.choice(VOCABULARY, size=(CHUNKS, WORDS), p=shares)]
        yield [" ".join(words) for words in drawn]


def make_queries(size: int) -> list[str]:
    """Half of them are texts of the index, half are not."""
    rng = np.random.default_rng(2)
    known = next(make_documents(CHUNKS))[: QUERIES // 2]
    new = [f"word{a} word{b} word{c}" for a, b, c in rng.integers(0, 5000, (QUERIES, 3))]
    return (known + new)[:QUERIES]


# -- systems -------------------------------------------------------------------------------------


class GemRag:
    """Our index."""

    def __init__(self, folder: Path) -> None:
        from gem_rag import Index

        self.index = Index.open(folder / "index", GEM)

    def build(self, size: int) -> None:
        from gem_rag import Document

        paragraphs = enumerate(make_documents(size))
        self.index.sync(Document(str(n), "\n\n".join(parts)) for n, parts in paragraphs)

    def search(self, query: str) -> list[str]:
        return [hit.chunk.text for hit in self.index.search(query, 10, ranking="vectors")]

    def hybrid(self, query: str) -> None:
        self.index.search(query, 10, ranking="hybrid")

    def change_one(self) -> None:
        from gem_rag import Document

        self.index.sync([Document("1", "Other words than there were.")])


class Chroma:
    """A persistent collection, as its documentation makes one."""

    def __init__(self, folder: Path) -> None:
        import chromadb

        client = chromadb.PersistentClient(str(folder / "chroma"))
        self.collection: Any = client.get_or_create_collection(
            "texts", metadata={"hnsw:space": "cosine"}, embedding_function=None
        )

    def build(self, size: int) -> None:
        for number, texts in enumerate(make_documents(size)):
            self.collection.add(
                ids=[f"{number}-{n}" for n in range(len(texts))],
                embeddings=GEM.embed_documents(texts),
                documents=texts,
            )

    def search(self, query: str) -> list[str]:
        found = self.collection.query(query_embeddings=GEM.embed_queries([query]), n_results=10)
        return list(found["documents"][0])

    def change_one(self) -> None:
        texts = ["Other words than there were."]
        self.collection.delete(ids=[f"1-{n}" for n in range(CHUNKS)])
        self.collection.add(ids=["1-0"], embeddings=GEM.embed_documents(texts), documents=texts)


class LangChainFaiss:
    """LangChain's FAISS store, which is in memory and saved whole."""

    def __init__(self, folder: Path) -> None:
        from langchain_community.vectorstores import FAISS

        self.folder = str(folder / "faiss")
        self.store: Any = None
        if Path(self.folder).exists():
            self.store = FAISS.load_local(
                self.folder, GEM.embed_queries, allow_dangerous_deserialization=True
            )

    def build(self, size: int) -> None:
        from langchain_community.vectorstores import FAISS

        texts = [text for parts in make_documents(size) for text in parts]
        pairs = zip(texts, GEM.embed_documents(texts), strict=True)
        ids = [f"{n // CHUNKS}-{n % CHUNKS}" for n in range(size)]
        self.store = FAISS.from_embeddings(list(pairs), GEM.embed_queries, ids=ids)
        self.store.save_local(self.folder)

    def search(self, query: str) -> list[str]:
        vector = GEM.embed_queries([query])[0]
        found = self.store.similarity_search_with_score_by_vector(vector, k=10)
        return [document.page_content for document, _ in found]

    def change_one(self) -> None:
        self.store.delete([f"1-{n}" for n in range(CHUNKS)])
        text = "Other words than there were."
        self.store.add_embeddings([(text, GEM.embed_documents([text])[0])], ids=["1-0"])
        self.store.save_local(self.folder)


SYSTEMS = {"gem-rag": GemRag, "Chroma": Chroma, "LangChain FAISS": LangChainFaiss}


# -- measuring -----------------------------------------------------------------------------------


def main(
    size: Annotated[list[int] | None, typer.Option(help="chunks, a multiple of 20")] = None,
    system: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(SYSTEMS)}")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw all recorded figures")] = None,
    keep: Annotated[Path | None, typer.Option(help="keep what is built here, to use again")] = None,
    only_build: Annotated[bool, typer.Option("--only-build", help="with --keep")] = False,
    step: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Measure and record every system at every size."""
    if step:
        print(json.dumps({"build": build, "use": use}[step]((system or [""])[0], folder,
                                                           (size or [0])[0])))  # fmt: skip
        return
    for count in size or ([] if plot else [1_000, 10_000, 100_000]):
        for name in system or SYSTEMS:
            with tempfile.TemporaryDirectory() as scratch:
                made = (keep or Path(scratch)) / f"{name}-{count}"
                built = made.with_suffix(".json")
                if not built.exists():
                    shutil.rmtree(made, ignore_errors=True)
                    made.mkdir(parents=True)
                    built.write_text(json.dumps(run("build", name, made, count)))
                if only_build:
                    continue
                copy = shutil.copytree(made, Path(scratch) / "copy")
                figures = {**json.loads(built.read_text()), **run("use", name, copy, count)}
            record("index_scale", {"row": name, "chunks": count, **figures})
    if plot:
        draw(plot)


def run(step: str, system: str, folder: Path, size: int) -> dict[str, float]:
    """A step in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--step", step, "--system", system, "--folder", str(folder),
         "--size", str(size)], stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def build(system: str, folder: Path, size: int) -> dict[str, float]:
    """Make an index of texts."""
    start = time.process_time()
    SYSTEMS[system](folder).build(size)
    seconds = time.process_time() - start
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "build CPU seconds": round(seconds, 1),
        "build peak MB": round(peak),
        "disk MB": round(disk / 1e6, 1),
    }


def use(system: str, folder: Path, size: int) -> dict[str, float]:
    """Open, search, change one document."""
    SYSTEMS[system](Path(tempfile.mkdtemp()))  # what is imported counts for nobody
    queries = make_queries(size)
    before = _memory()
    seconds, opened = _timed(lambda: SYSTEMS[system](folder))
    figures = {"open seconds": round(seconds, 3), "open MB": round(_memory() - before)}
    first, _ = _timed(lambda: opened.search(queries[0]))
    seconds, found = _timed(lambda: [opened.search(query) for query in queries])
    figures |= {"first query ms": _ms(first), "query ms": _ms(seconds / len(queries))}
    if hasattr(opened, "hybrid"):
        seconds, _ = _timed(lambda: [opened.hybrid(query) for query in queries[50:]])
        figures["hybrid ms"] = _ms(seconds / len(queries[50:]))
    figures["searched MB"] = round(_memory() - before)
    changed, _ = _timed(opened.change_one)
    figures["one document seconds"] = round(changed, 3)
    figures["recall"] = round(_recall(found, queries, size), 4)
    return figures


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def _memory() -> float:
    """Megabytes of this process."""
    return float(psutil.Process().memory_info().rss / 1e6)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def _recall(found: list[list[str]], queries: list[str], size: int) -> float:
    """The share of the ten nearest texts that were found, by comparing all."""
    vectors = GEM.embed_queries(queries)
    best: list[list[tuple[float, str]]] = [[] for _ in queries]
    for texts in make_documents(size):
        scores = vectors @ GEM.embed_documents(texts).T
        for own, row in zip(best, scores, strict=True):
            own.extend(zip(row.tolist(), texts, strict=True))
            own.sort(reverse=True)
            del own[10:]
    shares = [
        len({text for _, text in own} & set(texts)) / 10
        for own, texts in zip(best, found, strict=True)
    ]
    return float(np.mean(shares))


def draw(file: Path) -> None:
    """The newest figures of each system and size, by size."""
    from matplotlib.figure import Figure

    lines = read_lines(sorted(RESULTS.glob("*.jsonl")))
    newest = {(line["row"], line["chunks"]): line
              for line in lines if line["benchmark"] == "index_scale"}  # fmt: skip
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, name in zip(figure.subplots(2, 4).flat, (
        "build CPU seconds", "disk MB", "open seconds", "searched MB", "query ms", "first query ms",
        "one document seconds", "recall"), strict=True):  # fmt: skip
        for system in SYSTEMS:
            points = sorted((size, line[name]) for (row, size), line in newest.items()
                            if row == system and name in line)  # fmt: skip
            axes.plot(*zip(*points, strict=True), marker="o", label=system)
        axes.set(xscale="log", yscale="linear" if name == "recall" else "log", title=name)
        axes.set_xlabel("chunks")
    figure.axes[0].legend()
    figure.savefig(file)


if __name__ == "__main__":
    typer.run(main)
