"""The pages of dead letters: what failed is shown exactly, and letters are closed for a reason by those who may."""

from __future__ import annotations

from datetime import timedelta
from html import escape
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
from tests.redriving.letters import insert_letters

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
    assert messages_of(superuser.get(LIST)) == ["1 of 1 dead letters discarded."]
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


def test_an_action_says_beforehand_what_it_will_do_and_leads_back_to_the_same_list(superuser: Client) -> None:
    letters = [letter_of("monitoring", completed(number)) for number in (1, 2)]
    chosen = {"action": "discard", "_selected_action": [letter.pk for letter in letters]}
    filtered = f"{LIST}?state=open&group=monitoring"
    page = html_of(superuser.post(filtered, chosen))
    assert "Discard 2 dead letters?" in page
    assert "2 of monitoring: " in page
    assert f'action="{escape(filtered)}"' in page
    DeadLetter.objects.filter(pk=letters[0].pk).update(leased_until=Now() + timedelta(minutes=1))
    assert superuser.post(filtered, chosen | {"reason": "a test"})["Location"] == filtered
    assert messages_of(superuser.get(LIST)) == [
        "1 of 2 dead letters discarded. Of the others the state did not allow it."
    ]


def test_all_that_match_are_selected_as_far_as_an_action_takes_them(superuser: Client) -> None:
    insert_letters(501)
    page = html_of(superuser.get(LIST))
    # They are not counted: a number would not be that of the letters that match.
    assert "Select all that match" in page
    assert "10000" not in page
    chosen = {"action": "discard", "_selected_action": [1], "select_across": "1"}
    page = html_of(superuser.post(LIST, chosen))
    assert "Discard 500 dead letters?" in page
    assert "More match: these are the newest of them." in page


def test_too_many_letters_for_a_selection_lead_to_a_filter_for_a_redrive(superuser: Client) -> None:
    insert_letters(500)
    chosen = {"action": "redrive", "_selected_action": [1], "select_across": "1"}
    answer = superuser.post(f"{LIST}?group=monitoring&error=E1&state=open", chosen)
    assert answer["Location"] == "/ops/redrives?group=monitoring&error=E1#new"


def test_the_counts_and_a_letters_page_lead_to_what_can_be_done(superuser: Client, viewer: Client) -> None:
    letter = letter_of("monitoring", completed(1), KeyError())
    assert 'href="/ops/redrives?group=monitoring&amp;error=KeyError#new"' in html_of(superuser.get(LIST))
    assert "Redrive them" not in html_of(viewer.get(LIST))
    assert f'href="{LIST}?q={letter.pk}">Select it in the list' in page_of(superuser, letter)
    DeadLetter.objects.update(closed_at=Now(), outcome="discarded")
    assert "none: it is closed" in page_of(superuser, letter)


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


@pytest.mark.parametrize("text", ["", "x", "1e9", "-1", "9223372036854775808", "1\0"])
def test_a_selected_id_that_is_none_is_a_bad_request(superuser: Client, text: str) -> None:
    letter = letter_of("monitoring", completed(1))
    data = {"action": "discard", "_selected_action": [letter.pk, text], "reason": "none"}
    assert superuser.post(LIST, data).status_code == 400
    assert states() == ["open"]


def test_a_letter_cannot_be_edited_or_deleted(superuser: Client) -> None:
    letter = letter_of("monitoring", completed(1))
    assert superuser.post(f"{LIST}{letter.pk}/change/", {"error_message": "x"}).status_code == 403
    assert superuser.post(f"{LIST}{letter.pk}/delete/", {"post": "yes"}).status_code == 403
    assert DeadLetter.objects.get().error_message == "a fault"
