"""Authentication of API calls: a bearer token, or a session of the site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from django.contrib.auth.models import AbstractBaseUser, PermissionsMixin
from rest_framework import authentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from couponsite.auth.tokens import ISSUE_FOR_OTHERS, InvalidToken, read_access_token

ISSUE_FOR_OTHERS_PERMISSION = "coupons.issue_for_others"


@dataclass(frozen=True, slots=True)
class Principal:
    """``request.user`` of the API: a user id authenticated by a token or a session.

    A token has the rights of its scopes, independent of the permissions of a user row with the same id; a session has
    the permissions of its user.
    """

    user_id: int
    scopes: frozenset[str] = frozenset()
    session_user: AbstractBaseUser | None = None

    is_authenticated: ClassVar[bool] = True

    @property
    def may_issue_for_others(self) -> bool:
        """Whether the caller may issue for other users; queries the database only for a session, and only when read."""
        if self.session_user is None:
            return ISSUE_FOR_OTHERS in self.scopes
        return may_issue_for_others(self.session_user)


def may_issue_for_others(user: AbstractBaseUser) -> bool:
    return isinstance(user, PermissionsMixin) and user.has_perm(ISSUE_FOR_OTHERS_PERMISSION)


class BearerAuthentication(authentication.BaseAuthentication):
    """``Authorization: Bearer <JWT>``, without a query. A present but invalid header is a 401."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        header: str | None = request.META.get("HTTP_AUTHORIZATION")
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or not token.isascii():
            raise AuthenticationFailed("The Authorization header is not `Bearer <token>`.")
        try:
            claims = read_access_token(token)
        except InvalidToken as error:
            raise AuthenticationFailed(str(error)) from None
        return Principal(claims.user_id, claims.scopes), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class SessionAuthentication(authentication.SessionAuthentication):
    """The Django session, with CSRF check."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        found = super().authenticate(request)
        if found is None:
            return None
        user: AbstractBaseUser = found[0]
        return Principal(user.pk, session_user=user), None
