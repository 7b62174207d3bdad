"""What Prometheus is told of the embeddings route, beside vLLM's own metrics at /metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "gem_rag:embedding_requests", "Embedding requests that ended, by HTTP status.", ["status"]
)
PROMPT_TOKENS = Counter(
    "gem_rag:embedding_prompt_tokens", "Tokens of the inputs that were embedded."
)
WAITING = Gauge("gem_rag:embedding_rows_waiting", "Inputs that wait to be embedded.")
SECONDS = Histogram(
    "gem_rag:embedding_request_seconds",
    "Seconds from a parsed request to its response.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
CANCELLED = "cancelled"


class Outcome:
    """How a request ended; `status` is set before it does."""

    status: int | str = CANCELLED


@contextmanager
def observed() -> Iterator[Outcome]:
    """Count a request, and its time, when it ends."""
    outcome, start = Outcome(), time.perf_counter()
    try:
        yield outcome
    finally:
        REQUESTS.labels(str(outcome.status)).inc()
        SECONDS.observe(time.perf_counter() - start)
