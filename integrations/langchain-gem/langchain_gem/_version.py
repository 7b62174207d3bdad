"""The distribution's version, which its build and the adapters' traces read."""

__version__ = "0.1.0"
