from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from couponsite.auth.tokens import AccessClaims, read_access_token


def tokens(*arguments: str) -> list[str]:
    out = StringIO()
    call_command("issue_tokens", *arguments, stdout=out)
    return out.getvalue().splitlines()


def test_one_token_a_line_in_order() -> None:
    assert [read_access_token(token).user_id for token in tokens("--users", "8-12")] == [8, 9, 10, 11, 12]


def test_one_user() -> None:
    (token,) = tokens("--users", "7", "--scope", "a b", "--hours", "1")
    assert read_access_token(token) == AccessClaims(7, frozenset({"a", "b"}))


@pytest.mark.parametrize("users", ["0", "5-1", "a", "1-", "-5", "1-9223372036854775808", "1-2-3", ""])
def test_a_bad_range_is_refused(users: str) -> None:
    with pytest.raises(CommandError, match="--users"):
        tokens(f"--users={users}")


@pytest.mark.parametrize("hours", ["0", "-1", "1.5", "999999"])
def test_a_bad_lifetime_is_refused(hours: str) -> None:
    with pytest.raises(CommandError, match="--hours"):
        tokens("--users=1", f"--hours={hours}")
