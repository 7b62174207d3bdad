"""The version of the distribution, read by its build and by LangSmith traces."""

__version__ = "0.1.0"
