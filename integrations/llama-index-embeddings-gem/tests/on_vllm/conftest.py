"""Tests on vLLM, which need a pytest process of their own: pytest tests/on_vllm."""

pytest_plugins = ["on_vllm"]
