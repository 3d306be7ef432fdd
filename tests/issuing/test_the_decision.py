"""The pure decision of a batch, held against a model that decides one request after the other."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from coupons.policy import Claim, decide

COUPONS = (1, 2)
UNKNOWN = 9

claims = st.lists(
    st.builds(
        Claim,
        request_id=st.integers(1, 12).map(lambda number: UUID(int=number)),
        user_id=st.integers(1, 4),
        coupon_id=st.sampled_from([*COUPONS, UNKNOWN, None]),
        in_window=st.sampled_from([True, True, True, False]),
        reserved=st.booleans(),
    ),
    max_size=30,
)
stock = st.fixed_dictionaries({coupon: st.integers(0, 5) for coupon in COUPONS})
decided = st.sets(st.integers(1, 12).map(lambda number: UUID(int=number)), max_size=4)
holders = st.sets(st.tuples(st.sampled_from(COUPONS), st.integers(1, 4)), max_size=3)


class OneByOne:
    """The shop with one clerk: each request looks at everything before it."""

    def __init__(self, free: dict[int, int], decided: set[UUID], holders: set[tuple[int, int]]) -> None:
        self.free, self.answered, self.holders = dict(free), set(decided), set(holders)

    def answer(self, claim: Claim) -> str | None:
        """The reason, "" for success, None for a request that has its answer."""
        if claim.request_id in self.answered:
            return None
        self.answered.add(claim.request_id)
        if claim.coupon_id not in self.free:
            return "UNKNOWN_COUPON"
        if claim.reserved:
            self.free[claim.coupon_id] += 1
        if not claim.in_window:
            return "NOT_OPEN"
        if (claim.coupon_id, claim.user_id) in self.holders:
            return "ALREADY_ISSUED"
        if self.free[claim.coupon_id] == 0:
            return "SOLD_OUT"
        self.free[claim.coupon_id] -= 1
        self.holders.add((claim.coupon_id, claim.user_id))
        return ""


@given(batch=claims, free=stock, decided=decided, holders=holders)
def test_a_batch_is_decided_like_one_request_after_the_other(
    batch: list[Claim], free: dict[int, int], decided: set[UUID], holders: set[tuple[int, int]]
) -> None:
    model = OneByOne(free, decided, holders)
    expected = {index: answer for index, claim in enumerate(batch) if (answer := model.answer(claim)) is not None}

    decisions = decide(batch, free=free, decided=decided, holders=holders)

    assert {index: decision.reason or "" for index, decision in decisions} == expected
    left = {coupon: [d.remaining for _, d in decisions if d.claim.coupon_id == coupon][-1:] for coupon in COUPONS}
    for coupon, last in left.items():
        assert last in ([], [model.free[coupon]])


@given(batch=claims, free=stock, decided=decided, holders=holders, cut=st.integers(0, 30))
def test_where_a_batch_is_cut_makes_no_difference(
    batch: list[Claim], free: dict[int, int], decided: set[UUID], holders: set[tuple[int, int]], cut: int
) -> None:
    whole = dict(decide(batch, free=free, decided=decided, holders=holders))

    first = decide(batch[:cut], free=free, decided=decided, holders=holders)
    won = [(d.claim.coupon_id, d.claim.user_id) for _, d in first if d.reason is None]
    left = free | {d.claim.coupon_id or 0: d.remaining for _, d in first if d.remaining is not None}
    second = decide(
        batch[cut:],
        free=left,
        decided=decided | {d.claim.request_id for _, d in first},
        holders=holders | {(coupon, user) for coupon, user in won if coupon is not None},
    )

    assert whole == dict(first) | {index + len(batch[:cut]): decision for index, decision in second}


def test_a_reserved_piece_is_its_requests_alone_and_a_duplicates_goes_to_the_next() -> None:
    alice, bob, carol, dave = (
        Claim(UUID(int=user_id), user_id, 1, reserved=reserved)
        for user_id, reserved in enumerate([False, True, True, False], start=1)
    )
    decisions = decide([alice, bob, carol, dave], free={1: 0}, decided=(), holders={(1, bob.user_id)})
    assert [decision.reason for _, decision in decisions] == ["SOLD_OUT", "ALREADY_ISSUED", None, None]
