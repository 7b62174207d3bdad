"""Generation that goes on from kept keys and values: the tokens are those of reading everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from families import EVERY_FAMILY, build_family
from helpers import EOS, PAD, build_model, random_ids, run_out, save_plain, tiny_encoder
from safetensors import safe_open

import gem_rag
from gem_rag import InputError
from gem_rag.core.halves import PaddedTexts
from gem_rag.core.layout import Layout, Row
from gem_rag.core.passes import run_text
from gem_rag.engines.decoding import DecodingBatch, Request, batch_kind
from gem_rag.engines.prefix_cache import read_prefixes
from gem_rag.engines.prefix_store import PrefixStore
from gem_rag.generation.listeners import GenerationListener
from gem_rag.generation.sampling import Sampling
from gem_rag.model import Gem

CPU = torch.device("cpu")
PLENTY = 1 << 30


def request(prompt: Sequence[int], **sampling: Any) -> Request:
    settings = Sampling(**{"max_tokens": 8, **sampling})
    listener = GenerationListener(len(prompt), settings, lambda ids: " ".join(map(str, ids)))
    return Request(list(prompt), settings, frozenset([EOS]), listener)


def generate(model: Any, store: PrefixStore | None, *calls: Sequence[Request]) -> list[Any]:
    """What is generated of requests that join in turn, with a step between."""
    batch = DecodingBatch(PAD, store)
    for requests in calls:
        for one in requests:
            batch.find_known(one)
        batch.join(model, requests)
        if batch.requests:
            batch.step(model)
    while batch.requests:
        batch.step(model)
    return [one.listener.generation.result() for requests in calls for one in requests]


def prompts_of_one_beginning() -> list[list[int]]:
    """Longer and shorter ones, which share 70 tokens or more, and two that share nothing."""
    generator = torch.Generator().manual_seed(3)
    head, passage = random_ids(70, generator), random_ids(40, generator)
    ends = [random_ids(length, generator) for length in (5, 1, 30, 12)]
    others = [random_ids(length, generator) for length in (90, 20)]
    return [
        head + passage + ends[0], head + passage + ends[1], head + ends[2],
        head + passage + ends[3], *others, head + passage + ends[0], head + passage[:1],
    ]  # fmt: skip


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.inference_mode()
def test_tokens_are_the_same_with_reuse_and_without(family: str) -> None:
    """Of every family whose cache is keys and values; in one batch or one by one."""
    model = build_family(family)
    if batch_kind(model) is not DecodingBatch:
        pytest.skip("keeps more than keys and values")
    prompts = prompts_of_one_beginning()
    wanted = [one.tokens for p in prompts for one in generate(model, None, [request(p)])]
    store = PrefixStore(PLENTY, CPU)
    alone = [generate(model, store, [request(p)])[0] for p in prompts]
    assert [one.tokens for one in alone] == wanted
    assert [one.reused_tokens for one in alone] == [0, 110, 70, 110, 0, 0, 114, 70]
    first, *rest = map(request, prompts)
    together = generate(model, PrefixStore(PLENTY, CPU), [first], rest[:3], rest[3:])
    assert [one.tokens for one in together] == wanted


@torch.inference_mode()
def test_rows_of_a_batch_reuse_what_the_longest_rest_leaves() -> None:
    model = build_model("llama")
    prompts = prompts_of_one_beginning()
    store = PrefixStore(PLENTY, CPU)
    generate(model, store, [request(prompts[0])])
    found = generate(model, store, [request(prompts[1]), request(prompts[3])])
    assert [one.reused_tokens for one in found] == [111 - 12, 110]


@torch.inference_mode()
def test_only_what_is_left_is_read() -> None:
    model = build_model("llama")
    widths: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(args[0].shape[1]), with_kwargs=True
    )
    prompts = prompts_of_one_beginning()
    store = PrefixStore(PLENTY, CPU)
    for prompt in (prompts[0], prompts[3], prompts[0]):
        generate(model, store, [request(prompt, max_tokens=1)])
    hook.remove()
    assert widths == [115, 12, 1]


@torch.inference_mode()
def test_what_is_kept_is_not_changed_by_those_who_go_on_from_it() -> None:
    model = build_model("llama")
    prompts = prompts_of_one_beginning()
    store = PrefixStore(PLENTY, CPU)
    generate(model, store, [request(prompts[0])])
    [kept] = store._prefixes.values()
    before = [(k.clone(), v.clone()) for k, v in kept.layers]
    generate(model, store, [request(prompts[1]), request(prompts[2])], [request(prompts[3])])
    for (key, value), (old_key, old_value) in zip(kept.layers, before, strict=True):
        assert torch.equal(key, old_key)
        assert torch.equal(value, old_value)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "phi", "gpt_neox", "mistral"])
@torch.inference_mode()
def test_the_embedding_pass_computes_the_keys_and_values_of_generation(architecture: str) -> None:
    """What texts leave for their special tokens is what an answer would compute of them."""
    model = build_model(architecture)
    encoder = tiny_encoder(model, k=2)
    generator = torch.Generator().manual_seed(0)
    texts = [random_ids(length, generator) for length in (30, 17)]
    half = PaddedTexts(Layout.build([Row.whole(text) for text in texts], 2), CPU)
    run_text(encoder.base, half)
    for row, prefix in enumerate(read_prefixes(model, texts, PAD)):
        for layer, parts in enumerate(prefix.layers):
            for own, kept in zip(parts, (half._keys[layer], half._values[layer]), strict=True):
                assert torch.allclose(own[0], kept[row, :, : len(texts[row])], atol=2e-5)


# -- a loaded model ------------------------------------------------------------------------------


@pytest.fixture
def opened(gem_folder: Any) -> Iterator[Callable[..., Gem]]:
    """Loads one checkpoint with options; what it generates has no end token."""
    path = gem_folder("phi")
    gems: list[Gem] = []

    def load(**options: Any) -> Gem:
        gems.append(gem_rag.load(path, **options))
        return gems[-1]

    yield load
    for gem in gems:
        gem.close()


def test_a_loaded_model_says_what_it_reused(opened: Callable[..., Gem]) -> None:
    gem, plain = opened(), opened(prefix_cache_bytes=0)
    prompts = prompts_of_one_beginning()[:2]
    for number, prompt in enumerate(prompts):
        [found] = gem.generate([prompt], max_tokens=6)
        [wanted] = plain.generate([prompt], max_tokens=6)
        assert found.tokens == wanted.tokens
        assert (found.reused_tokens, wanted.reused_tokens) == (110 * number, 0)
    _, streamed = run_out(gem.stream(prompts[0], max_tokens=3))
    assert streamed.reused_tokens == len(prompts[0]) - 1


def test_sampling_and_grammars_go_on_from_what_is_kept(opened: Callable[..., Gem]) -> None:
    gem, plain = opened(), opened(prefix_cache_bytes=0)
    prompts = prompts_of_one_beginning()
    gem.generate([prompts[0]], max_tokens=1)
    settings: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 4},
        {"repetition_penalty": 1.4},
        {"grammar": 'start: "a" /[b-d]+/'},
        {"logprobs": 2},
    ]
    for options in settings:
        [found] = gem.generate([prompts[1]], max_tokens=10, **options)
        [wanted] = plain.generate([prompts[1]], max_tokens=10, **options)
        assert found.reused_tokens == 110
        assert found.tokens == wanted.tokens


def test_what_one_model_kept_no_other_uses(
    opened: Callable[..., Gem], gem_folder: Any, tmp_path: Path
) -> None:
    prompt = prompts_of_one_beginning()[0]
    gem = opened()
    assert gem.keep_prefixes([prompt], tmp_path, PLENTY) == 1
    with gem_rag.load(gem_folder("phi", k=2)) as other, gem_rag.load(gem_folder("llama")) as llama:
        for one in (other, llama):
            assert one.use_prefixes(tmp_path)
            assert one.generate([prompt], max_tokens=1)[0].reused_tokens == 0
    assert gem.generate([prompt], max_tokens=1)[0].reused_tokens == len(prompt) - 1


def test_prefixes_on_disk_serve_a_model_that_is_loaded_anew(
    opened: Callable[..., Gem], tmp_path: Path
) -> None:
    prompts = prompts_of_one_beginning()
    gem, plain = opened(), opened(prefix_cache_bytes=0)
    assert gem.keep_prefixes([p[:110] for p in prompts[:2]] + [prompts[4], prompts[5]], tmp_path,
                             PLENTY) == 2  # fmt: skip
    a, _ = tmp_path.glob("*.safetensors")
    size = a.stat().st_size
    with safe_open(a, "pt") as file:
        assert file.metadata().keys() == {"identity"}
    fresh = opened(batch_tokens=4096)  # another instance of the same checkpoint
    assert fresh is not gem
    fresh.use_prefixes(tmp_path)
    for prompt, reused in zip(prompts[:5], (110, 110, 70, 110, 89), strict=True):
        fresh._engine._prefixes.store.clear()
        [found] = fresh.generate([prompt], max_tokens=6)
        assert found.reused_tokens == reused
        assert found.tokens == plain.generate([prompt], max_tokens=6)[0].tokens
    assert gem.keep_prefixes([prompts[4]], tmp_path, PLENTY) == 1  # the others go
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert gem.keep_prefixes([prompts[0], prompts[4]], tmp_path, size + 99) == 1


def test_a_store_on_disk_takes_what_memory_cannot_hold(
    opened: Callable[..., Gem], tmp_path: Path
) -> None:
    prompts = [p[:100] for p in prompts_of_one_beginning()[:5:4]]
    size = opened()._engine._prefixes.store
    opened().generate([prompts[0]], max_tokens=1)
    gem = opened(prefix_cache_bytes=size.num_bytes, prefix_cache_folder=tmp_path / "store")
    for prompt in prompts * 2:
        [found] = gem.generate([prompt], max_tokens=1)
    assert len(list((tmp_path / "store").glob("*.safetensors"))) == 2
    assert found.reused_tokens == len(prompts[-1]) - 1


@pytest.mark.parametrize("options", [{"prefix_cache_bytes": -1}, {"prefix_cache_disk_bytes": 0.5}])
def test_impossible_bounds_are_refused(gem_folder: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be a number of bytes from 0"):
        gem_rag.load(gem_folder("phi"), **options)


@pytest.mark.filterwarnings("ignore:.*has not been GEM-trained")
def test_a_model_that_keeps_states_reuses_nothing(bos_tokenizer: Any, tmp_path: Path) -> None:
    folder = save_plain(tmp_path / "model", "mamba", bos_tokenizer, state_size=8)
    with gem_rag.load(folder) as gem:
        assert not gem.use_prefixes(tmp_path)
        prompt = prompts_of_one_beginning()[0]
        for _ in range(2):
            assert gem.generate([prompt], max_tokens=1)[0].reused_tokens == 0
        with pytest.raises(InputError, match="more than keys and values of what it has read, so"):
            gem.keep_prefixes([prompt], tmp_path, PLENTY)
