"""The version of the distribution, which LangSmith's traces show."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("langchain-gem")
