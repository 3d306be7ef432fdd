"""The pages of redrives: an operator creates one, sees its preview, and follows it; a viewer sees and does nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kafka_bridge.errors import ReplayPostponed
from kafka_bridge.models import DeadLetter, OperatorAction, Redrive, RedriveItem
from kafka_bridge.redriving.redrives import redrive_pause
from kafka_bridge.registry import ReplayedMessage, groups
from tests.admin.pages import html_of, messages_of
from tests.effects.cast import many_completed
from tests.ops.conftest import make_viewer, signed_in
from tests.redriving.cast import changed
from tests.redriving.letters import create, dead_letters, insert_letters, start, step, to_the_end

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def operator(db: None) -> Client:
    """A viewer who may redrive."""
    user = make_viewer("olga")
    user.user_permissions.add(Permission.objects.get(codename="redrive_dead_letters"))
    return signed_in(user)


def post(client: Client, path: str, **values: Any) -> Any:
    return client.post(f"/ops/redrives/{path}", values)


def messages_after(client: Client, redrive: Redrive, action: str) -> list[str]:
    return messages_of(client.get(post(client, f"{redrive.pk}/{action}", reason="now")["Location"]))


def new(client: Client, **values: Any) -> Any:
    return post(client, "create", **{"name": "June", "reason": "mended", "rate": "50", **values})


def test_an_operator_creates_a_redrive_of_all_letters_that_match_and_follows_it(operator: Client) -> None:
    dead_letters("monitoring", many_completed([1, 2]))
    dead_letters("notification", many_completed([3]))
    response = new(operator, group="monitoring")
    redrive = Redrive.objects.get()
    assert (response.status_code, response["Location"]) == (303, f"/ops/redrives/{redrive.pk}")
    assert (redrive.total, redrive.actor, redrive.reason) == (2, "olga", "mended")
    assert "the housekeeper makes it" in html_of(operator.get(response["Location"]))
    step()
    page = html_of(operator.get(response["Location"]))
    assert "would be applied: 2 handled" in page
    assert post(operator, f"{redrive.pk}/start", reason="now").status_code == 303
    to_the_end(redrive)
    page = html_of(operator.get(response["Location"]))
    assert '<span class="state is-quiet">done</span>' in page
    assert "June" in html_of(operator.get("/ops/redrives"))
    assert list(OperatorAction.objects.order_by("id").values_list("action", "actor", "reason")) == [
        ("redrive.create", "olga", "mended"),
        ("redrive.start", "olga", "now"),
    ]


def test_an_operator_redrives_selected_letters(operator: Client) -> None:
    first, _, third = dead_letters("monitoring", many_completed([1, 2, 3]))
    page = html_of(operator.get(f"/ops/redrives?ids={first},{third}"))
    assert "of 2 selected letters" in page
    new(operator, ids=f"{first},{third}")
    assert list(RedriveItem.objects.values_list("letter_id", flat=True)) == [first, third]


@pytest.mark.parametrize(
    "values",
    [{"reason": ""}, {"rate": "0"}, {"ids": "1,x"}, {"group": "nonsense"}, {"topic": "a\0b"}, {"group": "ranking"}],
)
def test_what_cannot_be_created_is_said_on_the_page(operator: Client, values: dict[str, str]) -> None:
    dead_letters("monitoring", many_completed([1]))
    response = new(operator, **values)
    assert response.status_code == 400
    assert "errorlist" in response.content.decode()
    assert not Redrive.objects.exists()


def test_a_refused_action_is_said_on_the_page_and_changes_nothing(operator: Client) -> None:
    dead_letters("monitoring", many_completed([1]))
    redrive = create()
    for action, values in (("pause", {"reason": "r"}), ("start", {"reason": "r"}), ("cancel", {})):
        response = post(operator, f"{redrive.pk}/{action}", **values)
        assert response.status_code == 303
        assert messages_of(operator.get(response["Location"]))
    redrive.refresh_from_db()
    assert redrive.state == "preparing"
    assert post(operator, f"{redrive.pk}/nonsense", reason="r").status_code == 404


def test_rate_preview_and_cancel_work_from_the_page(operator: Client) -> None:
    dead_letters("monitoring", many_completed([1]))
    redrive = create()
    step()
    post(operator, f"{redrive.pk}/rate", reason="slower", rate="3")
    post(operator, f"{redrive.pk}/preview", reason="look again", accepts_delay="on")
    redrive.refresh_from_db()
    assert (redrive.rate, redrive.wants_preview, redrive.accepts_delay) == (3, True, True)
    post(operator, f"{redrive.pk}/cancel", reason="enough")
    redrive.refresh_from_db()
    assert redrive.state == "cancelled"
    assert DeadLetter.objects.filter(closed_at=None).count() == 1


def test_a_viewer_sees_the_pages_without_forms_and_is_refused_every_action(viewer: Client) -> None:
    dead_letters("monitoring", many_completed([1]))
    redrive = create()
    recorded = OperatorAction.objects.count()
    for path in ("/ops/redrives", f"/ops/redrives/{redrive.pk}"):
        assert "/ops/redrives/" not in "".join(
            part.split(">")[0] for part in html_of(viewer.get(path)).split("<form")[1:]
        )
        assert "Start</button>" not in html_of(viewer.get(path))
    assert new(viewer).status_code == 403
    for action in ("start", "preview", "rate", "pause", "resume", "cancel"):
        assert post(viewer, f"{redrive.pk}/{action}", reason="r").status_code == 403
    assert (Redrive.objects.count(), OperatorAction.objects.count()) == (1, recorded)


def test_the_page_refreshes_its_panels_with_few_queries(operator: Client) -> None:
    dead_letters("monitoring", many_completed(range(1, 31)))
    redrive = create()
    step()
    operator.get(f"/ops/redrives/{redrive.pk}/panels")
    with CaptureQueriesContext(connection) as queries:
        page = html_of(operator.get(f"/ops/redrives/{redrive.pk}/panels"))
    assert len(queries) <= 10
    assert "<html" not in page
    assert operator.get("/ops/redrives/999999").status_code == 404


def test_the_page_says_what_a_running_redrive_waits_for_and_when_a_letter_is_tried_again(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replay(replayed: ReplayedMessage) -> str:
        raise ReplayPostponed("no unit is free", 60.0)

    changed(replace(groups()["monitoring"], replay=replay), monkeypatch)
    (letter,) = dead_letters("monitoring", many_completed([1]))
    redrive = start(create())
    step()
    page = html_of(operator.get(f"/ops/redrives/{redrive.pk}"))
    assert f"It waits and goes on by itself: letter {letter}: no unit is free" in page
    (item,) = RedriveItem.objects.all()
    assert f"letter {letter} at" in page
    assert f"{item.due_at:%Y-%m-%d %H:%M:%S}" in page
    redrive_pause(redrive.pk, actor="olga")
    assert "goes on by itself" not in html_of(operator.get(f"/ops/redrives/{redrive.pk}"))


def test_letters_selected_in_the_admin_lead_to_a_new_redrive_of_them(operator: Client, viewer: Client) -> None:
    ids = dead_letters("monitoring", many_completed([1, 2]))
    chosen = {"action": "redrive", "_selected_action": ids}
    response = operator.post("/admin/kafka_bridge/deadletter/", chosen)
    assert (response.status_code, response["Location"]) == (303, f"/ops/redrives?ids={ids[0]},{ids[1]}")
    assert viewer.post("/admin/kafka_bridge/deadletter/", chosen).status_code == 403


def test_the_page_offers_what_the_state_allows_and_says_what_is_next(operator: Client) -> None:
    dead_letters("monitoring", many_completed([1]))
    redrive = create()

    def offered() -> set[str]:
        page = html_of(operator.get(f"/ops/redrives/{redrive.pk}"))
        return set(re.findall(rf'formaction="/ops/redrives/{redrive.pk}/(\w+)"', page))

    assert offered() == {"preview", "rate", "cancel"}
    step()
    assert offered() == {"start", "preview", "rate", "cancel"}
    assert messages_after(operator, redrive, "start") == ["Started: at most 1000 letters a second are replayed."]
    assert offered() == {"pause", "rate", "cancel"}
    assert messages_after(operator, redrive, "pause") == ["Paused: within two seconds nothing more is replayed."]
    assert offered() == {"resume", "preview", "rate", "cancel"}
    assert messages_after(operator, redrive, "cancel") == ["Cancelled: letters that were not replayed stay open."]
    assert offered() == set()
    assert "1 letters were not replayed and stay open" in html_of(operator.get(f"/ops/redrives/{redrive.pk}"))


def test_an_end_with_letters_that_fail_again_is_not_shown_as_a_success(operator: Client) -> None:
    insert_letters(2)
    redrive = create()
    step()
    messages_after(operator, redrive, "start")
    to_the_end(redrive)
    page = html_of(operator.get(f"/ops/redrives/{redrive.pk}"))
    assert '<span class="state is-critical">done, 2 still fail</span>' in page
    assert "2 letters failed again and stay open" in page
    assert '<td role="cell" data-label="Still fail" class="n">2</td>' in html_of(operator.get("/ops/redrives"))


def test_a_redrive_that_no_process_works_on_says_so(operator: Client) -> None:
    dead_letters("monitoring", many_completed([1]))
    redrive = create()
    address = f"/ops/redrives/{redrive.pk}"
    assert "No process works on it" not in html_of(operator.get(address))
    Redrive.objects.update(created_at=timezone.now() - timedelta(minutes=1))
    assert "No process works on it" in html_of(operator.get(address))
    step()
    assert "No process works on it" not in html_of(operator.get(address))


def test_a_preview_of_calls_says_that_it_does_not_know_their_answers(operator: Client) -> None:
    dead_letters("notification", many_completed([1]))
    redrive = create()
    step()
    assert "whether the receiver accepts it is not known" in html_of(operator.get(f"/ops/redrives/{redrive.pk}"))


def test_the_errors_of_the_open_letters_fill_the_form_of_a_new_redrive(operator: Client) -> None:
    dead_letters("monitoring", many_completed([1, 2]))
    page = html_of(operator.get("/ops/redrives"))
    (address,) = re.findall(r'href="(\?group=monitoring[^"]*)">', page)
    filled = html_of(operator.get(f"/ops/redrives{unescape(address)}"))
    assert '<option value="monitoring" selected>' in filled
    error = DeadLetter.objects.values_list("error_class", flat=True)[0]
    assert f'name="error" value="{error}"' in filled


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"counts": {"failed": "x"}}, "its counts are not numbers by result"),
        ({"counts": []}, "its counts are not numbers by result"),
        ({"state": "foo"}, "there is no state &#x27;foo&#x27;"),
        ({"state": "paused", "waits_for": "stopped by an error: KeyError: a"}, "stopped by an error: KeyError: a"),
    ],
)
def test_a_broken_redrive_is_named_in_the_list_beside_the_others(
    operator: Client, values: dict[str, Any], said: str
) -> None:
    dead_letters("monitoring", many_completed([1]))
    good, bad = create(), create()
    Redrive.objects.filter(pk=bad.pk).update(**values)
    page = operator.get("/ops/redrives").content.decode()
    assert page.count(said) == 1
    assert f"/ops/redrives/{good.pk}" in page
    for path in (f"/ops/redrives/{bad.pk}", f"/ops/redrives/{bad.pk}/panels"):
        response = operator.get(path)
        assert (response.status_code, said in response.content.decode()) == (200, True)


@pytest.mark.parametrize(
    ("column", "junk"),
    [
        ("preview", "x"), ("preview", [1]), ("preview", {"counts": {"applied": "x"}}), ("preview", {"notes": 5}),
        ("selection", {"items": [1]}), ("selection", [1]), ("histogram", [1]), ("histogram", {"a": 1}),
    ],
)  # fmt: skip
def test_the_page_of_a_redrive_leaves_out_what_it_cannot_read_and_names_it(
    operator: Client, column: str, junk: object
) -> None:
    dead_letters("monitoring", many_completed([1]))
    redrive = create()
    step()
    Redrive.objects.filter(pk=redrive.pk).update(**{column: junk})
    page = operator.get(f"/ops/redrives/{redrive.pk}")
    assert (page.status_code, page.context["unread"]) == (200, [column])
    assert f"which is not shown: {column}." in html_of(page)
    assert operator.get("/ops/redrives").status_code == 200
