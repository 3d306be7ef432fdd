"""What must hold during a run and at its end: logs, processes, results, effects and invariants."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from uuid import UUID

from django.conf import settings

from common.processes.outages import ServiceUnavailable
from coupons.models import IssueRequest
from demo.verification import Undecided
from devstack import ManagedProcess, wait_until
from devstack.procinfo import Identity, group_members, identify, is_alive
from kafka_bridge.client import group_lag
from kafka_bridge.models import DeadLetter
from kafka_bridge.outbox.published import anything_unpublished
from kafka_bridge.registry import groups
from orders.models import Order

from .findings import Findings

# Must not appear in any log: Python tracebacks, also inside JSON, and crash messages of Rust and C programs.
_BAD_LINE = re.compile(
    r"Traceback \(most recent call last\)|Internal Server Error|Fatal Python error|Segmentation fault|panicked at"
    r"|request failed|Unexpected exit|terminate called"
)
# The last line of a traceback, in JSON or as text.
_ERROR_NAME = re.compile(r"(?:\\n|^)([\w.]+(?:Error|Exception|Flood|[A-Z]\w+)): ([^\\\n\"]{0,60})", re.MULTILINE)
_EXCERPT = 3000
_CHUNK = 1000
_DRAIN_SECONDS = 120.0
_POLL_SECONDS = 0.5
_COMMAND_SECONDS = 120.0
_CONVERGE_SECONDS = 90.0


class LogWatch:
    """Searches the logs of ``processes`` for errors, incrementally."""

    def __init__(self, processes: Sequence[ManagedProcess], findings: Findings) -> None:
        self._paths = {process.name: process.log_path for process in processes}
        self._read = dict.fromkeys(self._paths, 0)
        self._findings = findings

    def look(self) -> None:
        """Record every error in the lines written since the last call."""
        for name, path in self._paths.items():
            with path.open("rb") as file:
                file.seek(self._read[name])
                data = file.read()
            complete_lines = data[: data.rfind(b"\n") + 1]
            self._read[name] += len(complete_lines)
            text = complete_lines.decode(errors="replace")
            for match in _BAD_LINE.finditer(text):
                start = text.rfind("\n", 0, match.start()) + 1
                excerpt = text[start : match.start() + _EXCERPT]
                self._findings.add(f"log of {name}: {_summary(match[0], excerpt)}", excerpt, with_recent=True)


def _summary(found: str, excerpt: str) -> str:
    errors = _ERROR_NAME.findall(excerpt.split('"}', 1)[0])
    return ": ".join(errors[-1]) if errors else found


class ProcessWatch:
    """Checks that ``processes`` and their workers of now stay alive."""

    def __init__(self, processes: Sequence[ManagedProcess], findings: Findings) -> None:
        self._members: dict[str, set[Identity]] = {}
        for process in processes:
            leader = identify(process.pid)
            self._members[process.name] = set(group_members(leader)) if leader else set()
        self._findings = findings
        self.is_one_dead = False

    def look(self) -> None:
        """Record every process that has ended, even if it has been replaced."""
        for name, members in self._members.items():
            for member in [member for member in members if not is_alive(member)]:
                members.discard(member)
                self.is_one_dead = True
                self._findings.add(f"{name}: process {member.pid} is dead", with_recent=True)


def await_results(accepted: Collection[UUID], processes: ProcessWatch, findings: Findings) -> None:
    """Wait until every accepted request has a result and everything is published and consumed.

    Returns at once if a process is dead, which is a finding already.
    """
    undecided = Undecided(accepted)
    unfinished: list[str] = []

    def is_drained() -> bool:
        processes.look()
        unfinished.clear()
        if count := undecided.look():
            unfinished.append(f"{count} of {len(accepted)} accepted requests have no result")
        elif anything_unpublished():
            unfinished.append("outbox rows are not published")
        elif lags := _lags():
            unfinished.append(f"messages are not consumed: {lags}")
        return not unfinished or processes.is_one_dead

    try:
        wait_until(is_drained, _DRAIN_SECONDS, "", _POLL_SECONDS)
    except TimeoutError:
        findings.add(f"after {_DRAIN_SECONDS:.0f} s: {'; '.join(unfinished)}")


def _lags() -> dict[str, int | str]:
    lags: dict[str, int | str] = {}
    for name, group in groups().items():
        try:
            if lag := group_lag(group.group_id, group.topics):
                lags[name] = lag
        except ServiceUnavailable as error:
            lags[name] = str(error)
    return lags


def check_innocents(valid: Collection[UUID], paid: Collection[int], findings: Findings) -> None:
    """Record valid requests and paid orders that became dead letters or did not succeed."""
    ids = list(valid)
    for start in range(0, len(ids), _CHUNK):
        failed = IssueRequest.objects.filter(request_id__in=ids[start : start + _CHUNK]).exclude(status="SUCCESS")
        for request_id, reason in failed.values_list("request_id", "reason"):
            findings.add(f"a valid request failed with {reason}", str(request_id))
    events = dict(Order.objects.filter(id__in=list(paid)).values_list("completed_event_id", "id"))
    letters = DeadLetter.objects.filter(event_id__in=[*events, *ids])
    for letter in letters.values("consumer_group", "topic", "partition", "offset", "error_class", "error_message"):
        findings.add(
            f"an innocent message is a dead letter of {letter['consumer_group']}: {letter['error_class']}", str(letter)
        )


def check_invariants(env: Mapping[str, str], findings: Findings) -> None:
    """Run ``reconcile`` until it has no finding, at most 90 s, and then ``check_invariants`` once.

    What was written to Redis last is wrong until the next pass of the running reconciler.
    """
    until = time.monotonic() + _CONVERGE_SECONDS
    while (compared := _command(["reconcile"], env)).returncode != 0:
        if time.monotonic() > until or "Traceback" in compared.stderr:
            findings.add("reconcile: Redis does not converge", f"{compared.stdout}\n{compared.stderr[-_EXCERPT:]}")
            break
        time.sleep(1)
    # Every accepted request is decided by now, so any request still PENDING is overdue after 1 s.
    checked = _command(["check_invariants"], {**env, "REQUEST_DEADLINE_SECONDS": "1"})
    if checked.returncode != 0 or "Traceback" in checked.stderr:
        failed = "\n".join(line for line in checked.stdout.splitlines() if not line.startswith("ok"))
        findings.add(f"check_invariants: exit {checked.returncode}", f"{failed}\n{checked.stderr[-_EXCERPT:]}")


def _command(arguments: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        env={**os.environ, **env},
        cwd=Path(settings.BASE_DIR),
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
        check=False,
    )
