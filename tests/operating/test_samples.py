"""Samples of what the processes count, and how they are folded to minutes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import InternalError, connection, transaction
from django.test import Client
from pytest_django import DjangoAssertNumQueries, Settings

from common.postgres.clock import database_time
from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.issuance.fail_orphaned import OrphanedRequest, fail_orphaned_requests
from coupons.models import Coupon
from devstack.processes import wait_until
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import Sample
from kafka_bridge.operating.housekeeping import housekeep, housekeeping_tasks
from kafka_bridge.operating.samples import Sampler, counts_since, per_minute, samples_prune
from tests.support.messages import message, requests

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]


@pytest.fixture
def sampler() -> Sampler:
    return Sampler(uuid4())


def sample(minutes: float, *, process_id: UUID | None = None, source: str = "issue", **counts: float) -> None:
    """Insert a sample that was taken so many minutes before the begin of this minute."""
    row = Sample.objects.create(process_id=process_id or uuid4(), source=source, seconds=5, counts=counts)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE kafka_bridge_sample"
            " SET taken_at = date_trunc('minute', statement_timestamp()) - %s * interval '1 minute' WHERE id = %s",
            [minutes, row.pk],
        )


def test_what_an_issuer_does_is_sampled(sampler: Sampler, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon(total_quantity=1)
    BatchHandler(ISSUE).handle([*requests(coupon, [1, 2]), message(b"{")], StopFlag())
    sampler.write()
    counts = counts_since(60)["issue"]
    # A dead letter is counted once, and what the rules refuse is no error.
    assert (counts.pop("handled"), counts.pop("dead_letters")) == (3, 1)
    assert 0 < counts["busy_seconds"] < 60
    assert counts["message_seconds"] == pytest.approx(3 * counts["busy_seconds"], rel=1e-3)
    assert "errors" not in counts


def test_a_request_that_ends_with_an_error_and_without_a_dead_letter_is_an_error(
    sampler: Sampler, make_coupon: MakeCoupon
) -> None:
    fail_orphaned_requests(coupon_id=make_coupon().id, orphaned=[OrphanedRequest(uuid4(), 7, None)])
    sampler.write()
    assert counts_since(60)["issue"] == {"errors": 1}


def test_the_accept_api_counts_what_it_took_and_what_it_refused(
    sampler: Sampler, client: Client, make_coupon: MakeCoupon, token: Callable[..., dict[str, str]]
) -> None:
    for coupon in (make_coupon(), make_coupon(), make_coupon(paused=True)):
        client.post(f"/api/v1/coupons/{coupon.id}/issue-async", content_type="application/json", headers=token(7))
    sampler.write()
    assert counts_since(60)["accept"] == {"accepted": 2, "refused": 1}


def test_a_process_that_does_nothing_writes_nothing(
    sampler: Sampler, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(0):
        sampler.write()
    assert counts_since(60) == {}


def test_a_process_writes_one_statement_for_all_its_sources(
    sampler: Sampler, make_coupon: MakeCoupon, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    coupon = make_coupon()
    BatchHandler(ISSUE).handle(requests(coupon, [1]), StopFlag())
    fail_orphaned_requests(coupon_id=coupon.id, orphaned=[OrphanedRequest(uuid4(), 7, None)])
    with django_assert_num_queries(1):
        sampler.write()
    assert counts_since(60)["issue"]["errors"] == 1


def test_what_could_not_be_written_is_in_the_next_sample(sampler: Sampler, make_coupon: MakeCoupon) -> None:
    BatchHandler(ISSUE).handle(requests(make_coupon(), [1]), StopFlag())
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(InternalError):
            sampler.write()
        transaction.set_rollback(True)
    BatchHandler(ISSUE).handle(requests(make_coupon(), [2]), StopFlag())
    sampler.write()
    sampler.write()
    assert counts_since(60)["issue"]["handled"] == 2


def test_samples_of_several_processes_are_added() -> None:
    for process_id in (uuid4(), uuid4()):
        sample(0, process_id=process_id, handled=5, dead_letters=1)
    sample(9, handled=100)
    sample(0, source="relay", published=3)
    assert counts_since(120) == {"issue": {"handled": 10, "dead_letters": 2}, "relay": {"published": 3}}


def test_old_samples_are_folded_to_minutes() -> None:
    for minutes in (70, 69.9, 69.1, 68.5):
        for source in ("issue", "results"):
            sample(minutes, source=source, handled=10, busy_seconds=0.5)
    sample(70, handled=1, dead_letters=1)
    sample(5, handled=1000)
    before = counts_since(7200)
    assert samples_prune(StopFlag()) == 9
    assert Sample.objects.filter(process_id=None).count() == 4
    first, *_ = Sample.objects.filter(process_id=None, source="issue").order_by("taken_at")
    assert (first.counts, first.seconds) == ({"handled": 31, "dead_letters": 1, "busy_seconds": 1.5}, 60)
    assert counts_since(7200) == before
    assert samples_prune(StopFlag()) == 0
    assert counts_since(7200) == before


def test_samples_past_their_retention_are_deleted(settings: Settings) -> None:
    settings.SAMPLE_RETENTION_DAYS = 2
    for days in (1, 3, 4):
        sample(days * 24 * 60, handled=1)
    assert {task.name: task.setting for task in housekeeping_tasks()}["samples"] == "SAMPLE_RETENTION_DAYS"
    # Three were folded, and two of the folded ones deleted.
    assert housekeep(StopFlag()).deleted["samples"] == 5
    assert [row.counts for row in Sample.objects.all()] == [{"handled": 1}]


def test_a_chart_has_a_point_for_every_minute() -> None:
    # The minute must not end within the test.
    wait_until(lambda: database_time().second < 55, 10, "the minute does not end")
    for minutes, handled in ((3, 7), (2.5, 8), (1, 9), (30, 100)):
        sample(minutes, handled=handled)
    sample(1, source="results", handled=1000)
    points = per_minute("issue", 4)
    assert [point.counts.get("handled") for point in points] == [15, None, 9, None]
    begins = [point.minute for point in points]
    assert [(later - earlier).total_seconds() for earlier, later in pairwise(begins)] == [60.0] * 3


def test_the_oldest_sample_to_fold_is_found_by_an_index(sampler: Sampler) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO kafka_bridge_sample (process_id, source, taken_at, seconds, counts)"
            " SELECT CASE WHEN n % 500 = 0 THEN gen_random_uuid() END, 'issue',"
            " statement_timestamp() - n * interval '1 minute', 60,"
            " '{\"handled\": 1}' FROM generate_series(1, 40000) AS n"
        )
        cursor.execute("ANALYZE kafka_bridge_sample")
        plans: list[Any] = []
        for query in (
            "SELECT min(taken_at) FROM kafka_bridge_sample WHERE process_id IS NOT NULL"
            " AND taken_at < statement_timestamp() - interval '1 hour'",
            "SELECT sum((counts->>'handled')::float8) FROM kafka_bridge_sample"
            " WHERE taken_at > statement_timestamp() - interval '5 minutes'",
        ):
            cursor.execute(f"EXPLAIN {query}")
            plans.append("\n".join(line for (line,) in cursor.fetchall()))
    assert "sample_not_folded" in plans[0]
    assert "sample_by_time" in plans[1]
    assert "Seq Scan" not in "".join(plans)
