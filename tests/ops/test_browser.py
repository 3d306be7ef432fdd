"""The pages in a real browser, through the public port: refresh, accessibility, and life without JavaScript."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from django.contrib.auth.models import Permission, User
from django.db.models.functions import Now
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright
from uuid_utils.compat import uuid7

from coupons.issuance.accept import request_accept
from demo.processes import WebProcess, wait_until_ready
from devstack.ports import free_port
from kafka_bridge.models import Alert, AlertSilence, DeadLetter, HeldMessage, OutboxHold, Redrive
from kafka_bridge.operating.silences import silence_rule, silences
from kafka_bridge.redriving.letter_filter import LetterFilter
from kafka_bridge.redriving.redrives import redrive_create
from kafka_bridge.registry import prefixed
from tests.ops.conftest import make_operator, make_viewer, signed_in
from tests.ops.test_dashboard import make_dead_letter, make_heartbeat
from tests.support.factories import CouponFactory
from tests.support.service import environment

pytestmark = pytest.mark.django_db(transaction=True)

CHROMIUM = shutil.which("chromium")
PAGES = [
    "/ops/", "/ops/alerts", "/ops/groups", "/ops/holds", "/ops/redrives", "/ops/audit", "/ops/processes", "/ops/blocks",
    "/ops/requests?q=7", "/ops/requests/abc", "/ops/docs/", "/ops/docs/admission.md",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a web process with a site behind it, in the environment "staging"."""
    port = free_port()
    env = environment(PORT=str(port), HOST="127.0.0.1", ENVIRONMENT_NAME="staging")
    with WebProcess(env, tmp_path_factory.mktemp("ops") / "web.log") as process:
        wait_until_ready(process, port)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright runs its event loop in this thread, where Django then refuses to use its database.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser, site: str) -> Iterator[BrowserContext]:
    context = chromium.new_context(base_url=site)
    yield context
    context.close()


def sign_in(context: BrowserContext, user: User, site: str) -> None:
    session = signed_in(user).cookies["sessionid"].value
    context.add_cookies([{"name": "sessionid", "value": session, "url": site}])


@pytest.fixture
def page(context: BrowserContext, site: str) -> Page:
    """A page of a viewer."""
    sign_in(context, make_viewer(), site)
    return context.new_page()


def make_alert(rule: str, summary: str = "Something is wrong.", **fields: object) -> Alert:
    return Alert.objects.create(
        id=uuid7(),
        **{"rule": rule, "severity": "warning", "summary": summary, "runbook": "docs/operations.md", **fields},
    )


def fill() -> None:
    """A row in every table of the pages."""
    make_alert("held-order-completed")
    make_alert("lag-issue", severity="critical")
    make_alert("lag-issue", ended_at=Now())
    silence_rule(rule="held", seconds=3600, reason="a broken consumer", actor="olga")
    CouponFactory.create(admission="gate", issued=3)
    CouponFactory.create(paused=True)
    late = {"group": "issue", "topic": "coupon-issue-request", "partition": 0, "lag": 5, "lagMs": 1200, "state": "ok"}
    calm = [
        {"group": group, "topic": "order-cancelled", "partition": partition, "lag": 0, "lagMs": 0, "state": "ok"}
        for group in ("data-platform", "dead-letters", "monitoring", "notification", "ranking")
        for partition in range(5)
    ]
    broken = {"group": "results", "topic": "coupon-issue-response.DLT", "partition": 4, "lag": 7, "lagMs": 90_000}
    make_heartbeat("consumer", partitions=[late, broken | {"state": "retrying"}], version="2")
    make_heartbeat("consumer", partitions=calm, version="2")
    make_heartbeat("web", seen=100, version="1")
    make_dead_letter(1)
    OutboxHold.objects.create(topic="order-completed", key=b"7", reason="a broken consumer", actor="olga")
    HeldMessage.objects.create(message_id=1, shard=1, topic="order-cancelled", reason="topic", last_error="no leader")


def make_request() -> UUID:
    """A request that was accepted, and that no relay has published."""
    return request_accept(id_or_type=CouponFactory.create().pk, user_id=908, caller_id=908).request_id


