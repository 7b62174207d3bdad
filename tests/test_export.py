"""Exported folders: the vectors that sentence-transformers gives, and what is refused or kept."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from helpers import ARCHITECTURES, build_tokenizer, close_to, edit_json
from sentence_transformers import SentenceTransformer
from tokenizers import processors
from transformers import AutoModelForCausalLM

import gem_rag
from gem_rag.core.checkpoint import open_checkpoint, save_checkpoint
from gem_rag.core.config import CONFIG_NAME, GemConfig
from gem_rag.errors import GemError, InputError
from gem_rag.interop import export
from gem_rag.interop.export import to_sentence_transformers
from gem_rag.interop.sentence_transformers import GemModule

PROMPTS = {"query": "query: ", "document": "passage: "}
TEXTS = (
    "short",
    "x",
    helpers.SENTENCES[0] * 3,
    helpers.SENTENCES[1] * 20,  # over-long
    "<|gem_1|> stands in <s>a text</s>, as do <|im_start|> and <pad>.",
    "Grüße, 世界\n\n\twith   spaces ",
)

pytestmark = pytest.mark.filterwarnings("ignore:a text has")  # one is over-long

# -- making and loading --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def full_folder(new_folder: Any) -> Callable[..., Path]:
    """A `full`-scope checkpoint by architecture, tokenizer and `GemConfig` settings; not shared."""

    def make(
        architecture: str = "llama",
        tokenizer: Any = None,
        model: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        tokenizer = tokenizer or build_tokenizer(bos=True)
        base = helpers.save_plain(new_folder("base"), architecture, tokenizer, **(model or {}))
        config = GemConfig(**{"scope": "full", "prompts": PROMPTS, **settings})
        rows = torch.randn(config.k, 32, generator=torch.Generator().manual_seed(0))
        folder = new_folder("full")
        save_checkpoint(folder, base, config, {"special_embeddings": rows})
        return folder

    return make


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where exports go."""
    return tmp_path / "out"


def loaded(folder: Path, **options: Any) -> SentenceTransformer:
    """A folder as a user loads it who has been told everything."""
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", **options)


def module_types(folder: Path) -> list[str]:
    """The last names of the classes that embed."""
    modules = json.loads((folder / "modules.json").read_text())
    return [module["type"].rsplit(".", 1)[-1] for module in modules]


STANDARD = ["Transformer", "Pooling", "Normalize"]
OWN = ["GemModule"]


