"""Read long sequences in chunks, so that they are never in memory as a whole."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from django.db import connection, transaction

Item = TypeVar("Item")


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield ``items`` in lists of ``size``; the last list may be shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def row_chunks(query: str, values: Sequence[int], size: int) -> Generator[list[tuple[Any, ...]]]:
    """Yield the rows of ``query``, from one snapshot, in lists of ``size``.

    By a server-side cursor: the client never holds all rows. It needs a transaction, which lasts until the last row.
    """
    with transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute(query, values)
        while rows := cursor.fetchmany(size):
            yield rows
