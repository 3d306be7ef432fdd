"""A story: the scenario of one document, and the scene in which it happens."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple
from uuid import UUID

from coupons.controls import coupon_create
from coupons.models import Coupon
from demo.stories.client import Reply, StoryClient
from demo.stories.narration import Narration
from demo.stories.receiver import Receiver
from demo.stories.topics import OBSERVE_SECONDS, TopicObserver
from devstack import ManagedProcess, wait_until


class StoryFailed(Exception):
    """Something happened otherwise than the document and the contract say."""


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

    def expect(self, holds: object, what: str) -> None:
        """Raise StoryFailed with ``what`` happened unless ``holds`` is true."""
        if not holds:
            raise StoryFailed(what)

    def expect_status(self, reply: Reply, status: int, what: str) -> None:
        """Raise StoryFailed unless a call was answered with this status."""
        self.expect(reply.status == status, f"{what} was answered {reply.status}, not {status}: {reply.text}")

    def logged(self, process: str, *words: str) -> str:
        """Wait for a line of a process's log that has all of ``words``; return it. Raises TimeoutError after 90 s."""
        path = self.log_folder / f"{process}.log"

        def lines() -> list[str]:
            text = path.read_text(errors="replace") if path.exists() else ""
            return [line for line in text.splitlines() if all(word in line for word in words)]

        wait_until(lines, OBSERVE_SECONDS, f"{path} has no line with {', '.join(words)}")
        return lines()[-1]

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
    return any(_field(line, "status") in ("SUCCESS", "FAILED") for line in lines)


def _field(line: str, name: str) -> object:
    try:
        return json.loads(line).get(name)
    except (ValueError, AttributeError):
        return None


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
    """Create a coupon that is open, or return it as it is if an earlier run has created it."""
    existing = Coupon.objects.filter(coupon_type=coupon_type).first()
    if existing is not None:
        return existing
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
