"""`GrammarLoopBreaker`: vLLM's workers end what a text of a grammar repeats without end."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from gem_rag.core.tokenizer import SafeTokenizer
from gem_rag.generation.repetition import LoopBreaker


class GrammarLoopBreaker(AdapterLogitsProcessor):
    """`LoopBreaker` for requests that are held to a grammar, whose mask vLLM applies before.

    Args:
        vllm_config: vLLM's configuration.
        device: Where scores are.
        is_pin_memory: As vLLM passes it.
    """

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._model = vllm_config.model_config

    def is_argmax_invariant(self) -> bool:
        """Whether it never changes the likeliest token, so that vLLM could leave it out."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """What is applied to a request: a function of its tokens and scores, or None."""
        if params.structured_outputs is None:
            return None
        return self._breaker.apply

    @cached_property
    def _breaker(self) -> LoopBreaker:
        tokenizer = SafeTokenizer.from_folder(self._model.model)
        own = self._model.try_get_generation_config().get("eos_token_id")
        ends = {tokenizer.hf_tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        return LoopBreaker(tokenizer, ends - {None}, int(self._model.get_vocab_size()))
