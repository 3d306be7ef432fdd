"""A story: the scenario of one document, and the scene in which it happens."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from django.db import models

from coupons.controls import coupon_create
from coupons.models import Coupon
from demo.stories.client import Reply, StoryClient
from demo.stories.narration import Narration
from demo.stories.receiver import Receiver
from demo.stories.rows import transaction_of
from demo.stories.topics import OBSERVE_SECONDS, GroupMember, TopicObserver
from devstack import ManagedProcess, wait_until
from kafka_bridge.registry import groups


class StoryFailed(Exception):
    """Something happened otherwise than the document and the contract say."""


class ToldBefore(StoryFailed):
    """The story cannot be told: an earlier run has left its coupons."""


class Role(NamedTuple):
    """A process of the Procfile under a name of its own."""

    role: str
    name: str


def roles(*names: str, issuers: int = 1) -> list[Role]:
    """Return the relay, so many issuers, and the processes ``names`` of the Procfile."""
    numbered = [Role("issuer", f"issuer-{number}") for number in range(1, issuers + 1)]
    return [Role("relay", "relay"), *(numbered if issuers > 1 else [Role("issuer", "issuer")]), *map(_alone, names)]


def _alone(name: str) -> Role:
    return Role(name, name)


@dataclass(frozen=True, slots=True)
class Scene:
    """The running service as a story sees it. ``stack`` is devstack's, None if the services are not devstack's."""

    narration: Narration
    client: StoryClient
    topics: TopicObserver
    receiver: Receiver
    processes: Mapping[str, ManagedProcess]
    log_folder: Path
    stack: str | None
    # Ids of the groups of which a member was named.
    _named_groups: set[str] = field(default_factory=set, init=False)

    def expect(self, holds: object, what: str) -> None:
        """Raise StoryFailed with ``what`` happened unless ``holds`` is true."""
        if not holds:
            raise StoryFailed(what)

    def expect_status(self, reply: Reply, status: int, what: str) -> None:
        """Raise StoryFailed unless a call was answered with this status."""
        self.expect(reply.status == status, f"{what} was answered {reply.status}, not {status}: {reply.text}")

    def expect_one_transaction(self, **rows: models.Model) -> int:
        """Return the number of the transaction that wrote all rows last. Raises StoryFailed if there are several.

        The names of ``rows`` are for the complaint.
        """
        numbers = {name: transaction_of(row) for name, row in rows.items()}
        several = ", ".join(f"{name.replace('_', ' ')} of {number}" for name, number in numbers.items())
        self.expect(len(set(numbers.values())) == 1, f"the rows are of several transactions: {several}")
        return next(iter(numbers.values()))

    def consumer(self, group: str, member: GroupMember) -> str:
        """Return the name of a consumer of a group (a name of the settings); the group's first is explained."""
        group_id = groups()[group].group_id
        explained = group_id in self._named_groups
        self._named_groups.add(group_id)
        return f"consumer {member}" + ("" if explained else f" (a member of the group {group_id}, by its id in Kafka)")

    def logged(self, process: str, *words: str) -> Mapping[str, Any]:
        """Wait for a line of a process's log that has all of ``words``; return its fields, of which one is ``event``.

        Raises TimeoutError after 90 s.
        """
        path = self.log_folder / f"{process}.log"

        def lines() -> list[str]:
            text = path.read_text(errors="replace") if path.exists() else ""
            return [line for line in text.splitlines() if all(word in line for word in words)]

        wait_until(lines, OBSERVE_SECONDS, f"{path} has no line with {', '.join(words)}")
        return _fields(lines()[-1])

    def decided_by(self, request_id: UUID) -> str:
        """Wait until the log of an issuer says that it decided a request, and return its name and pid."""
        names = [name for name in self.processes if name.startswith("issuer")]
        found: list[str] = []

        def look() -> list[str]:
            found[:] = [name for name in names if _decided(self.log_folder / f"{name}.log", str(request_id))]
            return found

        wait_until(look, OBSERVE_SECONDS, f"no issuer logs the decision of request {request_id}")
        return f"{found[0]} (pid {self.processes[found[0]].pid})"


def _decided(path: Path, request_id: str) -> bool:
    if not path.exists():
        return False
    lines = (line for line in path.read_text(errors="replace").splitlines() if request_id in line)
    return any(_fields(line).get("status") in ("SUCCESS", "FAILED") for line in lines)


def _fields(line: str) -> Mapping[str, Any]:
    """Return the fields of a log line; one that is no JSON object is an event without further fields."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"event": line}


class Story(ABC):
    """The scenario of one document, told under its settings."""

    # The number in the file names of the document and its settings.
    number: ClassVar[str]
    roles: ClassVar[Sequence[Role]]

    def settings(self, receiver: Receiver) -> dict[str, str]:
        """Return settings of the processes that are not the document's, such as the addresses of the outside world."""
        return {}

    @abstractmethod
    def tell(self, scene: Scene) -> None:
        """Let happen what the document describes. Raises StoryFailed or TimeoutError at a step that does not happen."""


def make_coupon(coupon_type: str, quantity: int, *, admission: str = "queue", percent: int = 0, won: int = 0) -> Coupon:
    """Create a coupon that is open. Raises ToldBefore if there is one of this type."""
    if Coupon.objects.filter(coupon_type=coupon_type).exists():
        raise ToldBefore(
            f"the database has the coupon {coupon_type} of an earlier run: the story needs an empty database and Redis"
        )
    kind = Coupon.DiscountType.PERCENT if percent else Coupon.DiscountType.FIXED
    return coupon_create(
        actor="demo",
        coupon_type=coupon_type,
        name=f"{percent} % off" if percent else f"{won:,} won off",
        admission=admission,
        total_quantity=quantity,
        discount_type=kind,
        discount_value=percent or won,
    )[0]
