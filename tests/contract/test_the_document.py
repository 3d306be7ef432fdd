"""The OpenAPI document is complete: nothing that a client can call or be told is missing from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import StringIO

import pytest
from django.core.management import call_command
from drf_spectacular.management.commands.spectacular import SchemaGenerationError
from rest_framework.schemas.generators import EndpointEnumerator

from common.api.errors import DomainError
from common.api.problems import KINDS, Kind
from coupons.api.views import IssueRequestView
from couponsite.health import PROBES

from .document import Call, Document, assert_fits, calls, codes, resolved


def test_it_is_valid_and_made_without_warnings() -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", stdout=StringIO())


def shape(path: str) -> str:
    return re.sub(r"{.*?}", "{}", path)


def test_every_address_is_in_it(document: Document) -> None:
    endpoints = {(shape(path), method.lower()) for path, method, _ in EndpointEnumerator().get_api_endpoints()}
    described = {(shape(call.path), call.method) for call in calls(document)}
    assert ("/coupons/{}/issue-async", "post") in endpoints
    assert described == endpoints | {(path, "get") for path in PROBES}


def test_every_call_says_what_it_does(document: Document) -> None:
    for call in calls(document):
        assert call.operation["summary"]
        assert call.responses[call.success]["description"]


@pytest.mark.parametrize("redis", ["ok", "read_only", "unavailable"])
def test_readiness_may_report_every_state_of_redis(document: Document, redis: str) -> None:
    readiness = Call(document, "/readyz", "get")
    schema = readiness.responses[200]["content"]["application/json"]["schema"]
    assert_fits(schema, {"status": "ok", "postgresql": "ok", "redis": redis, "outbox": "ok"})


def test_a_view_without_description_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(IssueRequestView.get, "operation")
    with pytest.raises(SchemaGenerationError):
        call_command("spectacular", "--fail-on-warn", stdout=StringIO(), stderr=StringIO())


def test_operation_ids_are_unique(document: Document) -> None:
    names = [call.operation["operationId"] for call in calls(document)]
    assert len(names) == len(set(names))


def test_links_lead_somewhere(document: Document) -> None:
    names = {call.operation["operationId"] for call in calls(document)}
    linked = {
        link["operationId"]
        for call in calls(document)
        for response in call.responses.values()
        for link in response.get("links", {}).values()
    }
    assert linked == {"issueRequest", "order", "orderPay", "orderCancel"} <= names


def domain_errors() -> Iterator[type[DomainError]]:
    errors: list[type[DomainError]] = [DomainError]
    for error in errors:
        yield error
        errors += error.__subclasses__()


def test_every_code_is_told_of_somewhere(document: Document) -> None:
    # An internal error is no answer that anybody is promised.
    assert codes(document) == {*KINDS} - {"error"} | {error.code for error in domain_errors()}


def test_a_code_has_one_status_and_one_title_whoever_refuses() -> None:
    kinds = dict(KINDS)
    for error in domain_errors():
        assert kinds.setdefault(error.code, Kind(error.status, error.title)) == (error.status, error.title)


def test_nobody_is_promised_an_internal_error(document: Document) -> None:
    assert not [call for call in calls(document) if 500 in call.responses]


def test_every_call_of_the_api_tells_of_what_any_call_may_answer(document: Document) -> None:
    for call in calls(document):
        if call.path.startswith("/api/v1/"):
            assert {400, 405, 413, 503} <= call.responses.keys()
            assert (415 in call.responses) == (call.method == "post")


def test_who_may_enter_is_told(document: Document) -> None:
    assert document["components"]["securitySchemes"].keys() == {"bearer", "session"}
    for call in calls(document):
        public = not re.match(r"/api/v1/(?!auth/)|/coupons/", call.path)
        assert call.operation["security"] == ([] if public else [{"bearer": []}, {"session": []}])
        assert public or 401 in call.responses


def test_the_server_is_the_one_that_gives_the_document_out(document: Document) -> None:
    assert [server["url"] for server in document["servers"]] == ["/"]


def test_every_component_is_used(document: Document) -> None:
    used = set(re.findall(r'"#/components/(\w+/[\w-]+)"', json.dumps(document)))
    used |= {
        f"securitySchemes/{name}" for call in calls(document) for one in call.operation["security"] for name in one
    }
    assert used == {f"{kind}/{name}" for kind, named in document["components"].items() for name in named}


def test_whoever_asks_for_a_coupon_may_send_a_key_and_a_trace(document: Document) -> None:
    for call in calls(document):
        if call.success == 202:
            headers = {one["name"] for one in call.operation["parameters"] if one["in"] == "header"}
            assert headers == {"Idempotency-Key", "traceparent"}
            assert call.responses[202]["headers"].keys() == {"Location", "Retry-After"}


def test_whoever_places_or_pays_an_order_may_send_a_key(document: Document) -> None:
    headers = {
        call.operation["operationId"]: {one["name"] for one in call.operation["parameters"] if one["in"] == "header"}
        for call in calls(document)
        if call.path.startswith("/api/v1/orders") and call.method == "post"
    }
    assert headers == {
        "orderCreate": {"Idempotency-Key"},
        "orderPay": {"Idempotency-Key", "traceparent"},
        "orderCancel": {"traceparent"},
    }


def test_lists_come_in_pages(document: Document) -> None:
    for call in calls(document):
        if call.operation["operationId"].endswith("List"):
            limits = {one["name"]: one["schema"] for one in call.operation["parameters"] if one["in"] == "query"}
            assert limits["limit"] == {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}
            assert limits["cursor"] == {"type": "string"}


def test_ids_in_paths_are_positive_64_bit_integers(document: Document) -> None:
    for call in calls(document):
        for one in call.operation.get("parameters", []):
            if one["in"] == "path" and one["name"] != "requestId":
                assert (one["schema"]["minimum"], one["schema"]["maximum"]) == (1, 2**63 - 1)


def test_every_body_and_answer_has_examples_that_fit(document: Document) -> None:
    for call in calls(document):
        described = [*call.responses.values(), call.operation.get("requestBody", {})]
        media = [content for one in described for content in one.get("content", {}).values()]
        for content in media:
            if call.path.startswith(("/api/v1/", "/coupons/")):
                assert content["examples"]
            for example in content.get("examples", {}).values():
                assert_fits(resolved(document, content["schema"]), example["value"])


@pytest.mark.parametrize("place", ["path", "query", "header"])
def test_the_examples_of_parameters_fit(document: Document, place: str) -> None:
    for call in calls(document):
        schemas = {one["name"]: one["schema"] for one in call.operation.get("parameters", [])}
        for name, value in call.parameters(place).items():
            assert_fits(schemas[name], value)
