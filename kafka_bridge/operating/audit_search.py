"""Pages of the audit trail, newest first, by actor, action and subject. Each page reads a bounded number of rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from django.db import connection
from django.db.models import QuerySet

from common.postgres.distinct import distinct_sql

from ..models import OperatorAction

PAGE_ROWS = 50
# Of the first given filter so many rows are looked at for the others: no index has two of them.
MOST_READ = 2_000
_MOST_NAMES = 200

_ACTIONS = distinct_sql(OperatorAction._meta.db_table, "action", most=_MOST_NAMES)


class AuditPage(NamedTuple):
    """``older``: the id to continue below, None at the end. ``is_partial``: rows were left unread, see ``older``."""

    actions: list[OperatorAction]
    older: int | None
    is_partial: bool = False


def find_actions(*, subject: str = "", actor: str = "", action: str = "", below: int | None = None) -> AuditPage:
    """Return a page of the actions with these values, an empty one stands for any; only ids less than ``below``."""
    given = {name: value for name, value in (("subject", subject), ("actor", actor), ("action", action)) if value}
    if any("\0" in value for value in given.values()):
        return AuditPage([], None)
    if not given:
        return _page(_newest(OperatorAction.objects.all(), below)[: PAGE_ROWS + 1])
    # The first of them is the most selective.
    first, *others = given
    rows = _newest(OperatorAction.objects.filter(**{first: given[first]}), below)
    if not others:
        return _page(rows[: PAGE_ROWS + 1])
    values = {**given, "below": below, "most_read": MOST_READ, "rows": PAGE_ROWS + 1}
    page = _page(OperatorAction.objects.raw(_of_several(first, others), values))
    if page.older is None:
        last_read = rows.values_list("id", flat=True)[MOST_READ - 1 : MOST_READ].first()
        return page._replace(older=last_read, is_partial=last_read is not None)
    return page


def _newest(rows: QuerySet[OperatorAction], below: int | None) -> QuerySet[OperatorAction]:
    return (rows if below is None else rows.filter(id__lt=below)).order_by("-id")


def _of_several(first: str, others: Iterable[str]) -> str:
    """Return the query by several of our columns. The inner LIMIT keeps PostgreSQL from reading the whole table."""
    return f"""
        SELECT * FROM (
            SELECT * FROM {OperatorAction._meta.db_table}
            WHERE {first} = %({first})s AND (%(below)s::bigint IS NULL OR id < %(below)s)
            ORDER BY id DESC LIMIT %(most_read)s
        ) AS read
        WHERE {" AND ".join(f"{name} = %({name})s" for name in others)}
        ORDER BY id DESC LIMIT %(rows)s
    """


def _page(rows: Iterable[OperatorAction]) -> AuditPage:
    found = list(rows)
    return AuditPage(found[:PAGE_ROWS], found[PAGE_ROWS - 1].id if len(found) > PAGE_ROWS else None)


def known_actions() -> list[str]:
    """Return the actions that the trail has, by name, at most 200."""
    with connection.cursor() as cursor:
        cursor.execute(_ACTIONS)
        return [name for (name,) in cursor.fetchall()]
