"""vLLM's engine arguments, and the models that are refused before any weight is loaded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from gem_rag._utils.suggestions import check_known
from gem_rag.core.precision import has_bfloat16
from gem_rag.errors import GemError, InputError

WORKER_EXTENSION = "gem_rag.engines.vllm.worker.GemWorker"
LOOP_BREAKER = "gem_rag.engines.vllm.loop_breaker:GrammarLoopBreaker"


def engine_config(folder: str, arguments: dict[str, Any]) -> Any:
    """The `VllmConfig` for a checkpoint folder, with the extension that embeds.

    arguments: fields of `vllm.EngineArgs`.

    Raises InputError for an argument vLLM does not have or refuses, and for a model it does not
    know; GemError for one whose attention cannot be replaced.
    """
    from vllm import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    known = [f.name for f in dataclasses.fields(EngineArgs)]
    check_known(arguments, known, "vLLM has no engine argument")
    if "worker_extension_cls" in arguments:
        raise InputError("worker_extension_cls is set by gem-rag: leave it out")
    own: dict[str, Any] = {"model": folder, "worker_extension_cls": WORKER_EXTENSION}
    if not arguments.get("speculative_config"):  # vLLM has no processors of scores beside it
        own["logits_processors"] = [*(arguments.get("logits_processors") or ()), LOOP_BREAKER]
    # One library holds texts to grammars on both engines.
    usual: dict[str, Any] = {
        "disable_log_stats": True,
        "structured_outputs_config": {"backend": "guidance"},
    }
    if current_platform.is_cpu() and not has_bfloat16("cpu"):
        usual["dtype"] = "float32"  # not the checkpoint's, which may be bfloat16
    settings = {**usual, **arguments, **own}
    try:
        config = EngineArgs(**settings).create_engine_config(UsageContext.LLM_CLASS)
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"vLLM cannot run {folder}: {short_reason(error)}") from error
    check_supported(config)
    return config


def check_supported(config: Any) -> None:
    """Raises GemError naming what, in a `VllmConfig`, GEM embeddings cannot be had with."""
    model, parallel = config.model_config, config.parallel_config
    text_config = model.hf_text_config
    reasons = {
        "its layers use multi-head latent attention, which cannot be told who attends to whom": (
            model.use_mla
        ),
        "its layers carry a state past attention (state-space or linear attention), which cannot "
        "be told who attends to whom": (
            model.is_hybrid or model.is_attention_free or model.has_inner_state
        ),
        "it feeds token ids into every layer, and special tokens have none": (
            bool(getattr(text_config, "hidden_size_per_layer_input", None))
        ),
        "it has an encoder": model.is_encoder_decoder,
        "vLLM runs it as a multimodal model": model.is_multimodal_model,
        "vLLM runs it as a pooling model": model.runner_type != "generate",
    }
    settings = {
        "pipeline_parallel_size": parallel.pipeline_parallel_size > 1,
        "data_parallel_size": parallel.data_parallel_size > 1,
        "decode_context_parallel_size": parallel.decode_context_parallel_size > 1,
        "enable_lora": config.lora_config is not None,
        "enable_prompt_embeds": model.enable_prompt_embeds,
    }
    for reason, true in reasons.items():
        if true:
            raise GemError(
                f"{model.architecture} cannot give GEM embeddings on vLLM: {reason}; load it with "
                'engine="transformers"'
            )
    for setting, used in settings.items():
        if used:
            raise GemError(f"GEM embeddings on vLLM do not go with {setting}: leave it out, or use "
                           "a second engine for it")  # fmt: skip


@contextmanager
def run_in_process(chosen: bool) -> Iterator[None]:
    """Lets vLLM be configured and started for this process, where that is chosen.

    Its variable also decides whether a single worker gets a process of its own.
    """
    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    before = os.environ.get(name)
    os.environ[name] = "0" if chosen else "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def short_reason(error: BaseException) -> str:
    """The first sentence of an error of vLLM's that says something, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removeprefix("Value error, ") if lines else repr(error)


def batch_failed(error: BaseException) -> GemError:
    """What to tell those whose rows were in a batch that failed while the engine goes on."""
    reason = short_reason(error)
    if "shutting down" in reason:  # vLLM's answer while it drains
        return shutting_down()
    return GemError(f"vLLM could not embed this batch ({type(error).__name__}: {reason})")


def shutting_down() -> GemError:
    """What to tell those who come, or still wait, while the server ends."""
    return GemError("the server is shutting down: send the request again later")


def engine_died(error: BaseException) -> GemError:
    """What to tell those who wait for an engine that is lost."""
    return GemError(
        f"vLLM's engine has died ({type(error).__name__}: {short_reason(error)}): start it again"
    )