@cache
def gem_vectors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What gem-rag gives for the texts as queries and as documents."""
    with gem_rag.load(folder) as gem:
        return gem.embed_queries(TEXTS), gem.embed_documents(TEXTS)


def assert_same_vectors(model: SentenceTransformer, folder: Path) -> None:
    """Queries and documents of mixed lengths get the vectors that gem-rag gives them."""
    texts = list(TEXTS)
    gem_queries, gem_documents = gem_vectors(folder)
    assert model.get_embedding_dimension() == gem_queries.shape[1]
    queries = model.encode_query(texts, batch_size=4)
    assert close_to(queries, gem_queries)
    documents = model.encode_document(texts, batch_size=4)
    assert close_to(documents, gem_documents)
    assert not close_to(queries, documents)


# -- standard modules ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "bos"),
    [*((name, True) for name in ARCHITECTURES), ("llama", False), ("gemma", False)],
)
def test_one_special_token_is_exported_to_standard_modules(
    architecture: str, bos: bool, full_folder: Any, out: Path
) -> None:
    folder = full_folder(architecture, build_tokenizer(bos=bos))
    assert to_sentence_transformers(folder, out) == out
    assert module_types(out) == STANDARD
    assert "trust_remote_code" not in (out / "README.md").read_text()
    model = SentenceTransformer(str(out), device="cpu")
    for side in ("right", "left"):
        model.tokenizer.padding_side = side
        assert_same_vectors(model, folder)


def test_a_tokenizer_that_pads_left_pads_right_once_exported(full_folder: Any, out: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    folder = full_folder(tokenizer=tokenizer)
    model = loaded(to_sentence_transformers(folder, out))
    assert model.preprocess(["a", "a longer text"])["attention_mask"][0, 0] == 1
    assert_same_vectors(model, folder)


def test_a_tokenizer_without_padding_can_pad_once_exported(full_folder: Any, out: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    folder = full_folder("qwen2", tokenizer)
    assert_same_vectors(loaded(to_sentence_transformers(folder, out)), folder)


def test_a_spare_row_of_the_model_is_used(full_folder: Any, out: Path) -> None:
    folder = full_folder(model={"vocab_size": 384})
    model = loaded(to_sentence_transformers(folder, out))
    assert model.config.vocab_size == 384
    assert_same_vectors(model, folder)


@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_tied_weights_and_named_tokens(architecture: str, full_folder: Any, out: Path) -> None:
    folder = full_folder(architecture, model={"tie_word_embeddings": True}, tokens=("[a:b c]",))
    model = loaded(to_sentence_transformers(folder, out))
    ids = model.preprocess(["text"])["input_ids"][0]
    assert model.tokenizer.convert_ids_to_tokens(ids[-1].item()) == "[a:b c]"
    assert_same_vectors(model, folder)


@pytest.mark.parametrize("longest", [1, 9, None])
def test_the_same_text_tokens_are_read(longest: int | None, full_folder: Any, out: Path) -> None:
    folder = full_folder(max_length=longest)
    model = loaded(to_sentence_transformers(folder, out))
    with gem_rag.load(folder) as gem:
        assert model.max_seq_length == gem.max_length + 1
        read = model.preprocess(list(TEXTS))
        for text, ids, mask in zip(TEXTS, read["input_ids"], read["attention_mask"], strict=True):
            ids = ids[mask.bool()].tolist()
            assert ids[:-1] == gem.tokenize(text)[: gem.max_length]
            assert ids[-1] == model.tokenizer.convert_tokens_to_ids("<|gem_1|>")


def test_messages_of_a_chat_are_not_what_is_embedded(full_folder: Any, out: Path) -> None:
    model = loaded(to_sentence_transformers(full_folder(), out))
    assert model.modalities == ["text"]
    assert model.tokenizer.chat_template is None


def test_weights_keep_their_type(full_folder: Any, out: Path) -> None:
    folder = full_folder()
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(folder)
    model = loaded(to_sentence_transformers(folder, out))
    assert model.dtype == torch.bfloat16
    row = open_checkpoint(folder).adapter()["special_embeddings"][0]  # type: ignore[index]
    assert torch.equal(model.transformers_model.get_input_embeddings().weight[-1], row.bfloat16())


# -- the module of gem-rag -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="adapters"),
        pytest.param({"k": 2}, id="mean"),
        pytest.param({"k": 2, "pooling": "concat"}, id="concat"),
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_what_standard_modules_cannot_do_gem_rag_does(
    architecture: str, settings: dict[str, Any], gem_folder: Any, out: Path
) -> None:
    folder = gem_folder(architecture, prompts=PROMPTS, **settings)
    model = loaded(to_sentence_transformers(folder, out))
    assert module_types(out) == OWN
    assert_same_vectors(model, folder)


@pytest.mark.parametrize("pooling", ["mean", "concat"])
def test_more_special_tokens_without_adapters(pooling: str, full_folder: Any, out: Path) -> None:
    folder = full_folder("qwen2", build_tokenizer(), k=3, pooling=pooling)
    model = loaded(to_sentence_transformers(folder, out))
    assert module_types(out) == OWN
    assert_same_vectors(model, folder)


def test_a_tokenizer_that_ends_texts_is_left_to_gem_rag(full_folder: Any, out: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", helpers.EOS)]
    )
    folder = full_folder(tokenizer=tokenizer)
    model = loaded(to_sentence_transformers(folder, out))
    assert module_types(out) == OWN
    assert_same_vectors(model, folder)


def test_a_model_for_texts_and_images_is_left_to_gem_rag(full_folder: Any, out: Path) -> None:
    folder = full_folder()
    edit_json(folder / "config.json", text_config={})
    to_sentence_transformers(folder, out)
    assert module_types(out) == OWN


def test_gem_tiny(out: Path) -> None:
    model = loaded(to_sentence_transformers("gem-tiny", out))
    texts = ["def add(first, second):", "Adds numbers.", *TEXTS]
    with gem_rag.load("gem-tiny") as gem:
        assert close_to(model.encode(texts), gem.embed_documents(texts))
        assert model.max_seq_length == gem.max_length == 160


def test_the_folder_is_a_gem_rag_checkpoint_too(trained_folder: Path, out: Path) -> None:
    to_sentence_transformers(trained_folder, out)
    exported, original = open_checkpoint(out), open_checkpoint(trained_folder)
    assert exported.config == original.config
    assert exported.fingerprint() == original.fingerprint()


def test_sentence_transformers_wants_to_be_told(trained_folder: Path, out: Path) -> None:
    to_sentence_transformers(trained_folder, out)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(out))
    assert 'folder", trust_remote_code=True)' in (out / "README.md").read_text()


def test_folders_name_the_module_as_they_always_have(
    trained_folder: Path, out: Path, tmp_path: Path
) -> None:
    loaded(to_sentence_transformers(trained_folder, out)).save(str(tmp_path / "saved"))
    for folder in (out, tmp_path / "saved"):
        (module,) = json.loads((folder / "modules.json").read_text())
        assert module["type"] == "gem_rag.sentence_transformers_module.GemModule"


def test_an_older_gem_rag_is_told_of(
    trained_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_sentence_transformers(trained_folder, out)
    monkeypatch.setattr(gem_rag, "__version__", "0.0.1")
    with pytest.raises(ImportError, match="gem-rag>="):
        loaded(out)


def test_a_copy_in_another_process_loads_for_itself(trained_folder: Path) -> None:
    module = GemModule(trained_folder)
    module.max_seq_length = 5
    model = SentenceTransformer(modules=[module], device="cpu")
    wanted = model.encode(TEXTS)
    sent = pickle.dumps(model)
    assert len(sent) < (trained_folder / "model.safetensors").stat().st_size
    assert close_to(pickle.loads(sent).encode(TEXTS), wanted)


def test_weights_are_loaded_where_the_model_is(
    trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Loaded:
        def __init__(self, folder: Path, device: str) -> None:
            events.append(f"load on {device}")

        def close(self) -> None:
            events.append("close")

    monkeypatch.setattr(gem_rag, "load", Loaded)
    module = GemModule(trained_folder)
    model = SentenceTransformer(modules=[module], device="cpu")
    assert events == []
    assert module.gem is module.gem
    model.to("meta")
    assert module.gem is module.gem
    assert events == ["load on cpu", "load on meta", "close"]


@pytest.mark.parametrize("asked", [{"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}], ids=str)
def test_a_type_can_be_asked_for(asked: Any, trained_folder: Path, out: Path) -> None:
    model = loaded(to_sentence_transformers(trained_folder, out), model_kwargs=asked)
    with gem_rag.load(trained_folder) as gem:
        wanted = gem.embed_tokens([gem.tokenize("text")])
    difference = np.abs(model.encode(["text"]) - wanted).max()
    assert 1e-5 < difference < 0.05


@pytest.mark.parametrize("text", ["", " \n", ("a", "pair")], ids=str)
def test_an_input_that_is_no_text_is_refused(text: Any, trained_folder: Path) -> None:
    model = SentenceTransformer(modules=[GemModule(trained_folder)], device="cpu")
    with pytest.raises(InputError, match="cannot be embedded: give texts that are not empty"):
        model.encode([text], prompt="prompt ")


def test_another_backend_is_refused(trained_folder: Path, out: Path) -> None:
    to_sentence_transformers(trained_folder, out)
    with pytest.raises(InputError, match="no backend 'onnx': use backend='torch'"):
        loaded(out, backend="onnx")


def test_a_folder_that_has_lost_a_file_is_refused(trained_folder: Path, out: Path) -> None:
    to_sentence_transformers(trained_folder, out)
    (out / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer.json"):
        loaded(out)
    with pytest.raises(InputError, match="cannot be had"):
        GemModule.load(str(out), "1_GemModule")


# -- saving again --------------------------------------------------------------------------------


@pytest.fixture(params=["standard", "own"])
def folder(request: pytest.FixtureRequest, full_folder: Any, trained_folder: Path) -> Path:
    """A checkpoint of either form."""
    return full_folder() if request.param == "standard" else trained_folder


def test_saving_again_changes_nothing(folder: Path, out: Path, tmp_path: Path) -> None:
    loaded(to_sentence_transformers(folder, out)).save(str(tmp_path / "saved"))
    assert module_types(tmp_path / "saved") == module_types(out)
    assert_same_vectors(loaded(tmp_path / "saved"), folder)


def test_saving_in_place_changes_nothing(folder: Path, out: Path) -> None:
    loaded(to_sentence_transformers(folder, out)).save(str(out))
    assert_same_vectors(loaded(out), folder)


def test_a_length_set_by_hand_is_saved(folder: Path, out: Path, tmp_path: Path) -> None:
    model = loaded(to_sentence_transformers(folder, out))
    model.max_seq_length = 6
    model.save(str(tmp_path / "saved"))
    again = loaded(tmp_path / "saved")
    assert again.max_seq_length == 6
    assert again.preprocess([TEXTS[3]])["input_ids"].shape == (1, 6)
    assert close_to(again.encode(TEXTS), model.encode(TEXTS))


# -- what is refused, replaced and kept ----------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_model_that_is_not_trained_is_refused(plain_folder: Any, out: Path) -> None:
    with pytest.raises(InputError, match="has not been GEM-trained.*: train it first"):
        to_sentence_transformers(plain_folder("llama"), out)
    assert not out.exists()


def test_a_missing_sentence_transformers_is_named(
    trained_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install 'gem-rag\[export\]'"):
        to_sentence_transformers(trained_folder, out)


def test_a_name_that_the_tokenizer_has_is_refused(full_folder: Any, out: Path) -> None:
    folder = full_folder(tokens=("</s>",))
    with pytest.raises(InputError, match=f"token '</s>' already: give its {CONFIG_NAME} another"):
        to_sentence_transformers(folder, out)
    assert os.listdir(out.parent) == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_model_is_refused(name: str, full_folder: Any, out: Path) -> None:
    folder = full_folder()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be read|cannot be loaded"):
        to_sentence_transformers(folder, out)
    assert os.listdir(out.parent) == []


def test_an_empty_folder_is_filled(trained_folder: Path, out: Path) -> None:
    out.mkdir()
    to_sentence_transformers(trained_folder, out)
    assert module_types(out) == OWN


def test_an_earlier_export_is_replaced(folder: Path, gem_folder: Any, out: Path) -> None:
    to_sentence_transformers(folder, out)
    other = gem_folder("qwen2", k=2, prompts=PROMPTS)
    to_sentence_transformers(other, out)
    assert_same_vectors(loaded(out), other)
    assert os.listdir(out.parent) == ["out"]


def test_an_export_can_be_exported_in_place(trained_folder: Path, out: Path) -> None:
    before = contents(to_sentence_transformers(trained_folder, out))
    after = contents(to_sentence_transformers(out, out))
    del before["README.md"], after["README.md"]  # it names the model
    assert after == before


def test_a_file_is_not_replaced(trained_folder: Path, out: Path) -> None:
    out.write_text("mine")
    with pytest.raises(InputError, match="holds other things.*give a new folder"):
        to_sentence_transformers(trained_folder, out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda out: (out / "notes.txt").write_text("mine"), id="notes"),
        pytest.param(lambda out: loaded(out).save(str(out)), id="saved again"),
        pytest.param(lambda out: (out / export.CONFIG_FILE).unlink(), id="no mark"),
        pytest.param(lambda out: (out / export.CONFIG_FILE).write_text("["), id="no JSON"),
        pytest.param(lambda out: (out / export.CONFIG_FILE).write_text("[]"), id="a list"),
        pytest.param(
            lambda out: edit_json(out / export.CONFIG_FILE, gem_rag_files=5), id="a number"
        ),
    ],
)
def test_an_export_that_has_changed_is_not_replaced(
    change: Callable[[Path], object], trained_folder: Path, out: Path
) -> None:
    to_sentence_transformers(trained_folder, out)
    change(out)
    before = contents(out)
    with pytest.raises(InputError, match="holds other things than an export of gem-rag"):
        to_sentence_transformers(trained_folder, out)
    assert contents(out) == before


def test_a_failure_leaves_the_earlier_export(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    before = contents(to_sentence_transformers(folder, out))
    monkeypatch.setattr(export, "_write_json", fail)
    with pytest.raises(GemError, match=r"could not write .*disk full.*what was there is unchanged"):
        to_sentence_transformers(folder, out)
    assert contents(out) == before
    assert os.listdir(out.parent) == ["out"]
