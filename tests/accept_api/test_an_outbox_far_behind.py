"""When the outbox is too old or too deep, the accept API refuses requests instead of promising."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from coupons.models import Coupon
from kafka_bridge.models import OutboxMessage
from kafka_bridge.outbox.backpressure import outbox_backpressure
from tests.support.outbox import publish_orders

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh_sample() -> Iterator[None]:
    yield
    OutboxMessage.objects.all().delete()
    outbox_backpressure.sample()


def age_everything(seconds: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE kafka_bridge_outboxmessage SET created_at = created_at - %s * interval '1 second'", [seconds]
        )


@pytest.fixture
def ask(client: Client, make_coupon: Callable[..., Coupon], token: Callable[..., dict[str, str]]) -> Callable[[], Any]:
    path = f"/api/v1/coupons/{make_coupon().id}/issue-async"
    return lambda: client.post(path, content_type="application/json", headers=token(7))


def test_an_outbox_past_its_age_is_a_503_until_it_has_caught_up(ask: Callable[[], Any], settings: Any) -> None:
    settings.OUTBOX_MAX_AGE_SECONDS = 60
    publish_orders([1])
    age_everything(59)
    outbox_backpressure.sample()
    assert ask().status_code == 202

    age_everything(10)
    outbox_backpressure.sample()
    refused = ask()
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert int(refused["Retry-After"]) > 0
    assert "waited" in refused.json()["detail"]

    OutboxMessage.objects.update(published_at="2026-01-01T00:00:00Z")
    outbox_backpressure.sample()
    assert ask().status_code == 202


def test_an_outbox_past_its_depth_is_a_503(ask: Callable[[], Any], settings: Any) -> None:
    settings.OUTBOX_MAX_DEPTH = 3
    publish_orders([1, 2, 3])
    outbox_backpressure.sample()
    assert ask().status_code == 202
    outbox_backpressure.sample()
    assert ask().status_code == 503


def test_rows_published_in_between_do_not_count(ask: Callable[[], Any], settings: Any) -> None:
    settings.OUTBOX_MAX_DEPTH = 3
    publish_orders([1, 2, 3, 4, 5])
    first = OutboxMessage.objects.earliest("id")
    OutboxMessage.objects.exclude(id=first.id).update(published_at="2026-01-01T00:00:00Z")
    outbox_backpressure.sample()
    assert ask().status_code == 202
