"""To be run by itself: pytest tests/on_vllm."""

pytest_plugins = ["on_vllm"]
