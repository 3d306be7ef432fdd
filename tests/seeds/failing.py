"""A fault of the service for one user alone, made in PostgreSQL: the issuer gets an error that it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from django.db import connection

# Sequences keep their values when the transaction is rolled back.
_CREATE = """
    CREATE SEQUENCE seed_tries;
    CREATE SEQUENCE seed_first_try;
    CREATE SEQUENCE seed_last_try;
    CREATE FUNCTION seed_fail() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE milliseconds bigint := extract(epoch FROM clock_timestamp()) * 1000;
    BEGIN
        IF nextval('seed_tries') = 1 THEN
            PERFORM setval('seed_first_try', milliseconds);
        END IF;
        PERFORM setval('seed_last_try', milliseconds);
        RAISE EXCEPTION 'no coupon for user %', NEW.user_id;
    END $$;
"""
_ATTACH = """
    CREATE TRIGGER seed_fail BEFORE INSERT ON coupons_usercoupon
    FOR EACH ROW WHEN (NEW.user_id = {user_id}) EXECUTE FUNCTION seed_fail()
"""
_DROP = """
    DROP TRIGGER seed_fail ON coupons_usercoupon;
    DROP FUNCTION seed_fail();
    DROP SEQUENCE seed_tries, seed_first_try, seed_last_try;
"""


class Tries(NamedTuple):
    """How often the issuer tried, and the seconds from the first try to the last."""

    number: int
    seconds: float


@contextmanager
def failing_for(user_id: int) -> Iterator[None]:
    """Let every insert of a coupon of this user fail."""
    with connection.cursor() as cursor:
        cursor.execute(_CREATE + _ATTACH.format(user_id=user_id))
        try:
            yield
        finally:
            cursor.execute(_DROP)


def tries() -> Tries:
    """The tries since ``failing_for`` began, of which there was one at least."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT seed_tries.last_value, seed_last_try.last_value - seed_first_try.last_value"
            " FROM seed_tries, seed_first_try, seed_last_try"
        )
        number, milliseconds = cursor.fetchone() or (0, 0)
    return Tries(number, milliseconds / 1000)
