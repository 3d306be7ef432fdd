"""The page of a request: every step of winners and losers, what is said of an unknown id, and the search by user."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django_redis import get_redis_connection
from pytest_django import Settings
from uuid_utils.compat import uuid7

from common.bigint import MAX_BIGINT
from coupons.models import IssueRequest, Reservation, RolloutChange, UserCoupon
from coupons.redis_queue.queue import QUEUE
from kafka_bridge.models import DeadLetter, OutboxMessage, ProcessedEvent
from tests.support.factories import CouponFactory

from .conftest import Decide, accept, facts, publish_all, states

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("redis_flushed")]


def way(client: Client, request_id: UUID, status: int = 200) -> Any:
    response = client.get(f"/ops/requests/{request_id}")
    assert response.status_code == status, response.content
    return response


def test_a_winner_of_the_gate_shows_every_step(viewer: Client, decide: Decide) -> None:
    coupon = CouponFactory.create(admission="gate", total_quantity=3)
    accepted = accept(coupon, MAX_BIGINT)
    row = OutboxMessage.objects.get(event_id=accepted.request_id)
    page = way(viewer, accepted.request_id)
    assert states(page)["Decided"] == "waiting"
    assert facts(page)["Reserved"]["gate"] == "sequence 1, undecided"

    decide(accepted.request_id, offset=77)
    publish_all()
    result_event = OutboxMessage.objects.get(event_type="coupon.issue.succeeded.v1")
    ProcessedEvent.objects.create(consumer_group="results", event_id=result_event.event_id)
    page = way(viewer, accepted.request_id)
    known = facts(page)
    assert page.context["trace"].problem is None
    assert set(states(page).values()) == {"done", "skipped"}
    assert known["Accepted"]["sequence"] == "1"
    assert known["Accepted"]["source"] == "API"
    assert known["Accepted"]["outbox row"] == str(row.id)
    assert known["Accepted"]["traceparent"] == row.traceparent
    assert known["Reserved"]["gate"] == "sequence 1, confirmed"
    assert (known["Published"]["partition"], known["Published"]["offset"]) == ("3", "77")
    assert (known["Decided"]["result"], known["Decided"]["units left after it"]) == ("SUCCESS", "2")
    assert known["Decided"]["user coupon"].startswith(str(UserCoupon.objects.get().id))
    assert known["Result event"]["outbox row"] == str(result_event.id)
    assert str(MAX_BIGINT) in page.content.decode()
    assert "Cached: SUCCESS." in page.content.decode()


def test_losers_read_why(viewer: Client, decide: Decide) -> None:
    coupon = CouponFactory.create(total_quantity=1)
    winner, again, late = [accept(coupon, user_id).request_id for user_id in (1, 1, 2)]
    decide(winner, again, late)
    for request_id, why in ((again, "its user had the coupon already"), (late, "no unit was left at its turn")):
        page = way(viewer, request_id)
        assert why in page.content.decode()
        assert facts(page)["Decided"]["units left after it"] == "0"
        assert states(page)["Reserved"] == "skipped"


def test_a_loser_who_had_the_coupon_is_led_to_the_request_that_got_it(viewer: Client, decide: Decide) -> None:
    coupon = CouponFactory.create(total_quantity=2)
    winner, again = [accept(coupon, 1).request_id for _ in range(2)]
    decide(winner, again)
    steps = {step.name: step for step in way(viewer, again).context["steps"]}
    (had,) = [fact for fact in steps["Decided"].facts if fact.name == "coupon it had"]
    assert viewer.get(had.address)["Location"] == f"/ops/requests/{winner}"
    assert "coupon it had" not in facts(way(viewer, winner))["Decided"]


def test_a_decided_request_is_shown_after_its_rows_were_pruned(viewer: Client, decide: Decide) -> None:
    accepted = accept(CouponFactory.create(), 1)
    decide(accepted.request_id)
    OutboxMessage.objects.all().delete()
    page = way(viewer, accepted.request_id)
    assert facts(page)["Accepted"]["retention"] == "72 h"
    assert states(page)["Result event"] == "unknown"
    assert facts(page)["Decided"]["result"] == "SUCCESS"


def test_an_id_of_an_idempotency_key_is_told(viewer: Client) -> None:
    accepted = accept(CouponFactory.create(), 1, key="k")
    assert "Idempotency-Key" in facts(way(viewer, accepted.request_id))["Accepted"]["id"]


def test_the_event_of_the_result_is_found_although_the_clock_of_the_issuer_is_behind(
    viewer: Client, decide: Decide
) -> None:
    accepted = accept(CouponFactory.create(), 1)
    decide(accepted.request_id)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE coupons_issuerequest SET processed_at = processed_at + interval '20 s'")
    assert "outbox row" in facts(way(viewer, accepted.request_id))["Result event"]


@pytest.mark.parametrize(
    ("request_id", "said"),
    [
        (uuid7(), "The id was made at 2"),
        (UUID("00000000-0000-8000-8000-000000000001"), "derived from an Idempotency-Key"),
        (uuid4(), "does not make such ids"),
        (UUID("ffffffff-ffff-7fff-bfff-ffffffffffff"), "does not make such ids"),
    ],
)
def test_an_unknown_id_is_a_page_that_says_what_is_known(viewer: Client, request_id: UUID, said: str) -> None:
    text = way(viewer, request_id, 404).content.decode()
    assert said in text
    assert "never accepted" in text
    assert "OUTBOX_RETENTION_HOURS (72 h)" in text


def test_a_redis_that_is_away_is_said_and_the_rest_is_shown(viewer: Client, decide: Decide, settings: Settings) -> None:
    coupon = CouponFactory.create()
    accepted = accept(coupon, 1)
    decide(accepted.request_id)
    settings.CACHES = {
        "default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:9/0"},
    }
    page = way(viewer, accepted.request_id)
    assert facts(page)["Decided"]["result"] == "SUCCESS"
    assert "Redis does not answer" in page.content.decode()
    page = viewer.get("/ops/requests", {"user": "1"})
    assert "Redis does not answer" in page.content.decode()
    assert [row.user_id for row in page.context["found"].coupons] == [1]


def test_a_request_of_the_redis_queue_shows_its_place(viewer: Client) -> None:
    RolloutChange.objects.create(flag=RolloutChange.ALL_COUPONS, percent=100)
    coupon = CouponFactory.create(admission="gate")
    first, second = [accept(coupon, user_id).request_id for user_id in (1, 2)]
    assert get_redis_connection("default").llen(QUEUE) == 2
    known = facts(way(viewer, second))["Through the Redis queue"]
    assert (known["before it"], known["in the queue"]) == ("1", "2")
    assert facts(way(viewer, first))["Through the Redis queue"]["before it"] == "0"


def test_a_user_leads_to_the_requests_of_winners_and_losers(viewer: Client, decide: Decide) -> None:
    coupons = CouponFactory.create_batch(7, total_quantity=1)
    for coupon in coupons[:-1]:
        decide(accept(coupon, 2).request_id)
    asked = [accept(coupon, 1).request_id for coupon in coupons]
    for request_id in asked:
        decide(request_id)
    undecided = accept(CouponFactory.create(admission="reserve"), 1)
    found = viewer.get("/ops/requests", {"q": "1"}).context["found"]
    assert [row.request_id for row in found.recent] == asked[-2:0:-1]
    assert {row.reason for row in found.recent} == {"SOLD_OUT"}
    assert [row.coupon_id for row in found.coupons] == [coupons[-1].id]
    assert [row.request_id for row in found.undecided] == [undecided.request_id]

    (won,) = found.coupons
    page = viewer.get(f"/ops/requests/of-coupon/{won.id}")
    assert page["Location"] == f"/ops/requests/{asked[-1]}"
    OutboxMessage.objects.all().delete()
    assert "Its request is not found" in viewer.get(f"/ops/requests/of-coupon/{won.id}").content.decode()
    assert viewer.get(f"/ops/requests/of-coupon/{MAX_BIGINT}").status_code == 404
    assert viewer.get(f"/ops/requests/of-coupon/{'9' * 30}").status_code == 404

    of_one = viewer.get("/ops/requests", {"user": "1", "coupon_type": coupons[3].coupon_type}).context["found"]
    assert [row.request_id for row in of_one.recent] == [asked[3]]
    assert not of_one.coupons


def test_the_search_understands_ids_and_says_what_it_understands(viewer: Client) -> None:
    request_id = uuid7()
    assert (
        viewer.get("/ops/requests", {"q": f" {str(request_id).upper()} "})["Location"] == f"/ops/requests/{request_id}"
    )
    assert viewer.get("/ops/requests", {"q": str(MAX_BIGINT)}).context["user_id"] == MAX_BIGINT
    for text in ("0", "-1", "x", "\0", "9" * 19, "9" * 5000, "٣", "'; DROP TABLE--"):
        page = viewer.get("/ops/requests", {"q": text})
        assert (page.status_code, "Search by a request id" in page.content.decode()) == (200, True), text
    assert viewer.get("/ops/requests").status_code == 200


def test_a_dead_letter_is_found_by_its_position_if_its_id_is_unreadable(viewer: Client, decide: Decide) -> None:
    accepted = accept(CouponFactory.create(), 1)
    decide(accepted.request_id, value=b"{", offset=5)
    letter = DeadLetter.objects.get()
    DeadLetter.objects.update(event_id=None)
    page = way(viewer, accepted.request_id)
    assert f"/admin/kafka_bridge/deadletter/{letter.id}/change/" in page.content.decode()
    assert IssueRequest.objects.get().reason == "ERROR"
    assert page.context["trace"].problem.cause == "dead-letter"


def test_only_staff_with_the_permission_see_the_pages(client: Client, transactional_db: None) -> None:
    addresses = ["/ops/requests", f"/ops/requests/{uuid7()}", "/ops/orders/1", "/ops/requests/of-coupon/1"]
    for address in addresses:
        assert client.get(address)["Location"].startswith("/admin/login/"), address
    client.force_login(User.objects.create_user("sam", is_staff=True))
    for address in addresses:
        assert client.get(address).status_code == 403, address
        assert client.post(address).status_code == 405, address


def test_a_reservation_names_its_admission(viewer: Client) -> None:
    accepted = accept(CouponFactory.create(admission="reserve"), 1)
    assert Reservation.objects.exists()
    assert facts(way(viewer, accepted.request_id))["Reserved"]["unit"] == "counted in the coupon's reserved"