def test_a_stranger_signs_in_and_lands_on_the_page(context: BrowserContext) -> None:
    User.objects.create_superuser("olga", password="correct horse")
    page = context.new_page()
    page.goto("/ops/alerts")
    assert "/admin/login/?next=/ops/alerts" in page.url
    page.get_by_label("Username").fill("olga")
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Alerts", exact=True)).to_be_visible()
    assert page.url.endswith("/ops/alerts")
    page.get_by_role("button", name="Sign out").click()
    page.goto("/ops/")
    assert "/admin/login/" in page.url


def test_the_environment_is_named_on_our_pages_and_in_the_admin(context: BrowserContext, site: str) -> None:
    sign_in(context, make_operator(), site)
    page = context.new_page()
    for path in ("/ops/", "/admin/"):
        page.goto(path)
        expect(page.get_by_text("staging").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_and_nothing_is_cut_off_on_a_narrow_screen(
    chromium: Browser, site: str, scheme: str
) -> None:
    fill()
    # Only the colours differ in the dark.
    options = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
    context = chromium.new_context(base_url=site, color_scheme="dark" if scheme == "dark" else "light")
    sign_in(context, make_operator(), site)
    page = context.new_page()
    for path in (*PAGES, f"/ops/requests/{make_request()}"):
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(path)
        found = Axe().run(page, options=options)
        assert found.violations_count == 0, f"{path}: {found.generate_report()}"
        page.set_viewport_size({"width": 360, "height": 700})
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider == 0, f"{path} is {wider} pixels wider than the screen"
    # Here rows are cards. One page tells, since all tables are built in the same way.
    found = Axe().run(page, options=options)
    assert found.violations_count == 0, found.generate_report()
    context.close()


# Of each table that scrolls sideways: its label, and how many pixels of it are out of sight.
CUT_OFF = """() => [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)
    .map(box => `${box.getAttribute('aria-labelledby') || box.ariaLabel}: ${box.scrollWidth - box.clientWidth}`)"""


def test_no_table_is_cut_off_at_a_desk_or_in_a_hand(page: Page) -> None:
    fill()
    paths = ["/ops/", "/ops/alerts", "/ops/processes", f"/ops/requests/{make_request()}", "/ops/requests?q=908"]
    for path in paths:
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 800})
            page.goto(path)
            assert page.evaluate(CUT_OFF) == [], f"{path} at {width} pixels"


def make_mender() -> User:
    """A viewer with every permission of the mending side."""
    user = make_operator()
    user.user_permissions.add(*Permission.objects.filter(codename__in=("pause_groups", "redrive_dead_letters")))
    return user


def make_previewed_redrive(reason: str) -> Redrive:
    letter = DeadLetter.objects.values_list("pk", flat=True)[0]
    redrive = redrive_create(name="June", reason=reason, actor="olga", letters=LetterFilter(), rate=50)
    example = [letter, f"handled: COUPON_ISSUED to user 5001 by AlimTalk, key {uuid7()}"]
    Redrive.objects.update(
        state="previewed",
        previewed_at=Now(),
        preview={
            "counts": {"applied": 1, "not_previewed": 1}, "kinds": {"handled": 1}, "notes": [],
            "examples": {"applied": [example], "not_previewed": [[letter, "the 2 s of a preview were over"]]},
        },
    )  # fmt: skip
    return redrive


def test_nothing_of_the_mending_side_is_cut_off_at_a_desk_or_in_a_hand(context: BrowserContext, site: str) -> None:
    fill()
    reason = "the provider has refused the template since the deployment of this morning"
    topic = prefixed("coupon-issue-request")
    limit = {"group": "issue", "topic": topic, "partition": 1, "lag": 441, "lagMs": 79_000}
    waiting = {"state": "poison-limit", "stateSeconds": 2.0, "waitsAt": 1259, "error": "1001 bad messages, " * 5}
    # Seen in an hour: on a slow machine it would be silent, and hold nothing, before the last page is looked at.
    make_heartbeat("consumer", seen=-3600, turned=-3600, partitions=[limit | waiting], version="2")
    redrive = make_previewed_redrive(reason)
    coupon = CouponFactory.create(coupon_type="SUMMER_SALE_OF_THE_YEAR")
    sign_in(context, make_mender(), site)
    page = context.new_page()
    paths = ["/ops/groups", "/ops/holds", "/ops/redrives", f"/ops/redrives/{redrive.pk}", "/ops/audit"]
    for path in (*paths, f"/ops/preflight/{coupon.coupon_type}"):
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 800})
            page.goto(path)
            assert page.evaluate(CUT_OFF) == [], f"{path} at {width} pixels"
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto("/ops/groups")
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=f"{topic}[1]", exact=True))
    # What an incident needs is in view without a click.
    for name in ("Try again now", "Go on: as many dead letters again", "Dead-letter offset 1259"):
        box = row.get_by_role("button", name=name).bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 1280


