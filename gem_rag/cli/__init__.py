"""The command line. Knows nothing that the library does not offer."""

from gem_rag.cli.app import app, main

__all__ = ["app", "main"]
