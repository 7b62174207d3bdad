"""`RayEmbedder`: a corpus that is too large for one machine, embedded by a Ray cluster.

What is embedded is the same as without it, and so is the index: documents are read, split and
committed where the sync runs; only passages travel to the model's copies, and vectors back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.data

from gem_rag.core.arrays import FloatArray
from gem_rag.errors import GemError, InputError
from gem_rag.rag.reading import Reading, embed_readings

if TYPE_CHECKING:
    from gem_rag.model import Gem


class RayEmbedder:
    """Embeds passages by copies of a model on a Ray cluster, or on this machine if there is none.

    Connect to a cluster with `ray.init(address=...)` first. A worker that dies is replaced, and
    what it had is embedded again.

    Args:
        gem: The index's model. Workers load it by its name, so a folder must be where they are.
        workers: How many copies.
        gpus: GPUs of each copy.
        batch: Passages that a copy is given at once.
        shard: Passages that are embedded, and kept on disk, together: what is lost if a sync is
            interrupted. Copies are loaded anew for each.

    Raises:
        InputError: The number of workers is not positive.
    """

    def __init__(
        self,
        gem: Gem,
        workers: int = 2,
        *,
        gpus: float = 0.0,
        batch: int = 256,
        shard: int = 100_000,
    ) -> None:
        if workers < 1:
            raise InputError(f"workers must be at least 1, not {workers}")
        self.shard = shard
        self._gem = gem
        self._workers = workers
        self._gpus = gpus
        self._batch = batch

    def embed(self, readings: Sequence[Reading]) -> FloatArray:
        """Unit vectors of readings' passages, float32 [n, dim].

        Raises:
            GemError: The workers load other weights than the index's, or embedding failed.
        """
        rows = [{"place": place, **one._asdict()} for place, one in enumerate(readings)]
        found = ray.data.from_items(rows).map_batches(
            _Worker,
            fn_constructor_args=(self._gem.name, self._gem.fingerprint, self._gem.dtype),
            batch_size=self._batch,
            compute=ray.data.ActorPoolStrategy(size=self._workers),
            num_gpus=self._gpus or None,
        )
        vectors = np.full((len(readings), self._gem.dim), np.nan, dtype=np.float32)
        try:
            for batch in found.iter_batches(batch_format="numpy"):
                own: Any = batch
                vectors[own["place"]] = np.stack(own["vector"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise GemError(f"the Ray workers could not embed: {reason}") from error
        if np.isnan(vectors).any():
            raise GemError("the Ray workers gave no vectors for some passages: sync again")
        return vectors


class _Worker:
    """A copy of the model, in a process of its own."""

    def __init__(self, model: str, fingerprint: str, dtype: str) -> None:
        import gem_rag

        self._gem = gem_rag.load(model, dtype=dtype)
        if self._gem.fingerprint != fingerprint:
            raise GemError(
                f"the worker's {model!r} has other weights ({self._gem.fingerprint[:12]}) than the "
                f"index's model ({fingerprint[:12]}): put the same ones there"
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        readings = map(Reading, batch["text"], map(int, batch["start"]))
        return {"place": batch["place"], "vector": embed_readings(self._gem, list(readings))}