def test_what_is_typed_into_a_redrives_page_stays_while_its_buttons_follow_the_state(
    context: BrowserContext, site: str
) -> None:
    make_dead_letter(1)
    redrive = make_previewed_redrive("mended")
    sign_in(context, make_mender(), site)
    page = context.new_page()
    page.goto(f"/ops/redrives/{redrive.pk}")
    page.get_by_label("Reason").fill("it is over")
    expect(page.get_by_role("button", name="Start")).to_be_visible()
    Redrive.objects.update(state="paused")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    expect(page.get_by_role("button", name="Start")).to_have_count(0)
    expect(page.get_by_label("Reason")).to_have_value("it is over")
    expect(page.get_by_label("Reason")).to_be_focused()
    page.get_by_role("button", name="Cancel for good").click()
    expect(page.get_by_role("status")).to_contain_text("Cancelled")
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)


def test_the_list_of_dead_letters_fits_a_desk(context: BrowserContext, site: str) -> None:
    make_dead_letter(1, payload=b'{"requestId":"b4971c34-dde3-86a6-8000-000000001414","userId":5140,"couponId":6}')
    sign_in(context, make_mender(), site)
    page = context.new_page()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto("/admin/kafka_bridge/deadletter/")
    row = page.get_by_role("row").filter(has=page.locator("input.action-select"))
    box = row.bounding_box()
    assert box is not None
    assert box["height"] < 150
    last = row.locator("td").last.bounding_box()
    assert last is not None
    assert last["x"] + last["width"] <= 1280


def test_in_a_hand_an_alert_is_a_card_and_still_a_row_of_a_table(page: Page) -> None:
    make_alert("held-order-completed", "A row of order-completed is held.")
    page.set_viewport_size({"width": 360, "height": 700})
    for path in ("/ops/", "/ops/alerts"):
        page.goto(path)
        row = page.get_by_role("table").get_by_role("row", name="held-order-completed")
        for part in (
            row.get_by_role("rowheader", name="held-order-completed"),
            row.get_by_role("cell", name="A row of order-completed is held."),
            row.get_by_role("link", name="What to do about held-order-completed"),
        ):
            part.scroll_into_view_if_needed()
            box = part.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360


