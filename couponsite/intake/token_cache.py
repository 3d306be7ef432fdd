"""Verified access tokens: a client's next call with the same token costs a look-up instead of an HMAC."""

from __future__ import annotations

import time

from couponsite.auth.tokens import AccessClaims, read_plain_access_token

_MOST = 10_000
# Tokens of this service have about 150 bytes; those of other issuers may be of any size.
_LONGEST = 2_000


class TokenCache:
    """Claims by Authorization header. A token is valid until it expires, so an entry is too."""

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[AccessClaims, int]] = {}

    def claims(self, authorization: bytes) -> AccessClaims | None:
        """Return the claims of a valid bearer token in the plain format; None for any other header."""
        entry = self._entries.get(authorization)
        if entry is None:
            scheme, _, token = authorization.partition(b" ")
            if scheme.lower() != b"bearer" or not token.isascii():
                return None
            entry = read_plain_access_token(token.decode("ascii"))
            if entry is None:
                return None
            if len(self._entries) >= _MOST:
                self._entries.clear()
            if len(authorization) <= _LONGEST:
                self._entries[authorization] = entry
        claims, expires = entry
        return claims if expires > time.time() else None
