"""The rules, without I/O: the decisions of a batch, a coupon's window and state, discounts, valid names and times."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal
from uuid import UUID

import msgspec

from common.bigint import MAX_BIGINT

SUCCESS: Final = "SUCCESS"
FAILED: Final = "FAILED"
PENDING: Final = "PENDING"

SOLD_OUT = "SOLD_OUT"
ALREADY_ISSUED = "ALREADY_ISSUED"
NOT_OPEN = "NOT_OPEN"
UNKNOWN_COUPON = "UNKNOWN_COUPON"
ERROR = "ERROR"

# The states of a user's coupon in the table; the API shows one past its expiry as EXPIRED.
COUPON_ISSUED = "ISSUED"
COUPON_HELD = "HELD"
COUPON_USED = "USED"
COUPON_REVOKED = "REVOKED"

# The steps of a user's coupon in an order, and the state after each step.
HELD = "HELD"
USED = "USED"
RELEASED = "RELEASED"
RETURNED_TO_USER = "RETURNED_TO_USER"
RETURNED_TO_POOL = "RETURNED_TO_POOL"
BURNED = "BURNED"
STATUS_AFTER = {
    HELD: COUPON_HELD,
    USED: COUPON_USED,
    RELEASED: COUPON_ISSUED,
    RETURNED_TO_USER: COUPON_ISSUED,
    RETURNED_TO_POOL: COUPON_REVOKED,
    BURNED: COUPON_USED,
}

# Reserved for rehearsals: the users with the last million ids, and coupon types of hidden copies.
FIRST_REHEARSAL_USER = MAX_BIGINT - 999_999
REHEARSAL_PREFIX = "rehearsal-"

_COUPON_TYPE = re.compile(r"[A-Za-z0-9_-]{1,64}")

# The limits of the columns.
MOST_VALID_DAYS = 36_500
MOST_DISCOUNT_WON = 10**15
LONGEST_NAME = 200

# Valid times for input: from EARLIEST on, before TOO_LATE. Outside this range the date does not exist in other time
# zones, in other languages or in date arithmetic.
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
TOO_LATE = datetime(9999, 1, 1, tzinfo=UTC)

# They reverse the surrounding text, on pages and in terminals.
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Letters and symbols that are displayed as blanks.
_FILLERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")


class Claim(msgspec.Struct, frozen=True, gc=False):
    """One request of a batch. ``coupon_id`` None: no such coupon; ``in_window`` False: requested outside its window.

    ``reserved``: a unit of the coupon was reserved for it when it was accepted.
    """

    request_id: UUID
    user_id: int
    coupon_id: int | None
    in_window: bool = True
    reserved: bool = False


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The decision of one claim. ``reason`` None is success; ``remaining``: stock after it, None without a coupon."""

    claim: Claim
    reason: str | None
    remaining: int | None

    @property
    def status(self) -> Literal["SUCCESS", "FAILED"]:
        return SUCCESS if self.reason is None else FAILED


def decide(
    claims: Sequence[Claim],
    *,
    free: Mapping[int, int],
    decided: Collection[UUID],
    holders: Collection[tuple[int, int]],
) -> list[tuple[int, Decision]]:
    """Decide ``claims`` one after the other, in the order given.

    ``free`` is the stock left by coupon id, without reserved units; ``decided`` the request ids that have a result;
    ``holders`` the (coupon id, user id) pairs that have the coupon. Returns (index of the claim, its decision) for the
    first claim of every undecided request id; decided requests keep their result. A duplicate gets ALREADY_ISSUED even
    if the stock is gone, and its reserved unit is available to the claims after it.
    """
    remaining_by_coupon = dict(free)
    seen = set(decided)
    current_holders = set(holders)
    decisions: list[tuple[int, Decision]] = []
    for index, claim in enumerate(claims):
        if claim.request_id in seen:
            continue
        seen.add(claim.request_id)
        coupon_id = claim.coupon_id
        if coupon_id is None or coupon_id not in remaining_by_coupon:
            decisions.append((index, Decision(claim, UNKNOWN_COUPON, None)))
            continue
        remaining_by_coupon[coupon_id] += claim.reserved
        pair = (coupon_id, claim.user_id)
        reason: str | None = None
        if not claim.in_window:
            reason = NOT_OPEN
        elif pair in current_holders:
            reason = ALREADY_ISSUED
        elif remaining_by_coupon[coupon_id] <= 0:
            reason = SOLD_OUT
        else:
            remaining_by_coupon[coupon_id] -= 1
            current_holders.add(pair)
        decisions.append((index, Decision(claim, reason, remaining_by_coupon[coupon_id])))
    return decisions


