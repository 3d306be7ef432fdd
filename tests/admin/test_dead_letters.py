"""The pages of dead letters: what failed is shown exactly, and letters are closed for a reason by those who may."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db.models.functions import Now
from django.test import Client

from kafka_bridge.models import DeadLetter, OperatorAction, ProcessedEvent
from kafka_bridge.redriving.stored_messages import letter_message
from tests.admin.pages import html_of, messages_of, rows_of
from tests.effects.cast import completed
from tests.redriving.cast import letter_of

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/kafka_bridge/deadletter/"


def page_of(client: Client, letter: DeadLetter) -> str:
    return html_of(client.get(f"{LIST}{letter.pk}/change/"))


def act(client: Client, action: str, *letters: DeadLetter, **fields: Any) -> Any:
    data = {"action": action, "_selected_action": [letter.pk for letter in letters], **fields}
    return client.post(LIST, data)


def states() -> list[str]:
    return [letter.state for letter in DeadLetter.objects.order_by("id")]


@pytest.fixture
def clerk() -> Client:
    """The browser of a staff user who sees dead letters and may do nothing with them."""
    user = User.objects.create_user("carla", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_deadletter"))
    client = Client()
    client.force_login(user)
    return client


def test_ids_of_64_bits_are_shown_exactly(superuser: Client) -> None:
    letter = letter_of("monitoring", completed(9_007_199_254_740_993, userId=9_223_372_036_854_775_807))
    page = page_of(superuser, letter)
    assert "&quot;orderId&quot;: 9007199254740993," in page
    assert "&quot;userId&quot;: 9223372036854775807," in page


def test_bytes_that_are_no_text_are_shown_in_hex(superuser: Client) -> None:
    letter = letter_of("monitoring", completed(1))
    DeadLetter.objects.update(payload=b"\xff\x00{")
    page = page_of(superuser, letter)
    assert "hex ff007b" in page
    assert "not JSON" in page


def test_the_traceback_of_the_error_is_kept(superuser: Client) -> None:
    try:
        raise ValueError("of the handler")
    except ValueError as error:
        letter = letter_of("monitoring", completed(1), error)
    assert letter.traceback.startswith("Traceback (most recent call last)")
    assert letter.traceback.endswith("ValueError: of the handler\n")
    assert "ValueError: of the handler" in page_of(superuser, letter)


def test_open_letters_are_counted_by_error_above_the_list(superuser: Client) -> None:
    for order_id in range(3):
        letter_of("monitoring", completed(order_id), ValueError())
    letter_of("monitoring", completed(3), KeyError())
    DeadLetter.objects.filter(pk=letter_of("ranking", completed(4)).pk).update(closed_at=Now(), outcome="replayed")
    page = html_of(superuser.get(LIST))
    assert "4 dead letters are open:" in page
    assert "?state=open&amp;group=monitoring&amp;error=ValueError" in page
    found = superuser.get(LIST, {"state": "open", "group": "monitoring", "error": "KeyError"})
    assert [row.error_class for row in rows_of(found)] == ["KeyError"]


def test_a_letter_is_discarded_for_a_reason(superuser: Client) -> None:
    letter, other = letter_of("monitoring", completed(1)), letter_of("issue", completed(2))
    assert 'name="reason"' in html_of(act(superuser, "discard", letter))
    assert "Enter a reason" in html_of(act(superuser, "discard", letter, reason=" "))
    assert states() == ["open", "open"]
    answer = act(superuser, "discard", letter, reason="a test order")
    assert (answer.status_code, answer.url) == (303, LIST)
    assert messages_of(superuser.get(LIST)) == ["1 of 1 dead letters discarded; the others were not open."]
    assert states() == ["discarded", "open"]
    action = OperatorAction.objects.get()
    assert (action.actor, action.action, action.subject, action.reason) == (
        "olga", "dead_letter.discard", f"dead letter {letter.pk}", "a test order",
    )  # fmt: skip
    assert action.before == {"state": "open", "replays": 0, "message": str(letter)}
    # Reading the topic again must not have the effect.
    assert ProcessedEvent.objects.get().event_id == letter_message(letter).inbox_id
    act(superuser, "discard", letter, reason="again")
    assert OperatorAction.objects.count() == 1
    assert other.pk


def test_a_letter_is_released_from_quarantine_for_a_reason(superuser: Client) -> None:
    letter, other = letter_of("monitoring", completed(1)), letter_of("monitoring", completed(2))
    DeadLetter.objects.filter(pk=letter.pk).update(replays=3)
    assert states() == ["quarantined", "open"]
    act(superuser, "release", letter, other, reason="corrected")
    assert states() == ["open", "open"]
    assert OperatorAction.objects.get().action == "dead_letter.release"


@pytest.mark.parametrize("as_whom", ["viewer", "clerk"])
@pytest.mark.parametrize("action", ["discard", "release"])
def test_without_the_permission_there_is_no_action(as_whom: str, action: str, request: pytest.FixtureRequest) -> None:
    client: Client = request.getfixturevalue(as_whom)
    letter = letter_of("monitoring", completed(1))
    DeadLetter.objects.update(replays=3)
    assert "Discard: close" not in html_of(client.get(LIST))
    assert act(client, action, letter, reason="none of theirs").status_code == 403
    assert (states(), OperatorAction.objects.count()) == (["quarantined"], 0)


def test_a_letter_cannot_be_edited_or_deleted(superuser: Client) -> None:
    letter = letter_of("monitoring", completed(1))
    assert superuser.post(f"{LIST}{letter.pk}/change/", {"error_message": "x"}).status_code == 403
    assert superuser.post(f"{LIST}{letter.pk}/delete/", {"post": "yes"}).status_code == 403
    assert DeadLetter.objects.get().error_message == "a fault"
