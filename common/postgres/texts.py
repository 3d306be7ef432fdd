"""Texts from outside, as PostgreSQL can hold them."""

from __future__ import annotations


def storable(text: str) -> str:
    """Return ``text`` for a column of text or JSON: NUL as ``\\0``, half characters as ``?``."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\\0")
