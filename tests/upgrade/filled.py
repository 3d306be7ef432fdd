"""A database that the old version filled, as files beside this module: ``fill`` writes them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg2
import psycopg2.extensions
from django.contrib.contenttypes.models import ContentType
from django.db import connection

_FOLDER = Path(__file__).resolve().parent
DUMP = _FOLDER / "filled.sql"
ANSWERS = _FOLDER / "answers.json"

# Of the installation that was filled: the ids of requests and the passwords' hashes come from it.
SECRET_KEY = "of-the-installation-that-the-tests-upgrade"
ADMIN, PASSWORD = "olga", "correct horse battery staple"
# The name that the admin gave to the coupon PAUSED.
RENAMED = "For the sale of the summer"
# A restock that was made, and is made again after the upgrade.
RESTOCK = "019aa000-0000-7000-8000-000000000001"


class Answered(msgspec.Struct, frozen=True):
    """A call as the old version answered it. ``key`` is the Idempotency-Key of a call that had been made before."""

    user: int
    method: str
    path: str
    body: Any
    key: str | None
    status: int
    answer: Any


def answered() -> list[Answered]:
    """Read the calls, in the sequence in which they were made."""
    return msgspec.json.decode(ANSWERS.read_bytes(), type=list[Answered])


@contextmanager
def own_database() -> Iterator[None]:
    """Make the default connection one to a new, empty database, which is dropped at the end."""
    values = connection.settings_dict
    usual, name = values["NAME"], f"upgrade_{secrets.token_hex(4)}"
    _run(f"CREATE DATABASE {name}")
    try:
        _switch(name)
        yield
    finally:
        _switch(usual)
        _run(f"DROP DATABASE {name} WITH (FORCE)")


def load() -> None:
    """Load the dump into the database of the default connection, which must be empty."""
    with closing(psycopg2.connect(_address())) as session, session, session.cursor() as cursor:
        cursor.execute(DUMP.read_text())


def _switch(name: str) -> None:
    connection.close()
    connection.settings_dict["NAME"] = name
    # Their ids differ between databases.
    ContentType.objects.clear_cache()


def _run(statement: str) -> None:
    with closing(psycopg2.connect(_address())) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute(statement)


def _address() -> str:
    values = connection.settings_dict
    names = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password", "NAME": "dbname"}
    return str(psycopg2.extensions.make_dsn(**{option: values[name] for name, option in names.items() if values[name]}))
