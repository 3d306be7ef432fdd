"""``issue_batch``: every user in the file is asked for once, while the coupon is open."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.management import CommandError, call_command
from hypothesis import given
from hypothesis import strategies as st

from common.processes.lifecycle import StopFlag
from coupons.bulk_issue import run as bulk_run
from coupons.bulk_issue.input_file import UserFile
from coupons.bulk_issue.run import BatchRun
from coupons.controls import Action, coupon_control
from coupons.coupon_cache import coupon_cache
from coupons.issuance import accept_bulk
from coupons.issuance.accept_bulk import BulkIssue
from coupons.models import Coupon, IssueRequest
from devstack import wait_until
from kafka_bridge.models import OutboxMessage
from tests.support.threads import in_another_session

from .conftest import BATCH_ID, MakeCoupon, Users, batch_of, decide_everything, requested, requested_users

pytestmark = pytest.mark.django_db
# For tests with other sessions than the test's own.
committed = pytest.mark.django_db(transaction=True)
PAST, FUTURE = "2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"


def close(coupon: Coupon) -> None:
    coupon_control(action=Action.CLOSE, id_or_type=coupon.id, actor="olga")
    # Otherwise it takes up to a second.
    coupon_cache.clear()


def test_a_request_of_source_batch_is_accepted_for_everybody(users: Users, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    users.write(5, 2**63 - 1, 1)
    printed = users.issue(coupon, "--no-wait", "--id", BATCH_ID)
    assert printed == {
        "couponId": coupon.id, "couponType": coupon.coupon_type, "batchId": BATCH_ID,
        "accepted": 3, "repeated": 0, "invalid": 0, "outcomes": {}, "results": None,
    }  # fmt: skip
    for body in requested():
        assert body["requestId"] == str(batch_of(coupon).request_id(body["userId"]))
        assert (body["couponId"], body["couponType"], body["source"]) == (coupon.id, coupon.coupon_type, "BATCH")
    assert requested_users() == [1, 5, 2**63 - 1]
    decide_everything()
    assert set(IssueRequest.objects.values_list("status", "source")) == {("SUCCESS", "BATCH")}
    assert not users.results_path.exists()


def test_the_same_file_again_asks_for_nobody(users: Users, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    users.write(*range(1, 2501))
    assert users.accept(coupon) == 2500
    assert users.accept(coupon) == 0
    decide_everything()
    # Answered requests leave the outbox in time.
    OutboxMessage.objects.all().delete()
    assert users.accept(coupon) == 0
    assert not OutboxMessage.objects.exists()


def test_without_ids_of_the_batch_the_same_file_again_would_ask_for_everybody(
    users: Users, make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept_bulk.BulkIssue, "request_id", lambda *_: uuid4())
    coupon = make_coupon()
    users.write(1, 2)
    assert (users.accept(coupon), users.accept(coupon)) == (2, 2)


def test_who_is_in_the_file_twice_is_asked_for_once(users: Users, make_coupon: MakeCoupon) -> None:
    users.write(7, 8, 7, *range(1000, 2000), 7)
    assert users.issue(make_coupon(), "--no-wait")["repeated"] == 2
    assert requested_users() == [7, 8, *range(1000, 2000)]


def test_a_longer_file_under_the_same_id_asks_for_the_new_users_only(users: Users, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    users.write(1, 2)
    assert users.accept(coupon, "--id", BATCH_ID) == 2
    users.write(1, 2, 3)
    assert users.accept(coupon, "--id", BATCH_ID) == 1


def test_two_coupons_and_two_batches_of_one_file_do_not_share_requests(users: Users, make_coupon: MakeCoupon) -> None:
    first, second = make_coupon(), make_coupon()
    users.write(1)
    assert [users.accept(first), users.accept(second), users.accept(first, "--id", "again")] == [1, 1, 1]
    assert len({body["requestId"] for body in requested()}) == 3


@given(
    user_ids=st.lists(st.integers(1, 2**63 - 1) | st.sampled_from([1, 2**62 - 1, 2**62, 2**63 - 1]), unique=True),
    batch_id=st.text(min_size=1),
)
def test_every_user_of_a_batch_has_an_id(user_ids: list[int], batch_id: str) -> None:
    batch = BulkIssue(1, "SPRING", batch_id.encode("utf-8", "replace").decode())
    ids = [batch.request_id(user_id) for user_id in user_ids]
    assert len(set(ids)) == len(user_ids)
    assert all((one.version, one.variant) == (8, UUID(int=2 << 62).variant) for one in ids)
    assert not {BulkIssue(2, "SPRING", batch.batch_id).request_id(user_id) for user_id in user_ids} & set(ids)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"opens_at": FUTURE}, "opens at"),
        ({"paused": True}, "paused"),
        ({"closes_at": "2020-01-02T00:00:00Z"}, "closed"),
    ],
)
def test_a_coupon_that_is_not_open_is_told(
    users: Users, make_coupon: MakeCoupon, changes: dict[str, Any], words: str
) -> None:
    users.write(1)
    with pytest.raises(CommandError, match=words):
        users.issue(make_coupon(**changes))
    assert requested() == []


def test_a_coupon_that_does_not_exist_is_told(users: Users) -> None:
    users.write(1)
    with pytest.raises(CommandError, match="There is no coupon 'NOBODYS'"):
        call_command("issue_batch", "NOBODYS", str(users.path))


def test_a_batch_that_was_accepted_in_time_is_answered_after_the_end(users: Users, make_coupon: MakeCoupon) -> None:
    coupon = make_coupon()
    users.write(1, 2)
    users.accept(coupon, "--id", BATCH_ID)
    close(coupon)
    assert users.accept(coupon, "--id", BATCH_ID) == 0
    decide_everything()
    users.issue(coupon, "--id", BATCH_ID)
    assert [row["status"] for row in users.results()] == ["SUCCESS", "SUCCESS"]
    users.write(1, 2, 3)
    with pytest.raises(CommandError, match="closed"):
        users.accept(coupon, "--id", BATCH_ID)
    assert requested_users() == [1, 2]


def test_a_batch_that_is_shut_out_midway_says_where_and_goes_on_when_the_coupon_is_open(
    users: Users, make_coupon: MakeCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_coupon(total_quantity=5000)
    monkeypatch.setattr(bulk_run, "_CHUNK", 10)
    users.write(*range(1, 26))
    users.accept(coupon, "--id", BATCH_ID)
    OutboxMessage.objects.filter(event_id=batch_of(coupon).request_id(15)).delete()
    close(coupon)
    with pytest.raises(CommandError, match=r"closed\. The batch is at line 10 of 25: run the same again"):
        users.accept(coupon, "--id", BATCH_ID)
    coupon_control(action=Action.OPEN, id_or_type=coupon.id, actor="olga")
    coupon_cache.clear()
    assert users.accept(coupon, "--id", BATCH_ID) == 1
    assert requested_users() == list(range(1, 26))


@committed
def test_a_batch_waits_while_the_outbox_is_half_full_and_leaves_the_accept_api_open(
    users: Users, make_coupon: MakeCoupon, settings: Any, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(bulk_run, "_CHUNK", 10)
    monkeypatch.setattr(bulk_run, "_SAMPLE_SECONDS", 0.0)
    settings.OUTBOX_MAX_DEPTH = 100
    users.write(*range(1, 101))
    with UserFile(users.path) as file:
        run = BatchRun(batch_of(make_coupon()), stop=(stop := StopFlag()))
        running = in_another_session(lambda: run.accept(file.lines(), lambda done: None))
        try:
            wait_until(lambda: "the batch waits: More than 50" in caplog.text, 10, "the batch did not wait")
            assert len(requested()) == 60
            assert not running.done()
            OutboxMessage.objects.update(published_at=PAST)
            wait_until(lambda: len(requested()) == 100, 10, "the batch did not go on")
            running.result(10)
        finally:
            stop.request()
