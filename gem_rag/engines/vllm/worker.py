"""The extension of vLLM's workers: what `collective_rpc` calls between engine steps.

Every tensor-parallel worker has it, and all compute the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gem_rag.core.checkpoint import open_checkpoint
from gem_rag.engines.vllm.cpu_generators import make_rewindable
from gem_rag.engines.vllm.rpc import PlainRow, deserialize_rows
from gem_rag.errors import GemError, InputError

logger = logging.getLogger(__name__)


class GemWorker:
    """Methods that vLLM adds to its worker class (`worker_extension_cls`).

    A failure is an answer, {"error": ...}: an exception would leave the workers out of step.
    """

    vllm_config: Any  # these three are the worker's own
    model_runner: Any
    get_model: Callable[[], Any]
    _gem_encoder: Any = None

    def gem_load(self, folder: str, k: int) -> dict[str, Any]:
        """Make this worker's model an embedder too; the fields of `rpc.WorkerCapabilities`.

        folder: the checkpoint that the engine runs.
        k: special tokens in a group; the checkpoint's own, where it is GEM-trained.
        """
        from gem_rag.engines.vllm.vllm_encoder import VllmEncoder

        try:
            checkpoint = open_checkpoint(folder).with_k(k)
            encoder = VllmEncoder(self.get_model(), self.vllm_config, checkpoint)
        except GemError as error:
            return {"error": str(error), "input": isinstance(error, InputError)}
        self._gem_encoder = encoder
        make_rewindable(self.model_runner)
        return {
            "hidden": encoder.hidden,
            "max_text_tokens": encoder.max_text_tokens,
            "max_step_tokens": encoder.max_step_tokens,
            "free_bytes": encoder.free_bytes(),
            "bytes_per_token": encoder.bytes_per_token(),
        }

    def gem_embed(self, rows: Sequence[PlainRow]) -> dict[str, Any]:
        """Unit vectors, one for each span of the rows: {"vectors": float32 bytes, "shape": ...}."""
        batch = deserialize_rows(rows)
        try:
            vectors = self._gem_encoder.embed(batch)
        except GemError as error:
            return {"error": str(error)}
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            tokens = sum(len(row.text) for row in batch)
            return {
                "error": f"a batch of {tokens} tokens does not fit into the memory that vLLM left "
                "free: lower gpu_memory_utilization, or batch_tokens"
            }
        except Exception as error:
            logger.exception("an embedding batch failed")
            return {"error": f"vLLM could not embed this batch ({type(error).__name__}: {error})"}
        return {"vectors": vectors.tobytes(), "shape": list(vectors.shape)}
