from __future__ import annotations

import pytest
from django.test import Client

from kafka_bridge.models import HeldMessage


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_a_probe_may_call_us_by_any_name(db: None, client: Client, path: str) -> None:
    response = client.get(path, HTTP_HOST="10.0.0.7:8000")
    assert response.status_code == 200
    assert response.json()["status"] == "ok"


def test_liveness_asks_no_service(client: Client) -> None:
    # Without the db fixture a query is an error.
    assert client.get("/livez").status_code == 200


def test_readiness_reports_its_servers(db: None, client: Client) -> None:
    expected = {"status": "ok", "postgresql": "ok", "redis": "ok", "outbox": "ok"}
    assert client.get("/readyz").json() == expected
    HeldMessage.objects.create(message_id=1, shard=0, topic="order-completed", reason="topic")
    assert client.get("/readyz").json() == expected | {"outbox": "holding"}


def test_a_probe_is_only_read(db: None, client: Client) -> None:
    answer = client.post("/livez")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD"
