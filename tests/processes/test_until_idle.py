"""``--until-idle``: the work that is there is done, then the process ends by itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from coupons.issuance.accept import request_accept
from coupons.models import Coupon, IssueRequest
from tests.support.published import unpublished_rows
from tests.support.service import environment, run_command

pytestmark = pytest.mark.django_db(transaction=True)


def accept(coupons: Sequence[Coupon], users: int) -> None:
    for user_id in range(1, users + 1):
        coupon = coupons[user_id % len(coupons)]
        request_accept(id_or_type=coupon.id, user_id=user_id, caller_id=user_id)


def test_relay_and_issuer_end_once_everything_is_answered(topics: str, coupons: list[Coupon]) -> None:
    accept(coupons, 600)
    env = environment()
    relayed = run_command("relay_outbox", "--until-idle", env=env)
    assert (relayed.returncode, unpublished_rows().count()) == (0, 0), relayed.stderr
    consumed = run_command("consume_coupons", "--group", "issue", "--concurrency", "2", "--until-idle", env=env)
    assert (consumed.returncode, IssueRequest.objects.count()) == (0, 600), consumed.stderr
    # The relay published them after they were accepted, and the issuer started after that.
    for request in IssueRequest.objects.all():
        assert request.requested_at is not None
        assert request.published_at is not None
        assert request.requested_at < request.published_at < request.processed_at
    assert IssueRequest.objects.filter(status="SUCCESS").count() == sum(coupon.total_quantity for coupon in coupons)


def test_relay_and_issuer_end_when_there_is_nothing_to_do(topics: str) -> None:
    for command in (("relay_outbox",), ("consume_coupons", "--group", "issue")):
        ended = run_command(*command, "--until-idle", env=environment())
        assert ended.returncode == 0, ended.stderr
