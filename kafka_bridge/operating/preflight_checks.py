"""The checks before an event that concern messaging, from the brokers to the test alert."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta

from django.conf import settings

from common.postgres.clock import database_time

from ..lag import lag_by_partition
from ..outbox.held_rows import held_by_topic
from ..outbox.state import outbox_state
from ..registry import groups
from .alert_test import last_delivery
from .dead_letter_counts import open_dead_letters
from .group_pauses import pauses
from .kpis import MOST_LAG_MS
from .operator_holds import describe, holds
from .preflight import CheckLine, Verdict, judged, run_check
from .processes import ProcessState, RunningProcess, running_processes

KAFKA_SECONDS = 3.0
MOST_OUTBOX_SECONDS = 10.0
MOST_CLOCK_SECONDS = 5.0
_TEST_ALERT_AGE = timedelta(hours=24)
_MOST_NAMED = 5


def messaging_lines() -> list[CheckLine]:
    """Run the checks, none of which depends on the size of the event."""
    checks = {
        "topics": topic_lines,
        "outbox": outbox_lines,
        "holds": hold_lines,
        "pauses": pause_lines,
        "lag": lag_lines,
        "dead letters": dead_letter_lines,
        "processes": process_lines,
        "clocks": clock_lines,
        "test alert": alert_test_lines,
    }
    return [line for name, check in checks.items() for line in run_check(name, check)]


def topic_lines() -> Iterator[CheckLine]:
    """Judge the number of brokers, and every topic against its route: partitions, replicas, retention, min ISR."""
    # Imported here: the Kafka client costs memory, and most processes run no check.
    from .topic_inspection import inspect_topics

    found = inspect_topics(settings.KAFKA_ROUTES, seconds=KAFKA_SECONDS)
    expected = settings.KAFKA_BROKERS_EXPECTED
    yield judged(
        "brokers",
        found.brokers >= expected,
        f"{found.brokers} of {expected} are there",
        "bring the missing brokers back, or correct KAFKA_BROKERS_EXPECTED",
    )
    if found.missing:
        names = ", ".join(found.missing[:_MOST_NAMED])
        yield CheckLine("topics", Verdict.NO_GO, f"missing: {names}", "python manage.py create_topics")
    for complaint in found.complaints:
        yield CheckLine("topics", Verdict.NO_GO, complaint, "do what the line says; create_topics checks it again")
    if not found.missing and not found.complaints:
        yield CheckLine("topics", Verdict.GO, "all exist as their routes say, and can be written")


def outbox_lines() -> Iterator[CheckLine]:
    """Judge the age of what waits for a relay."""
    state = outbox_state()
    oldest = state.oldest_seconds or 0.0
    yield judged(
        "outbox",
        oldest <= MOST_OUTBOX_SECONDS,
        f"{'at least ' if state.is_more else ''}{state.waiting} rows wait, the oldest for {oldest:.0f} s",
        "start a relay, or look at the alerts: python manage.py relay_outbox",
    )


def hold_lines() -> Iterator[CheckLine]:
    """Judge holds of operators, and rows that are held for another reason."""
    in_force = list(holds()[:_MOST_NAMED])
    for hold in in_force:
        found = f"an operator holds {describe(hold.topic, hold.key)}: {hold.reason}"
        yield CheckLine("holds", Verdict.NO_GO, found, "release the hold")
    rows = held_by_topic()
    for held in rows:
        yield CheckLine(
            "holds",
            Verdict.NO_GO,
            f"{held.number} rows of topic {held.topic} are held ({held.reason}): {held.last_error or 'no error'}",
            "correct what the error names; the relay tries once a second",
        )
    if not in_force and not rows:
        yield CheckLine("holds", Verdict.GO, "nothing is held")


def pause_lines() -> Iterator[CheckLine]:
    """Judge what operators have paused."""
    paused = pauses()
    for pause in paused:
        found = f"{pause} is paused since {pause.created_at:%Y-%m-%d %H:%M} UTC by {pause.actor}: {pause.reason}"
        yield CheckLine("pauses", Verdict.NO_GO, found, "resume it at /ops/groups")
    if not paused:
        yield CheckLine("pauses", Verdict.GO, "nothing is paused")


def lag_lines() -> Iterator[CheckLine]:
    """Judge the lag of the partition that is furthest behind."""
    worst = max(lag_by_partition(), key=lambda lag: lag.milliseconds, default=None)
    limit = settings.ALERT_LAG_MS or MOST_LAG_MS
    if worst is None:
        yield CheckLine("lag", Verdict.NO_GO, "no partition is reported", "start the consumers: see the Procfile")
        return
    yield judged(
        "lag",
        worst.milliseconds <= limit,
        f"{worst.messages} messages, {worst.milliseconds} ms: {worst.place.group} on {worst.place.topic}"
        f"[{worst.place.partition}]",
        "wait until the group has caught up, or start another process of it",
    )


def dead_letter_lines() -> Iterator[CheckLine]:
    """Judge open dead letters: what failed before may fail in the event."""
    letters = open_dead_letters()
    for kind in letters.counts[:_MOST_NAMED]:
        yield CheckLine(
            "dead letters",
            Verdict.NO_GO,
            f"{kind.number} open of group {kind.consumer_group} with {kind.error_class}",
            "remove the cause, then replay or discard them",
        )
    if not letters.counts:
        yield CheckLine("dead letters", Verdict.GO, "none is open")


def process_lines() -> Iterator[CheckLine]:
    """Judge the processes: relay, housekeeper and every group are there, none is silent or hangs, all of a version."""
    running = running_processes()
    yield from role_lines(running, {"relay": "python manage.py relay_outbox", "housekeeper": "see the Procfile"})
    alive = [process for process in running if process.state is ProcessState.ALIVE]
    routes = settings.KAFKA_ROUTES.keys()
    wanted = [group.name for group in groups().values() if routes >= set(group.event_types)]
    consumed = {name for process in alive for name in process.groups}
    for name in wanted:
        if name not in consumed:
            remedy = f"python manage.py consume_coupons --group {name}"
            yield CheckLine("processes", Verdict.NO_GO, f"no running process consumes the group {name}", remedy)
    for process in running:
        if process.state is not ProcessState.ALIVE:
            remedy = "start it again; if it is gone for good: python manage.py forget_processes"
            yield CheckLine("processes", Verdict.NO_GO, f"{process} is {process.state}", remedy)
    versions = sorted({process.version for process in alive})
    yield judged(
        "versions",
        len(versions) <= 1,
        f"{len(alive)} processes, versions {', '.join(versions) or 'none'}",
        "finish the deploy: restart the processes of the older version",
    )


def role_lines(running: Iterable[RunningProcess], remedies: dict[str, str]) -> Iterator[CheckLine]:
    """Yield a line for each role of ``remedies`` (role to command): whether a process of it is alive."""
    alive = {process.role for process in running if process.state is ProcessState.ALIVE}
    for role, remedy in remedies.items():
        found = f"a process {role} runs" if role in alive else f"no process {role} runs"
        yield judged("processes", role in alive, found, f"start it: {remedy}")


def clock_lines() -> Iterator[CheckLine]:
    """Judge the clock of this host against the database's; the clocks of brokers are not readable."""
    before = time.time()
    database = database_time().timestamp()
    after = time.time()
    # The answer was made between the two.
    apart = max(before - database, database - after, 0.0)
    yield judged(
        "clocks",
        apart <= MOST_CLOCK_SECONDS,
        f"this host and PostgreSQL are at most {apart:.1f} s apart",
        "synchronise both hosts: tokens and message times depend on it",
    )


def alert_test_lines() -> Iterator[CheckLine]:
    """Judge whether the webhook has accepted a test alert in the last 24 hours."""
    remedy = "send one: preflight TYPE --test-alert, or the button on the page"
    if not settings.ALERT_WEBHOOK_URL:
        yield CheckLine("test alert", Verdict.NO_GO, "ALERT_WEBHOOK_URL is not set", f"set it, then {remedy}")
        return
    last = last_delivery()
    is_recent = last is not None and database_time() - last <= _TEST_ALERT_AGE
    found = "none was delivered" if last is None else f"the last was delivered at {last:%Y-%m-%d %H:%M} UTC"
    yield judged("test alert", is_recent, found, remedy)
