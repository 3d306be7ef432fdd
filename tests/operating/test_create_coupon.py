"""``create_coupon``: prints what it made, and the same again changes nothing."""

import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from coupons.models import Coupon

pytestmark = pytest.mark.django_db


@pytest.fixture
def create(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> dict[str, Any]:
        call_command("create_coupon", *arguments)
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return run


def test_a_coupon_is_created_open_and_printed(create: Any) -> None:
    printed = create("SUMMER", "--quantity", "100", "--percent", "15", "--cap", "5000", "--valid-days", "7")
    coupon = Coupon.objects.get()
    assert printed == {"couponId": coupon.id, "couponType": "SUMMER"}
    assert (coupon.total_quantity, coupon.discount_type, coupon.discount_value) == (100, "PERCENT", 15)
    assert (coupon.discount_cap, coupon.valid_days, coupon.admission) == (5000, 7, "queue")
    assert coupon.window.refusal(coupon.created_at) is None


def test_the_same_again_changes_nothing(create: Any) -> None:
    arguments = ("SUMMER", "--quantity", "100", "--fixed", "1000", "--opens-at", "2026-01-01T00:00:00+09:00")
    first = create(*arguments)
    before = Coupon.objects.values().get()
    assert create(*arguments) == first
    assert Coupon.objects.values().get() == before


def test_another_coupon_of_that_type_is_refused_with_what_differs(create: Any) -> None:
    create("SUMMER", "--quantity", "100")
    with pytest.raises(CommandError, match=r"differs in name, total_quantity"):
        create("SUMMER", "--quantity", "200", "--name", "Winter")


@pytest.mark.parametrize(
    "arguments",
    [
        ("with space", "--quantity", "1"),
        ("A" * 65, "--quantity", "1"),
        ("A", "--quantity", "0"),
        ("A", "--quantity", "1", "--percent", "101"),
        ("A", "--quantity", "1", "--percent", "10", "--fixed", "10"),
        ("A", "--quantity", "1", "--fixed", "10", "--cap", "5"),
        ("A", "--quantity", "1", "--valid-days", "36501"),
        ("A", "--quantity", "1", "--opens-at", "tomorrow"),
        ("A", "--quantity", "1", "--opens-at", "2026-01-01T00:00:00"),
        ("A", "--quantity", "1", "--opens-at", "2026-01-02T00:00:00Z", "--closes-at", "2026-01-01T00:00:00Z"),
        ("A", "--quantity", str(2**63)),
    ],
)
def test_a_coupon_that_cannot_be_is_refused_in_one_line(arguments: tuple[str, ...], create: Any) -> None:
    with pytest.raises(CommandError) as caught:
        create(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert Coupon.objects.count() == 0
