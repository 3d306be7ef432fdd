"""Compare the status cache with PostgreSQL.

An entry is written after its terminal row was committed, and that row never changes. So the entries are read first, and
an entry that differs from its row, or has no row, is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from common.processes.lifecycle import StopFlag
from common.redis_client import KeyScan

from ..issuance import status_cache
from ..issuance.status_cache import RequestStatus
from ..models import IssueRequest
from ..selectors import RequestResult, request_results, terminal_status
from .findings import STATUS_UNREADABLE, STATUS_WRONG, Findings

_SCAN_CALLS = 50


class StatusCheck:
    """Compares all entries of the status cache, or with each check a few more."""

    def __init__(self) -> None:
        self._scan = KeyScan(status_cache.KEYS)
        self._repaired: list[UUID] = []

    def check(self, findings: Findings, stop: StopFlag, *, whole: bool, repair: bool) -> None:
        """Compare entries and, with ``repair``, rewrite the wrong ones. Raises RedisError.

        ``whole``: scan all of Redis; otherwise continue the last scan by 50 calls.
        """
        self._repaired = []
        for names in self._scan.step(None if whole else _SCAN_CALLS):
            if stop:
                return
            requests = {name: status_cache.request_of_key(name) for name in names}
            foreign = [name for name, request_id in requests.items() if request_id is None]
            wrong = _wrong([request_id for request_id in requests.values() if request_id is not None], findings)
            findings.add(STATUS_UNREADABLE, *(f"key {name!r}" for name in foreign))
            if repair:
                # Removed first: a wrong entry must not stay because Redis has no room for the right one.
                status_cache.remove_keys([name for name, id_ in requests.items() if id_ is None or id_ in wrong])
                status_cache.write(map(terminal_status, IssueRequest.objects.filter(request_id__in=wrong)))
                self._repaired += wrong

    def check_again(self, findings: Findings) -> None:
        """Compare the entries again that ``check`` has repaired. Raises RedisError."""
        _wrong(self._repaired, findings)


def _wrong(request_ids: Sequence[UUID], findings: Findings) -> list[UUID]:
    """Return the requests whose entries are wrong."""
    entries = status_cache.read_entries(request_ids)
    results = request_results(list(entries))
    wrong = []
    for request_id, entry in entries.items():
        if entry is None:
            findings.add(STATUS_UNREADABLE, f"request {request_id}")
        elif _result(entry) != results.get(request_id):
            findings.add(STATUS_WRONG, f"request {request_id}")
        else:
            continue
        wrong.append(request_id)
    return wrong


def _result(status: RequestStatus) -> RequestResult:
    # Not the times, which a rebuild from the topics may not know.
    return RequestResult(status.coupon_type, status.user_id, status.status, status.reason, status.user_coupon_id)
