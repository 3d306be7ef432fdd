"""Who may do what, at every address of the project: a viewer, a shopper and a stranger change nothing of operators.

The addresses come from the resolver and the actions from the admin: new ones are tried without a change here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from django.urls import include, path
from pytest_django import Settings

from coupons.models import RolloutChange
from couponsite.ops.access import staff_page
from tests.admin.conftest import superuser  # noqa: F401
from tests.admin.test_viewers import a_row_of_each  # noqa: F401

from .addresses import Address, every_address
from .conftest import make_viewer, signed_in

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("a_row_of_each", "redis_flushed")]

SESSION = "sessionid"
# A session changes by its use.
_LEFT_OUT = frozenset({"django_session"})
# What the API writes for a signed-in user, who is a shopper there, whatever else the user is.
_OF_SHOPPERS = frozenset(
    {
        "coupons_coupon", "coupons_reservation", "coupons_usercoupon", "coupons_issuerequest", "orders_order",
        "orders_orderline", "orders_idempotencykey", "kafka_bridge_outboxmessage",
    }
)  # fmt: skip

# What forms of these pages ask for, so that a page that is open to all would do what it is for.
_BODY = {
    "reason": "mine", "topic": "order-completed", "key": "7", "key_format": "text", "rule": "lag", "seconds": "3600",
    "hold": "1", "id": "1", "ids": "1", "group": "issue", "partition": "0", "name": "Mine", "post": "yes",
    "_save": "Save",
}  # fmt: skip

Snapshot = dict[str, str]


def tables() -> Snapshot:
    """A digest of each table."""
    names = sorted(set(connection.introspection.django_table_names(only_existing=True)) - _LEFT_OUT)
    row = "md5((to_jsonb(t) - 'last_login')::text)"
    digest = f"md5(string_agg({row}, '' ORDER BY {row}))"
    with connection.cursor() as cursor:
        cursor.execute(
            " UNION ALL ".join(f"SELECT '{name}', coalesce({digest}, '') FROM {name} AS t" for name in names)
        )
        return dict(cursor.fetchall())


def writes() -> dict[str, int]:
    """How many rows of each table this transaction has written, rolled back ones included: cheap beside a digest."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_xact_user_tables")
        return {name: number for name, number in cursor.fetchall() if name not in _LEFT_OUT}


def body_for(address: Address) -> dict[str, str]:
    if address.model_admin is None:
        return dict(_BODY)
    model = address.model_admin.model
    row = model._default_manager.first()
    of_model = dict.fromkeys([field.name for field in model._meta.fields], "1")
    return of_model | _BODY | ({} if row is None else {"_selected_action": str(row.pk)})


def send(client: Client, method: str, address: Address) -> Any:
    if method == "GET":
        return client.get(address.path)
    if address.path.startswith("/api/"):
        return client.post(address.path, "{}", content_type="application/json")
    return client.post(address.path, body_for(address))


def sign_in(client: Client, user: User | None) -> None:
    """Sign in again if a page has signed out; None is a stranger."""
    if user is not None and not (SESSION in client.cookies and client.cookies[SESSION].value):
        client.force_login(user)


def walk(user: User | None, check: Callable[[str, str, Any], None], *, begin: str = "/") -> list[str]:
    """GET and POST every address that begins with ``begin``, each as ``user``, None is a stranger.

    ``check`` gets method, path and response. Returns the paths. Fails if a table changes by it that is not a shopper's.
    """
    addresses = [address for address in every_address() if address.path.startswith(begin)]
    # One for all, since each makes its own middleware.
    client = Client()
    before = tables()
    for address in addresses:
        for method in ("GET", "POST"):
            sign_in(client, user)
            written = writes()
            response = send(client, method, address)
            check(method, address.path, response)
            if response.streaming:
                response.close()
            changed = {name for name, number in writes().items() if number != written.get(name, 0)}
            if address.path.startswith(("/api/", "/coupons/")):
                changed -= _OF_SHOPPERS
            assert not changed, f"{method} {address.path} wrote to {changed}"
    after = tables()
    assert {name for name in after if after[name] != before[name]} <= _OF_SHOPPERS
    return [address.path for address in addresses]


def is_login(response: Any) -> bool:
    return bool(response.status_code == 302 and response["Location"].startswith("/admin/login/?next="))


def is_of_operators(path: str) -> bool:
    return path.startswith(("/ops/", "/admin/")) and path not in ("/admin/login/", "/admin/logout/")


def check_stranger(method: str, path: str, response: Any) -> None:
    if is_of_operators(path):
        assert is_login(response) or response.status_code == 405, (method, path, response.status_code)


def check_shopper(method: str, path: str, response: Any) -> None:
    if path.startswith("/ops/"):
        assert response.status_code in (403, 405), (method, path, response.status_code)
    elif is_of_operators(path):
        assert is_login(response), (method, path, response.status_code)


def check_viewer(method: str, path: str, response: Any) -> None:
    is_write = path.startswith("/ops/") or path.endswith(("/add/", "/change/", "/delete/"))
    if method == "POST" and is_write and is_of_operators(path):
        assert response.status_code in (403, 405), (path, response.status_code)
    assert response.status_code < 500, (method, path, response.status_code)


def test_a_stranger_is_sent_to_the_login_and_changes_nothing() -> None:
    walked = walk(None, check_stranger)
    # The walk goes through all kinds of addresses.
    assert {"/ops/", "/ops/holds/release", "/admin/coupons/coupon/add/", "/api/v1/orders"} <= set(walked)


def test_a_shopper_is_refused_and_changes_nothing_of_operators() -> None:
    walk(User.objects.create_user("ursula"), check_shopper)


def test_a_viewer_changes_nothing() -> None:
    walk(make_viewer(), check_viewer)


@pytest.mark.usefixtures("superuser")
def test_a_viewer_runs_no_action_of_the_admin() -> None:
    viewer = signed_in(make_viewer())
    request = RequestFactory().get("/")
    request.user = User.objects.get(is_superuser=True)
    before = tables()
    tried = 0
    for address in every_address():
        model_admin = address.model_admin
        if model_admin is None or address.path.count("/") != 4:
            continue
        for action in {*model_admin.get_actions(request), "delete_selected"}:
            viewer.post(address.path, body_for(address) | {"action": action, "index": "0"})
            assert tables() == before, (address.path, action)
            tried += 1
    assert tried >= len(admin.site._registry)


def open_door(request: HttpRequest) -> HttpResponse:
    RolloutChange.objects.create(flag="issue-worker", percent=1)
    return HttpResponse()


@staff_page("kafka_bridge.view_alert")
def half_open_door(request: HttpRequest) -> HttpResponse:
    return open_door(request)


@pytest.mark.parametrize(
    ("door", "walker", "check"),
    [
        (open_door, "stranger", check_stranger), (open_door, "shopper", check_shopper),
        # The permission to see is not the permission to do.
        (half_open_door, "viewer", check_viewer),
    ],
)  # fmt: skip
def test_an_address_that_forgets_its_permission_is_found(
    door: Any, walker: str, check: Callable[[str, str, Any], None], settings: Settings
) -> None:
    urls: Any = ModuleType("urls")
    urls.urlpatterns = [path("ops/", include(([path("door", door)], "doors"))), path("admin/", admin.site.urls)]
    settings.ROOT_URLCONF = urls
    users = {"stranger": None, "shopper": User.objects.create_user("ursula"), "viewer": make_viewer()}
    with pytest.raises(AssertionError, match="/ops/door"):
        walk(users[walker], check, begin="/ops/")
