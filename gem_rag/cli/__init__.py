"""The command line."""

from gem_rag.cli.app import app, main

__all__ = ["app", "main"]
