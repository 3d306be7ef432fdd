"""Distinct values of a column by one step into its index for each, whatever the number of rows with each value."""

from __future__ import annotations


def distinct_sql(table: str, column: str, *, condition: str = "true", most: int | None = None) -> str:
    """Return a query of the distinct values of ``column`` in their order, in a column of its name.

    Only rows that fulfil ``condition`` count, and only the first ``most`` values; None: all. An index that begins with
    the column must serve both.
    """
    within = "" if most is None else f" AND number < {most}"
    return f"""
        WITH RECURSIVE found ({column}, number) AS (
            SELECT min({column}), 1 FROM {table} WHERE {condition}
            UNION ALL
            SELECT (SELECT min({column}) FROM {table} WHERE {condition} AND {column} > found.{column}), number + 1
            FROM found WHERE found.{column} IS NOT NULL{within}
        )
        SELECT {column} FROM found WHERE {column} IS NOT NULL
    """
