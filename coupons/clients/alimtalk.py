"""Notifications of users: sent by AlimTalk, or without ALIMTALK_URL stored in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec
from django.conf import settings
from django.db import connection

from common.http_calls import Endpoint, HttpCall, endpoint
from common.postgres import arrays
from common.processes.lifecycle import StopFlag

# A sale has a notice for each of its requests: the ORM would take most of the time of the group `results`.
_KEEP = """
    INSERT INTO coupons_notification (event_id, user_id, template_code, variables)
    SELECT * FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::jsonb[])
    ON CONFLICT DO NOTHING
"""


class Notice(NamedTuple):
    """A notification of one user.

    ``user_id``: None sends nothing. ``template``: a name in ALIMTALK_TEMPLATES. ``variables``: the values in its text.
    """

    event_id: UUID
    user_id: int | None
    template: str
    variables: Mapping[str, str | int | None]
    traceparent: str = ""

    @property
    def template_code(self) -> str:
        return str(settings.ALIMTALK_TEMPLATES[self.template])


def send(notices: Sequence[Notice], stop: StopFlag) -> Sequence[Exception | None]:
    """Send the notices by AlimTalk, outside of any transaction; return and raise what ``Endpoint.post_all`` does.

    The event id is the idempotency key: a notice sent again reaches its user once. A user's notices are sent in order:
    the failure of a second request never arrives before the coupon of the first. Without ALIMTALK_URL nothing is sent;
    ``keep`` stores the notices.
    """
    if not settings.ALIMTALK_URL:
        return [None] * len(notices)
    addressed = [item for item in notices if item.user_id is not None]
    calls = [HttpCall(item.event_id, _body(item), item.traceparent, ordering_key=item.user_id) for item in addressed]
    errors = iter(_endpoint().post_all(calls, stop))
    return [None if item.user_id is None else next(errors) for item in notices]


def describe(notice: Notice) -> str:
    """Say in one line what ``send`` sends."""
    if notice.user_id is None:
        return "nothing, the user is unknown"
    way = "by AlimTalk" if settings.ALIMTALK_URL else "as a stored row"
    return f"{notice.template_code} to user {notice.user_id} {way}, key {notice.event_id}"


def keep(notices: Sequence[Notice]) -> None:
    """Without ALIMTALK_URL, store the notices in the caller's transaction; with it they are already sent."""
    if settings.ALIMTALK_URL:
        return
    addressed = [item for item in notices if item.user_id is not None]
    with connection.cursor() as cursor:
        cursor.execute(
            _KEEP,
            [
                arrays.uuids([item.event_id for item in addressed]),
                arrays.numbers([item.user_id for item in addressed]),
                arrays.texts([item.template_code for item in addressed]),
                arrays.texts([msgspec.json.encode(dict(item.variables)).decode() for item in addressed]),
            ],
        )


def _body(notice: Notice) -> bytes:
    body = {"templateCode": notice.template_code, "userId": notice.user_id, "variables": dict(notice.variables)}
    return msgspec.json.encode(body)


def _endpoint() -> Endpoint:
    headers = {"Authorization": f"Bearer {settings.ALIMTALK_KEY}"} if settings.ALIMTALK_KEY else {}
    return endpoint("AlimTalk", settings.ALIMTALK_URL, headers=headers, fix_hint="check ALIMTALK_URL and ALIMTALK_KEY")
