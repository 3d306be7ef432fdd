"""``create_coupon``: prints what it made, and the same again changes nothing."""

import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from coupons.models import Coupon
from couponsite.auth.tokens import issue_access_token
from tests.support.names import REFUSED_NAMES, TAKEN_NAMES

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


@pytest.mark.parametrize("name", TAKEN_NAMES)
def test_a_name_of_any_language_is_taken_as_it_is(name: str, create: Any) -> None:
    create("A", "--quantity", "1", "--name", name)
    assert Coupon.objects.get().name == name


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_a_name_that_cannot_be_shown_is_refused_in_one_line(name: str, create: Any) -> None:
    with pytest.raises(CommandError, match=r"^--name must ") as caught:
        create("A", "--quantity", "1", "--name", name)
    assert str(caught.value).isprintable()
    assert not Coupon.objects.exists()


@pytest.mark.parametrize("option", ["--opens-at", "--closes-at"])
@pytest.mark.parametrize(
    "time",
    [
        "0001-01-01T00:00:00+09:00", "9999-12-31T23:59:59-05:00", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00+00:01",
        "9999-01-01T00:00:00Z", "9998-12-31T23:59:59-00:01",
    ],
)  # fmt: skip
def test_a_time_outside_1970_to_9998_is_refused_by_its_option(option: str, time: str, create: Any) -> None:
    with pytest.raises(CommandError, match=f"argument {option}: .* must be in the years 1970 to 9998"):
        create("A", "--quantity", "1", option, time)
    assert not Coupon.objects.exists()


def test_the_first_and_the_last_time_are_taken(create: Any) -> None:
    first, last = "1970-01-01T09:00:00+09:00", "9998-12-31T23:59:59.999999Z"
    create("A", "--quantity", "1", "--opens-at", first, "--closes-at", last)
    assert Client().get("/").status_code == 200
    [shown] = (
        Client().get("/api/v1/coupons", headers={"Authorization": f"Bearer {issue_access_token(7)}"}).json()["results"]
    )
    assert (shown["opensAt"], shown["closesAt"]) == ("1970-01-01T00:00:00Z", last)


def test_a_window_that_ends_before_it_begins_is_refused_in_plain_words(create: Any) -> None:
    # It opens now, unless told otherwise.
    with pytest.raises(CommandError, match=r"would close before it opens \(without an opening time, it opens now\)"):
        create("A", "--quantity", "1", "--closes-at", "2020-01-01T00:00:00Z")
    assert not Coupon.objects.exists()


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
