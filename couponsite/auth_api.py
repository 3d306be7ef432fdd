"""``/api/v1/auth/``: a name and a password buy tokens, a refresh token buys the next access token."""

from __future__ import annotations

from typing import Annotated

import msgspec
from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.utils.crypto import constant_time_compare
from drf_spectacular.utils import extend_schema
from msgspec import Meta
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from couponsite import tokens
from couponsite.authentication import may_issue_for_others
from couponsite.throttles import throttle_login


class Credentials(msgspec.Struct, forbid_unknown_fields=True):
    username: Annotated[str, Meta(min_length=1, max_length=150)]
    password: Annotated[str, Meta(min_length=1, max_length=4096)]


class Refresh(msgspec.Struct, forbid_unknown_fields=True):
    refresh: Annotated[str, Meta(min_length=1, max_length=4096)]


class TokenPair(msgspec.Struct):
    access: str
    refresh: str


class Access(msgspec.Struct):
    access: str


class TokenView(APIView):
    # A stale token in the header shall not keep anyone from getting a new one.
    authentication_classes = []
    permission_classes = [AllowAny]

    @extend_schema(operation_id="auth_token", request=Credentials, responses={200: TokenPair})
    def post(self, request: Request) -> Response:
        """Exchange a username and password for tokens."""
        credentials = msgspec.convert(request.data, Credentials)
        throttle_login(request, credentials.username)
        user = authenticate(request._request, username=credentials.username, password=credentials.password)
        if user is None:
            raise AuthenticationFailed("No active account has this username and password.")
        return Response(TokenPair(_access(user), tokens.issue_refresh_token(user.pk, _password_mark(user))))


class TokenRefreshView(APIView):
    authentication_classes = []
    permission_classes = [AllowAny]

    @extend_schema(operation_id="auth_token_refresh", request=Refresh, responses={200: Access})
    def post(self, request: Request) -> Response:
        """Exchange a refresh token for an access token."""
        try:
            claims = tokens.read_refresh_token(msgspec.convert(request.data, Refresh).refresh)
        except tokens.InvalidToken as error:
            raise AuthenticationFailed(str(error)) from None
        user = get_user_model()._default_manager.filter(pk=claims.user_id, is_active=True).first()
        if user is None or not constant_time_compare(claims.password_mark, _password_mark(user)):
            raise AuthenticationFailed("The account is not active any more, or its password has changed.")
        return Response(Access(_access(user)))


def _access(user: AbstractBaseUser) -> str:
    return tokens.issue_access_token(user.pk, tokens.ISSUE_FOR_OTHERS if may_issue_for_others(user) else "")


def _password_mark(user: AbstractBaseUser) -> str:
    # The keyed hash that ends sessions at a change of password; a prefix is enough to notice one.
    return user.get_session_auth_hash()[:16]
