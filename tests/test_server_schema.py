"""Requests made from the server's own schema get what it promises, and no error of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from serving import MODEL, make_app, make_index

import gem_rag

EXAMPLES = 20  # for each operation


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    with gem_rag.load("gem-tiny") as gem:
        folder = make_index(tmp_path_factory.mktemp("fuzzed"), gem)
        # Few tokens for each, so that many can be tried.
        app = make_app(gem, folder, max_tokens=4, max_inputs=50)
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


def test_no_request_of_the_schema_makes_the_server_fail(schema: schemathesis.BaseSchema) -> None:
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:
        fuzz(operation)


def fuzz(operation: schemathesis.APIOperation) -> None:
    modes = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    cases = st.one_of([operation.as_strategy(mode) for mode in modes])
    names = {"model": st.sampled_from([MODEL, "rag/docs"]), "index": st.just("docs")}

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, known=st.fixed_dictionaries(names))
    def answered_as_promised(case: schemathesis.Case, known: dict[str, str]) -> None:
        if isinstance(case.body, dict):  # of names made up, none is known
            case.body.update({name: known[name] for name in known if name in case.body})
        checks = [not_a_server_error, status_code_conformance, content_type_conformance]
        case.call_and_validate(checks=checks)

    answered_as_promised()
