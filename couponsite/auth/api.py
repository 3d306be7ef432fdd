"""``/api/v1/auth/``: exchange a username and password for tokens, and a refresh token for an access token."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.utils.crypto import constant_time_compare
from msgspec import Meta
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from common.api.requests import APIView, body_of
from common.api.schema import Operation
from couponsite.auth import tokens
from couponsite.auth.authentication import may_issue_for_others
from couponsite.auth.login_brake import check_password

# Characters. Any valid body stays below the limit of 16 KiB, even with each character escaped.
_MAX_LENGTH = 1024


class Credentials(msgspec.Struct, forbid_unknown_fields=True):
    username: Annotated[str, Meta(min_length=1, max_length=150)]
    password: Annotated[str, Meta(min_length=1, max_length=_MAX_LENGTH)]


class Refresh(msgspec.Struct, forbid_unknown_fields=True):
    refresh: Annotated[str, Meta(min_length=1, max_length=_MAX_LENGTH)]


class TokenPair(msgspec.Struct):
    access: str
    refresh: str


class Access(msgspec.Struct):
    access: str


EXAMPLE_LOGIN = Credentials("shopper", "correct horse battery staple")
# Not a valid token: the signature is missing.
_EXAMPLE_TOKEN = "eyJhbGciOiJIUzI1NiJ9.e30."


class TokenView(APIView):
    # An expired token in the header must not prevent a login.
    authentication_classes = []
    permission_classes = [AllowAny]

    @Operation(
        "authToken",
        TokenPair(_EXAMPLE_TOKEN, _EXAMPLE_TOKEN),
        "A short-lived access token and a long-lived refresh token.",
        bodies={"login": EXAMPLE_LOGIN},
        refusals=["unauthenticated", "throttled"],
    )
    def post(self, request: Request) -> Response:
        """Exchange a username and password for tokens."""
        credentials = body_of(request, Credentials, normalize=_normalize_username)
        user = check_password(request._request, credentials.username, credentials.password)
        if user is None:
            raise AuthenticationFailed("No active account has this username and password.")
        return Response(TokenPair(_access(user), tokens.issue_refresh_token(user.pk, _password_fingerprint(user))))


class TokenRefreshView(APIView):
    authentication_classes = []
    permission_classes = [AllowAny]

    @Operation(
        "authTokenRefresh",
        Access(_EXAMPLE_TOKEN),
        "The next access token.",
        bodies={"refresh": Refresh(_EXAMPLE_TOKEN)},
        refusals=["unauthenticated"],
    )
    def post(self, request: Request) -> Response:
        """Exchange a refresh token for an access token."""
        try:
            claims = tokens.read_refresh_token(body_of(request, Refresh).refresh)
        except tokens.InvalidToken as error:
            raise AuthenticationFailed(str(error)) from None
        user = get_user_model()._default_manager.filter(pk=claims.user_id, is_active=True).first()
        if user is None or not constant_time_compare(claims.password_fingerprint, _password_fingerprint(user)):
            raise AuthenticationFailed("The account is not active any more, or its password has changed.")
        return Response(Access(_access(user)))


def _normalize_username(body: Any) -> Any:
    """Return ``body`` with the username as Django stores it (NFKC): macOS sends NFD, up to three times as long."""
    name = body.get("username")
    return {**body, "username": AbstractBaseUser.normalize_username(name)} if isinstance(name, str) else body


def _access(user: AbstractBaseUser) -> str:
    return tokens.issue_access_token(user.pk, tokens.ISSUE_FOR_OTHERS if may_issue_for_others(user) else "")


def _password_fingerprint(user: AbstractBaseUser) -> str:
    # The keyed hash with which Django ends sessions when the password changes; a prefix is enough to detect a change.
    return user.get_session_auth_hash()[:16]
