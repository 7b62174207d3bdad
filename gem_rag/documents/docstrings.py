"""Docstrings of Python source, read without importing it."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Docstring:
    """The docstring of one module, class or function.

    Attributes:
        name: Dotted name inside the module; empty for the module itself.
        signature: As written, for example "(path, *, mode='r')"; empty if there is none.
        text: The docstring without its indentation.
        line: The line of the definition, from 1.
    """

    name: str
    signature: str
    text: str
    line: int


def docstrings(source: str) -> Iterator[Docstring]:
    """All docstrings of a module, in order.

    Raises:
        SyntaxError: The source is not Python.
        ValueError: It holds null bytes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        tree = ast.parse(source)
    yield from _walk(tree, "")


def _walk(node: ast.AST, prefix: str) -> Iterator[Docstring]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text and text.strip():
            line = getattr(node, "lineno", 1)
            yield Docstring(prefix, _signature(node), inspect.cleandoc(text), line)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{prefix}.{child.name}" if prefix else child.name)
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _walk(child, prefix)


def _signature(node: ast.AST) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"({ast.unparse(node.args)})"
    return ""
