"""Sixty schemas are filled, or refused by name; nothing is cut in silence."""

from __future__ import annotations

import json
import warnings
from typing import Any

import jsonschema
import pytest
from langchain_core.exceptions import OutputParserException
from langchain_gem import ChatGem
from pydantic import BaseModel
from schemas import CLASSES, MCP, OPENAPI

QUESTION = "Describe one."
SCHEMAS: dict[str, Any] = {
    **{kind.__name__: kind for kind in CLASSES},
    **{f"mcp {name}": {**schema, "title": name} for name, schema in MCP.items()},
    **{f"openapi {name}": {**schema, "title": name} for name, schema in OPENAPI.items()},
}


@pytest.fixture(scope="module")
def model() -> ChatGem:
    return ChatGem(max_tokens=400)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_filled_or_refused_by_name(model: ChatGem, name: str) -> None:
    schema = SCHEMAS[name]
    is_class = isinstance(schema, type) and issubclass(schema, BaseModel)
    full = schema.model_json_schema() if is_class else schema
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what no grammar holds
        found = model.with_structured_output(schema, include_raw=True).invoke(QUESTION)
    text = str(found["raw"].content)
    said = found["raw"].response_metadata.get("schema_error", "")
    if not said:
        jsonschema.Draft202012Validator(full).validate(json.loads(text))
    if found["parsing_error"] is None:
        assert not said
        assert isinstance(found["parsed"], schema if is_class else dict)
    else:
        assert isinstance(found["parsing_error"], OutputParserException)
        assert said or is_class, "a JSON schema is all there is to hold"
        assert said in str(found["parsing_error"])
