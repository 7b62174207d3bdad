"""What Prometheus is told of the server, beside what it is told of the embeddings route."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "gem_rag:requests", "Requests that ended, by route and HTTP status.", ["route", "status"]
)
SECONDS = Histogram(
    "gem_rag:request_seconds",
    "Seconds from a request to the end of its response, by route.",
    ["route"],
    buckets=(0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
RUNNING = Gauge("gem_rag:requests_running", "Requests that are being answered.")
WAITING = Gauge("gem_rag:requests_waiting", "Requests that wait for their turn.")
GENERATING = Gauge("gem_rag:texts_generating", "Texts that the engine generates, or is to.")
PROMPT_TOKENS = Counter("gem_rag:prompt_tokens", "Tokens of the prompts of generated texts.")
REUSED_TOKENS = Counter(
    "gem_rag:reused_prompt_tokens", "Tokens of those prompts that had been read before."
)
GENERATED_TOKENS = Counter("gem_rag:generated_tokens", "Tokens of texts that were generated.")