@dataclass(frozen=True, slots=True)
class Window:
    """When a coupon accepts requests: from ``opens_at`` on, before ``closes_at`` (None: no end), unless paused."""

    opens_at: datetime
    closes_at: datetime | None
    paused: bool = False

    def contains(self, moment: datetime) -> bool:
        """Whether ``moment`` is between opening and closing; ``paused`` is ignored."""
        return self.opens_at <= moment and (self.closes_at is None or moment < self.closes_at)

    def state(self, moment: datetime, remaining: int) -> str:
        """Return ``SCHEDULED``, ``OPEN``, ``PAUSED``, ``SOLD_OUT`` or ``CLOSED``."""
        if self.closes_at is not None and moment >= self.closes_at:
            return "CLOSED"
        if moment < self.opens_at:
            return "SCHEDULED"
        if self.paused:
            return "PAUSED"
        return "OPEN" if remaining > 0 else "SOLD_OUT"

    def refusal(self, moment: datetime) -> str | None:
        """Return why a request at ``moment`` is refused, as a sentence; None if the coupon is open."""
        match self.state(moment, remaining=1):
            case "SCHEDULED":
                return f"The coupon opens at {self.opens_at.isoformat()}."
            case "PAUSED":
                return "The coupon is paused. Try again later."
            case "CLOSED":
                return "The coupon is closed."
        return None


def discount(kind: str, value: int, cap: int | None, amount: int) -> int:
    """Return the discount in won, at most ``amount``; a PERCENT discount is rounded down and at most ``cap``."""
    reduction = value if kind == "FIXED" else amount * value // 100
    if kind == "PERCENT" and cap is not None:
        reduction = min(reduction, cap)
    return min(reduction, amount)


def is_rehearsal(coupon_type: str, user_id: int | None) -> bool:
    """Whether a request is one of a rehearsal: its user is not notified, and no figure counts it."""
    return user_id is not None and user_id >= FIRST_REHEARSAL_USER and coupon_type.startswith(REHEARSAL_PREFIX)


def is_coupon_type(text: str) -> bool:
    """Whether ``text`` can be a coupon type: 1 to 64 of ``A-Z a-z 0-9 _ -``."""
    return _COUPON_TYPE.fullmatch(text) is not None


def name_refusal(text: str) -> str | None:
    """Return why ``text`` is not a valid name of a coupon or product, as the end of a sentence; None if it is valid.

    Any language and emoji are accepted unchanged, including blanks of any width and joiners. At least one character
    must be visible.
    """
    if not 1 <= len(text) <= LONGEST_NAME:
        return f"must be 1 to {LONGEST_NAME} characters"
    categories = [unicodedata.category(character) for character in text]
    if any(category in ("Cc", "Cs", "Zl", "Zp") for category in categories):
        return "must not contain control characters, line ends or bytes that are not UTF-8"
    if not _BIDI_CONTROLS.isdisjoint(text):
        return "must not contain characters that change the direction of the text around them"
    if all(
        category[0] in "ZM" or category == "Cf" or character in _FILLERS
        for character, category in zip(text, categories, strict=True)
    ):
        return "must have a visible character"
    return None


def time_refusal(moment: datetime) -> str | None:
    """Return why the aware ``moment`` is no valid opening or closing, as the end of a sentence; None if it is valid."""
    return None if EARLIEST <= moment < TOO_LATE else "must be in the years 1970 to 9998 (UTC)"
