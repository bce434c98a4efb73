"""Requests made up from the OpenAPI file: whatever comes is answered as the file says, and never by a crash."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sprachbund.serving.openapi import described
from sprachbund.serving.settings import Limits, Settings
from tests.serving.support import read_text, serving, tiny_model


def _model(name: str):
    model = tiny_model(name)
    read_text(model.family)
    return model


@pytest.fixture(scope="module")
def url():
    settings = Settings(port=0, models=("tiny",), limits=Limits(requests_per_minute=1e6))
    with serving(settings, loader=_model) as running:
        yield running.url


CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


SCHEMA = schemathesis.openapi.from_dict(json.loads(described()))
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_every_request_is_answered_as_described(url, operation):
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def check(case):
        case.call_and_validate(base_url=url, checks=CHECKS)

    check()
