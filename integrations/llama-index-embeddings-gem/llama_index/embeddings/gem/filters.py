"""LlamaIndex's filters as a condition on the metadata of an index's documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from gem_rag import InputError

NODE_ID, NODE_CONTENT, REF_DOC_ID = "_node_id", "_node_content", "ref_doc_id"

Metadata = Mapping[str, Any]
Check = Callable[[Metadata], bool]

# What holds of a field that there is not; LlamaIndex itself has not always thought so.
_OF_NOTHING = (FilterOperator.NE, FilterOperator.NIN, FilterOperator.IS_EMPTY)
_OF_TEXT = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)


def make_condition(
    filters: MetadataFilters | None = None,
    node_ids: Collection[str] | None = None,
    doc_ids: Collection[str] | None = None,
) -> Check | dict[str, Any]:
    """The `where` of a search.

    Args:
        filters: Conditions on nodes' metadata, which may be nested; a comparison of values that
            cannot be compared does not hold.
        node_ids: Which nodes; None for all.
        doc_ids: Of which documents; None for all.

    Returns:
        A function of a document's metadata, or nothing where all are wanted.

    Raises:
        InputError: A filter compares text with something else.
    """
    checks: list[Check] = []
    for name, ids in ((NODE_ID, node_ids), (REF_DOC_ID, doc_ids)):
        if ids is not None:
            checks.append(_is_one_of(name, frozenset(ids)))
    if filters is not None and filters.filters:
        checks.append(_compile(filters))
    if not checks:
        return {}
    return lambda metadata: all(check(metadata) for check in checks)


def _is_one_of(name: str, values: frozenset[str]) -> Check:
    return lambda metadata: metadata.get(name) in values


def _compile(filters: MetadataFilters) -> Check:
    checks = [
        _compile(one) if isinstance(one, MetadataFilters) else _compile_one(one)
        for one in filters.filters
    ]
    if filters.condition == FilterCondition.OR:
        return lambda metadata: any(check(metadata) for check in checks)
    if filters.condition == FilterCondition.NOT:
        return lambda metadata: not any(check(metadata) for check in checks)
    return lambda metadata: all(check(metadata) for check in checks)


def _compile_one(one: MetadataFilter) -> Check:
    if one.operator in _OF_TEXT and not isinstance(one.value, str):
        raise InputError(
            f"the filter {one.operator.value!r} of {one.key!r} looks for text, not {one.value!r}"
        )
    # LlamaIndex's own semantics. It looks metadata up by a node's id: here they are given instead.
    holds = cast(
        Check, build_metadata_filter_fn(cast(Any, lambda own: own), MetadataFilters(filters=[one]))
    )

    def check(metadata: Metadata) -> bool:
        if one.key not in metadata and NODE_CONTENT in metadata:  # a list, say, or nothing
            metadata = json.loads(metadata[NODE_CONTENT])["metadata"]
        if metadata.get(one.key) is None:
            return one.operator in _OF_NOTHING
        try:
            return holds(metadata)
        except TypeError:
            return False

    return check
