"""Models that cannot be told who attends to whom: one special token after each whole text."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from families import ONLY_CAUSAL, adapted_encoder, build_family, reference_vector

import gem_rag
from gem_rag.core.encoder import (
    GemEncoder,
    check_supported,
    max_text_tokens_before_loading,
)
from gem_rag.core.layout import Layout, Row
from gem_rag.core.suitability import examine
from gem_rag.engines.decoding import DecodingBatch, SeparateSequences, batch_kind
from gem_rag.errors import GemError, InputError

pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = [[5, 6, 7, 8, 9], [11, 12], list(range(13, 33))]  # the last longer than sliding windows


@torch.inference_mode()
@pytest.mark.parametrize("family", ONLY_CAUSAL)
def test_vectors_are_those_of_a_plain_pass_with_one_more_token(family: str) -> None:
    encoder, reference = adapted_encoder(family), build_family(family)
    if reference._can_set_attn_implementation():
        reference.set_attn_implementation("eager")
    assert encoder.only_causal
    layouts = [Layout.build([Row.whole(text) for text in part], 1) for part in (TEXTS, TEXTS[:1])]
    found = encoder.embed_in_halves(layouts)
    expected = torch.stack([reference_vector(encoder, reference, t) for t in [*TEXTS, TEXTS[0]]])
    assert (found - expected).abs().max() < 1e-5
    assert (encoder(layouts[0]) - expected[:3]).abs().max() < 1e-5
    # What it generates is not changed by a bit.
    ids = torch.tensor([TEXTS[2]])
    plain = build_family(family)
    if plain._can_set_attn_implementation() and encoder.model.config._attn_implementation:
        plain.set_attn_implementation(encoder.model.config._attn_implementation)
    assert torch.equal(encoder.model(ids).logits, plain(ids).logits)


def saved(family: str, folder: Path) -> Path:
    build_family(family).save_pretrained(folder)
    helpers.build_tokenizer().save_pretrained(folder)
    return folder


@torch.inference_mode()
@pytest.mark.parametrize(
    "family",
    ["qwen3_5_text", "lfm2", "mamba", "bamba", "granitemoehybrid", "nemotron_h", "falcon_h1",
     "minimax", "gpt_oss", "gemma2", "gptj", "gemma4_text"],
)  # fmt: skip
def test_texts_generated_together_are_those_of_the_model_alone(family: str, tmp_path: Path) -> None:
    """Also while others join and leave."""
    folder, plain = saved(family, tmp_path), build_family(family)
    if family == "gemma2":
        plain.set_attn_implementation("eager")  # as only that caps scores
    with gem_rag.load(folder) as gem:
        prompts = [gem.tokenize(text) for text in helpers.SENTENCES]
        for prompt, generation in zip(prompts, gem.generate(prompts, max_tokens=8), strict=True):
            ids = list(prompt)
            for _ in range(8):
                ids.append(int(plain(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == helpers.EOS:
                    break
            written = [token for token in ids[len(prompt) :] if token != helpers.EOS]
            assert generation.text == gem._tokenizer.decode(written)
        pieces = gem.stream(prompts[0], max_tokens=8)
        first = next(pieces, "")
        [other] = gem.generate(prompts[1:2], max_tokens=2)
        assert first + "".join(pieces) == gem.generate(prompts[:1], max_tokens=8)[0].text
        assert other == gem.generate(prompts[1:2], max_tokens=2)[0]


@pytest.mark.parametrize(
    ("family", "kind"),
    [("qwen3_5_text", SeparateSequences), ("lfm2", SeparateSequences), ("mamba", SeparateSequences),
     ("minimax", SeparateSequences), ("gpt_oss", DecodingBatch), ("llama", DecodingBatch)],
)  # fmt: skip
def test_states_have_no_places_for_padding(family: str, kind: type) -> None:
    assert isinstance(batch_kind(build_family(family))(helpers.PAD), kind)


@pytest.mark.parametrize("architecture", ["rwkv", "recurrent_gemma"])
def test_a_model_without_a_cache_is_refused(architecture: str) -> None:
    with pytest.raises(GemError, match="gives back no cache of what it has read"):
        batch_kind(helpers.build_model(architecture))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("qwen3_5_text", "qwen3_5_text has layers of kind linear_attention, which carry text past"),
        ("gpt_oss", "gpt_oss has attention sinks"),
        ("gemma2", "gemma2 caps the scores of its attention"),
        ("gemma4_text", "gemma4_text feeds token ids into every layer"),
        ("gptj", "gptj does not use transformers' attention interface"),
        ("stablelm", "stablelm calls transformers' attention interface 0 times in 2 layers"),
        ("diffllama", "diffllama calls transformers' attention interface 4 times in 2 layers"),
    ],
)
def test_more_special_tokens_are_refused_with_the_reason(family: str, reason: str) -> None:
    with pytest.raises(GemError, match=f"{reason}.*choose k = 1 and not 2"):
        check_supported(GemEncoder(build_family(family), 2))


def test_parts_of_a_text_are_refused(tmp_path: Path) -> None:
    with gem_rag.load(saved("qwen3_5_text", tmp_path)) as gem:
        document = "one part. another part."
        assert np.allclose(
            gem.embed_chunks(document, [(0, len(document))]), gem.embed_documents([document])
        )
        with pytest.raises(InputError, match="vectors of whole texts only: embed parts of a doc"):
            gem.embed_chunks(document, [(0, 9), (10, 23)])


def test_text_cannot_be_predicted_from_special_tokens() -> None:
    encoder = GemEncoder(build_family("mamba"), 1)
    layout = Layout.build([Row.whole([5, 6, 7], [8, 9])], 1, "right")
    with pytest.raises(InputError, match="leave next_token out of the recipe"):
        encoder.hidden_states(layout)
    raw = Layout.build([Row([5, 6, 7], ())], 1, "right")
    assert torch.equal(
        encoder.hidden_states(raw), encoder.base(torch.tensor([[5, 6, 7]])).last_hidden_state
    )


def test_texts_are_not_compiled() -> None:
    encoder = GemEncoder(build_family("gpt_oss"), 1)
    with pytest.raises(GemError, match="has attention sinks, and texts go through it uncompiled"):
        encoder.compile_texts()
    encoder.compile_texts(False)


def test_a_model_in_both_directions_is_refused_still() -> None:
    model = helpers.build_model("gemma2", attn_logit_softcapping=5.0)
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(
            lambda module, inputs, output: (output[0] + output[0].flip(1), *output[1:])
        )
    with pytest.raises(GemError, match="lets text tokens see special tokens"):
        check_supported(GemEncoder(model, 1))


def test_it_is_said_before_training(tmp_path: Path) -> None:
    found = examine(saved("gpt_oss", tmp_path))
    assert found.accepted
    assert found.longest_text == helpers.CONTEXT - 1  # its windows are its own
    assert found.only_whole_texts == "has attention sinks"
    config = build_family("gpt_oss").config
    assert max_text_tokens_before_loading(config, 1) == helpers.CONTEXT - 1
    assert max_text_tokens_before_loading(config, 2) == config.sliding_window - 2
    windows = helpers.build_model("mistral", sliding_window=12).config
    assert max_text_tokens_before_loading(windows, 1) == 11


def test_nothing_keeps_a_closed_model(tmp_path: Path) -> None:
    gem = gem_rag.load(saved("mamba", tmp_path))
    gem.generate([[5, 6, 7]], max_tokens=3)
    model = weakref.ref(gem._engine.encoder.model)
    gem.close()
    gc.collect()
    assert model() is None


@pytest.mark.slow
def test_the_table_of_families_is_up_to_date() -> None:
    script = Path(__file__).parents[1] / "scripts" / "families.py"
    subprocess.run([sys.executable, script, "--check"], check=True, stdout=subprocess.DEVNULL)
