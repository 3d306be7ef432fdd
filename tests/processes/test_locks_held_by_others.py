"""Another session holds a row, a table or a commit: the web answers in seconds, and only what needs it is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from coupons.models import Coupon, Reservation
from devstack import wait_until
from kafka_bridge.models import OutboxMessage
from tests.processes.conftest import Web
from tests.support.calls import ask, assert_prompt, crowd, is_refused, probed
from tests.support.factories import CouponFactory
from tests.support.threads import lock

pytestmark = pytest.mark.django_db(transaction=True)

# The longest wait for a lock and for the turn to wait, twice.
REFUSED_SECONDS = 8.0
_OUTBOX_ROWS = "LOCK TABLE kafka_bridge_outboxmessage IN ACCESS EXCLUSIVE MODE"


@pytest.mark.parametrize("admission", ["reserve", "gate"])
def test_a_locked_coupon_is_refused_in_seconds_while_others_go_on(web: Web, admission: str) -> None:
    locked, other = CouponFactory.create_batch(2, total_quantity=1000, admission=admission)
    # What both admissions wait for: the row of the coupon, or of one of its users.
    hold = lock("SELECT FROM coupons_coupon WHERE id = %s FOR UPDATE", locked.id)
    if admission == "gate":
        hold = lock("LOCK TABLE coupons_reservation IN SHARE MODE")
    with hold, probed(web.port) as probes, crowd(web.port, locked.coupon_type, clients=40) as refused:
        wait_until(lambda: len(refused) >= 80, 60, "the crowd is not answered")
        if admission == "reserve":
            assert_prompt([ask(web.port, other.coupon_type, user) for user in range(1, 11)], status=202)
    assert_prompt(probes)
    assert all(is_refused(reply) for reply in refused)
    assert max(reply.seconds for reply in refused) < REFUSED_SECONDS
    # Nothing was taken for those who were refused: the same users get in.
    assert not Reservation.objects.filter(coupon_id=locked.id).exists()
    assert ask(web.port, locked.coupon_type, 100_000).status == 202


def test_a_locked_table_is_refused_in_seconds_and_the_gate_gets_back_what_it_gave(web: Web) -> None:
    coupon = CouponFactory.create(total_quantity=3, admission="gate")
    with lock(_OUTBOX_ROWS), probed(web.port) as probes:
        refused = [ask(web.port, coupon.coupon_type, user) for user in (1, 2, 3)]
    assert all(is_refused(reply) for reply in refused)
    assert max(reply.seconds for reply in refused) < REFUSED_SECONDS
    assert "not executed" in refused[0].body["detail"]
    assert_prompt(probes)
    assert [ask(web.port, coupon.coupon_type, user).status for user in (1, 2, 3, 4)] == [202, 202, 202, 409]


def test_a_locked_coupon_table_is_refused_in_seconds_however_many_ask(web: Web) -> None:
    coupon = CouponFactory.create()
    table = lock("LOCK TABLE coupons_coupon IN ACCESS EXCLUSIVE MODE")
    with table, probed(web.port) as probes, ThreadPoolExecutor(60) as pool:
        refused = list(pool.map(lambda user: ask(web.port, coupon.coupon_type, user), range(1, 61)))
    assert_prompt(probes)
    assert all(is_refused(reply) for reply in refused)
    assert max(reply.seconds for reply in refused) < REFUSED_SECONDS


@pytest.fixture
def hanging_commits(transactional_db: None) -> Iterator[Callable[[], None]]:
    """Commits of outbox rows hang, as they do while a standby is away; calling it lets them through."""
    key = 73_001
    with connection.cursor() as cursor:
        cursor.execute(
            """
            CREATE FUNCTION hang_until_released() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                WHILE NOT pg_try_advisory_xact_lock_shared(73001) LOOP
                    PERFORM pg_sleep(0.05);
                END LOOP;
                RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER hang AFTER INSERT ON kafka_bridge_outboxmessage
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hang_until_released();
            """
        )
    holder = lock("SELECT pg_advisory_xact_lock(%s)", key)
    with holder:
        yield holder.commit
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER hang ON kafka_bridge_outboxmessage; DROP FUNCTION hang_until_released()")


@pytest.mark.parametrize("admission", ["queue", "gate"])
def test_a_commit_that_hangs_is_answered_as_unknown_and_nothing_is_given_back(
    web: Web, hanging_commits: Callable[[], None], admission: str
) -> None:
    coupon: Coupon = CouponFactory.create(total_quantity=5, admission=admission)
    with probed(web.port) as probes:
        unknown = ask(web.port, coupon.coupon_type, 1, key="first")
        assert is_refused(unknown)
        assert "may have been accepted" in unknown.body["detail"]
        assert "Idempotency-Key" in unknown.body["detail"]
        assert 4 < unknown.seconds < REFUSED_SECONDS
        if admission == "gate":
            # The gate keeps what it took: another request of the user is a duplicate.
            assert ask(web.port, coupon.coupon_type, 1).status == 409
    assert_prompt(probes)
    hanging_commits()
    wait_until(OutboxMessage.objects.exists, 10, "PostgreSQL did not commit what it was told to commit")
    repeated = ask(web.port, coupon.coupon_type, 1, key="first")
    assert repeated.status == 202
    assert [str(event_id) for event_id in OutboxMessage.objects.values_list("event_id", flat=True)] == [
        repeated.body["requestId"]
    ]


def test_who_waits_in_line_behind_a_hanging_commit_is_refused_in_a_second(
    web: Web, hanging_commits: Callable[[], None]
) -> None:
    coupon = CouponFactory.create(total_quantity=100)
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda user: ask(web.port, coupon.coupon_type, user), range(1, 21)))
    assert all(is_refused(reply) for reply in replies)
    not_executed = [reply for reply in replies if "not executed" in reply.body["detail"]]
    # Each of the web's two processes has a round under way; who came before it waits in line.
    assert len(not_executed) >= 10
    hanging_commits()
    wait_until(OutboxMessage.objects.exists, 10, "PostgreSQL did not commit what it was told to commit")
    assert OutboxMessage.objects.count() <= len(replies) - len(not_executed)