def test_in_a_hand_what_is_known_of_a_request_is_seen(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto(f"/ops/requests/{make_request()}")
    box = page.get_by_text("Undecided: its user reads PENDING.").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 360


def test_the_dashboard_refreshes_and_keeps_focus_and_selection(page: Page) -> None:
    make_alert("held-a", "The first row.", started_at=Now() - timedelta(hours=1))
    page.goto("/ops/")
    row = page.get_by_role("row", name="held-a")
    row.get_by_role("link").focus()
    row.get_by_text("The first row.").evaluate("cell => getSelection().selectAllChildren(cell)")
    # The new rows stand before and after the one that is kept.
    make_alert("errors-issue", "The new first row.", severity="critical")
    make_alert("held-b", "The last row.")
    expect(page.get_by_text("The new first row.")).to_be_visible()
    expect(page.get_by_text("The last row.")).to_be_visible()
    assert page.evaluate("getSelection().toString()") == "The first row."
    assert row.get_by_role("link").evaluate("link => link === document.activeElement")
    Alert.objects.filter(rule="errors-issue").update(ended_at=Now())
    expect(page.get_by_text("The new first row.")).to_have_count(0)
    assert row.get_by_role("link").evaluate("link => link === document.activeElement")
    expect(page.get_by_role("row", name="held-")).to_have_count(2)


def refreshes(page: Page) -> list[str]:
    """Collects the refreshes that ``page`` asks for from now on."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/ops/panels") else None)
    return asked


def hide(page: Page, *, hidden: bool) -> None:
    """What a browser does when the reader turns to another tab, or back."""
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


def test_a_hidden_dashboard_asks_for_nothing_until_it_is_seen_again(page: Page) -> None:
    page.clock.install()
    page.goto("/ops/")
    asked = refreshes(page)
    with page.expect_response("**/ops/panels"):
        page.clock.run_for(2000)
    expect(page.get_by_text("Updated at")).to_be_visible()
    hide(page, hidden=True)
    before = len(asked)
    page.clock.run_for(60_000)
    assert len(asked) == before > 0
    assert "Paused while hidden" in page.locator(".refresh-note").inner_text()
    with page.expect_response("**/ops/panels"):
        hide(page, hidden=False)
    expect(page.get_by_text("Updated at")).to_be_visible()


def test_a_reader_can_pause_and_resume_the_refresh(page: Page) -> None:
    page.clock.install()
    page.goto("/ops/")
    asked = refreshes(page)
    page.get_by_role("button", name="Pause").press("Enter")
    expect(page.get_by_text("Paused, updated at")).to_be_visible()
    page.clock.run_for(60_000)
    hide(page, hidden=True)
    hide(page, hidden=False)
    assert asked == []
    with page.expect_response("**/ops/panels"):
        page.get_by_role("button", name="Resume").press("Enter")
    expect(page.get_by_role("button", name="Pause")).to_be_focused()


def abort(route: Route) -> None:
    route.abort()


def fail(route: Route) -> None:
    route.fulfill(status=503, body="")


def test_a_server_that_does_not_answer_is_said_and_asked_again(page: Page) -> None:
    page.clock.install()
    page.goto("/ops/")
    error = page.get_by_role("alert")
    for answer in (abort, fail):
        page.route("**/ops/panels", answer)
        page.clock.run_for(2000)
        expect(error).to_contain_text("The server does not answer; the figures are of")
        page.unroute("**/ops/panels")
        page.clock.run_for(2000)
        expect(error).to_be_hidden()


def test_a_reader_whose_session_ended_is_told_to_sign_in(page: Page, context: BrowserContext) -> None:
    page.clock.install()
    page.goto("/ops/")
    context.clear_cookies()
    page.clock.run_for(2000)
    expect(page.get_by_role("alert")).to_contain_text("You are signed out")


def test_without_javascript_the_pages_show_the_same_and_forms_work(chromium: Browser, site: str) -> None:
    fill()
    context = chromium.new_context(base_url=site, java_script_enabled=False)
    sign_in(context, make_operator(), site)
    page = context.new_page()
    page.goto("/ops/")
    expect(page.get_by_text("Reload the page to refresh it.")).to_be_visible()
    expect(page.get_by_role("button", name="Pause")).to_be_hidden()
    expect(page.get_by_role("row", name="held-order-completed")).to_be_visible()
    make_alert("errors-issue", "A new row.")
    page.reload()
    expect(page.get_by_text("A new row.")).to_be_visible()
    page.goto("/ops/alerts")
    page.get_by_role("link", name="Silence errors-issue").click()
    expect(page.get_by_label("Rule", exact=True)).to_have_value("errors-issue")
    page.get_by_label("For").select_option("4 hours")
    page.get_by_label("Reason", exact=True).fill("known since noon")
    page.get_by_role("button", name="Silence", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("errors-issue is silenced until")
    assert AlertSilence.objects.get(rule="errors-issue").reason == "known since noon"
    page.get_by_label("Reason to end the silence of errors-issue").fill("mended")
    page.get_by_role("button", name="End the silence of errors-issue").click()
    expect(page.get_by_role("status")).to_contain_text("no longer silenced")
    assert not silences().filter(rule="errors-issue").exists()
    context.close()


def test_the_keyboard_reaches_the_content_first(page: Page) -> None:
    page.goto("/ops/alerts")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Rule contains")).to_be_focused()
