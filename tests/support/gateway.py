"""Payment providers that misbehave. PAYMENT_GATEWAY can name ``MemoryGateway`` and ``FolderGateway``.

Both keep books of what really moved, once per idempotency key, whatever they answer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from orders.clients.payment import PaymentDeclined, PaymentInDoubt

FOLDER_VARIABLE = "TEST_PAYMENT_FOLDER"


class Killed(BaseException):
    """The process ends here: nothing of ours may catch it."""


class Call(NamedTuple):
    """What the provider was asked; ``kind`` is ``charge`` or ``refund``."""

    kind: str
    order_id: int
    amount: int
    key: str


Move = Callable[[], None]
Answer = Callable[[Call, Move], None]


def approve(call: Call, move: Move) -> None:
    move()


def decline(call: Call, move: Move) -> None:
    raise PaymentDeclined("not enough money")


def time_out(call: Call, move: Move) -> None:
    raise PaymentInDoubt("no answer in time")


def move_and_time_out(call: Call, move: Move) -> None:
    move()
    raise PaymentInDoubt("no answer in time")


def die(call: Call, move: Move) -> None:
    raise Killed


def move_and_die(call: Call, move: Move) -> None:
    move()
    raise Killed


def hang(call: Call, move: Move) -> None:
    time.sleep(60)


def move_and_hang(call: Call, move: Move) -> None:
    move()
    time.sleep(60)


ANSWERS: Mapping[str, Answer] = {
    answer.__name__: answer
    for answer in (approve, decline, time_out, move_and_time_out, die, move_and_die, hang, move_and_hang)
}


class Books(Protocol):
    """Who was asked, and what moved."""

    def note(self, call: Call) -> None:
        """A call came in."""

    def knows(self, call: Call) -> bool:
        """Whether money has moved under the call's key."""

    def move(self, call: Call) -> None:
        """Move the money, unless it has moved under the call's key."""

    def charged(self, order_id: int) -> bool:
        """Whether money of the order was ever taken."""


class MemoryBooks:
    """The books of one process; threads may share them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.moved: dict[tuple[str, str], Call] = {}
        self._lock = threading.Lock()

    def note(self, call: Call) -> None:
        self.calls.append(call)

    def knows(self, call: Call) -> bool:
        return (call.kind, call.key) in self.moved

    def move(self, call: Call) -> None:
        with self._lock:
            first = self.moved.setdefault((call.kind, call.key), call)
        assert first == call, f"one key, two wishes: {first} and {call}"

    def charged(self, order_id: int) -> bool:
        return self._sum("charge", order_id) > 0

    def kept(self, order_id: int) -> int:
        """What was taken for the order and not given back, in won."""
        return self._sum("charge", order_id) - self._sum("refund", order_id)

    def asked(self, kind: str, order_id: int) -> list[Call]:
        """The calls of a kind for an order, in their order."""
        return [call for call in self.calls if (call.kind, call.order_id) == (kind, order_id)]

    def charges(self, order_id: int) -> int:
        """How often money was taken for the order."""
        return sum((call.kind, call.order_id) == ("charge", order_id) for call in self.moved.values())

    def _sum(self, kind: str, order_id: int) -> int:
        calls = list(self.moved.values())
        return sum(call.amount for call in calls if (call.kind, call.order_id) == (kind, order_id))


class FolderBooks:
    """Books that processes share: a file per movement, made only once, and one that lists the calls."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, call: Call) -> None:
        with (self._folder / "calls").open("a") as file:
            file.write(f"{call.kind} {call.key}\n")

    def knows(self, call: Call) -> bool:
        return self._path(call).exists()

    def move(self, call: Call) -> None:
        try:
            with self._path(call).open("x") as file:
                file.write(str(call.amount))
        except FileExistsError:
            return

    def charged(self, order_id: int) -> bool:
        return (self._folder / f"charge-{order_id}").exists()

    def calls(self) -> list[str]:
        """``charge 7``, ``refund 7-refund``..., in their order."""
        path = self._folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def movements(self) -> set[str]:
        """``charge-7``, ``refund-7-refund``..."""
        return {path.name for path in self._folder.iterdir() if "-" in path.name}

    def _path(self, call: Call) -> Path:
        return self._folder / f"{call.kind}-{call.key}"


class Provider:
    """Answers as it is told. What moved under a key is neither declined nor moved again under it."""

    def __init__(self, books: Books, answer: Answer) -> None:
        self._books = books
        self._answer = answer

    def charge(self, *, order_id: int, amount: int, idempotency_key: str) -> None:
        self._handle(Call("charge", order_id, amount, idempotency_key))

    def refund(self, *, order_id: int, amount: int, idempotency_key: str) -> None:
        self._handle(Call("refund", order_id, amount, idempotency_key))

    def _handle(self, call: Call) -> None:
        self._books.note(call)
        if call.kind == "refund" and not self._books.charged(call.order_id):
            raise PaymentDeclined("nothing was taken for this order")
        try:
            self._answer(call, lambda: self._books.move(call))
        except PaymentDeclined:
            if not self._books.knows(call):
                raise


class Memory:
    """What ``MemoryGateway`` answers and keeps, for tests to look at and to set."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Empty books, and everything is approved."""
        self.books = MemoryBooks()
        self.answer: Answer = approve


memory = Memory()


class MemoryGateway(Provider):
    """A provider in the memory of this process."""

    def __init__(self) -> None:
        super().__init__(memory.books, memory.answer)


class FolderGateway(Provider):
    """A provider in the folder that TEST_PAYMENT_FOLDER names, for processes; its file ``answer`` says how."""

    def __init__(self) -> None:
        folder = Path(os.environ[FOLDER_VARIABLE])
        path = folder / "answer"
        super().__init__(FolderBooks(folder), ANSWERS[path.read_text() if path.exists() else "approve"])
