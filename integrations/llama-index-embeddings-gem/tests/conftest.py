"""Fixtures come from the module shared by both LlamaIndex distributions."""

pytest_plugins = ["models"]
