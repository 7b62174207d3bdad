"""Fixtures come from the module that both LlamaIndex adapters share."""

pytest_plugins = ["models"]
