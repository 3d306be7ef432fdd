"""The status cache held against PostgreSQL.

An entry is written after its terminal row was committed, and that row never changes: so the entries are read first, and
one that differs from its row, or has none, is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from common.processes.lifecycle import StopFlag
from common.redis_client import KeyScan

from ..issuance import status_cache
from ..issuance.status_cache import RequestStatus
from ..models import IssueRequest
from ..reconciliation.findings import STATUS_UNREADABLE, STATUS_WRONG, Findings
from ..selectors import terminal_status

_SCAN_CALLS = 50


class StatusCheck:
    """Compares all entries, or with each check some more than last time."""

    def __init__(self) -> None:
        self._scan = KeyScan(status_cache.KEYS)
        self._repaired: list[UUID] = []

    def check(self, findings: Findings, stop: StopFlag, *, whole: bool, repair: bool) -> None:
        """Look at entries and, to repair, write those anew that are wrong. Raises RedisError."""
        self._repaired = []
        for names in self._scan.step(None if whole else _SCAN_CALLS):
            if stop:
                return
            requests = {name: status_cache.request_of_key(name) for name in names}
            foreign = [name for name, request_id in requests.items() if request_id is None]
            wrong, rows = _wrong([request_id for request_id in requests.values() if request_id is not None], findings)
            findings.add(STATUS_UNREADABLE, *(f"key {name!r}" for name in foreign))
            if repair:
                # Where there is no room for the right one, the wrong one is gone all the same.
                status_cache.remove_keys([name for name, id_ in requests.items() if id_ is None or id_ in wrong])
                status_cache.write(rows[request_id] for request_id in wrong if request_id in rows)
                self._repaired += wrong

    def check_again(self, findings: Findings) -> None:
        """Look once more at what was repaired. Raises RedisError."""
        _wrong(self._repaired, findings)


def _wrong(request_ids: Sequence[UUID], findings: Findings) -> tuple[list[UUID], dict[UUID, RequestStatus]]:
    """(requests whose entries are wrong, the terminal statuses of all that have one)."""
    entries = status_cache.read_entries(request_ids)
    rows = {row.request_id: terminal_status(row) for row in IssueRequest.objects.filter(request_id__in=list(entries))}
    wrong = []
    for request_id, entry in entries.items():
        if entry is None:
            findings.add(STATUS_UNREADABLE, f"request {request_id}")
        elif request_id not in rows or _result(entry) != _result(rows[request_id]):
            findings.add(STATUS_WRONG, f"request {request_id}")
        else:
            continue
        wrong.append(request_id)
    return wrong, rows


def _result(status: RequestStatus) -> tuple[object, ...]:
    # Not the times, which a rebuild from the topics may not know.
    return status.coupon_type, status.user_id, status.status, status.reason, status.user_coupon_id
