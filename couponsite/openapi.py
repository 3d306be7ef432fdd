"""Extensions of drf-spectacular: the authenticators as security schemes, and one document per process."""

from __future__ import annotations

import threading
from typing import Any

from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from rest_framework.request import Request

Schema = dict[str, Any]

_lock = threading.Lock()
_documents: list[Schema] = []


class OneDocument(SchemaGenerator):
    """Generates the document at its first use in a process.

    It is the same for every client and takes a fraction of a second of CPU. drf-spectacular also fails if two threads
    generate their first documents at once.
    """

    def get_schema(self, request: Request | None = None, public: bool = False) -> Schema:
        with _lock:
            if not _documents:
                _documents.append(super().get_schema(request, public))  # type: ignore[no-untyped-call]
        return _documents[0]


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "couponsite.auth.authentication.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: AutoSchema) -> Schema:
        return {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": (
                "HS256 with the claims `user_id`, `scope` and `exp`. With the scope `coupons:issue-for-others` the "
                "bearer may act for other users."
            ),
        }


class SessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "couponsite.auth.authentication.SessionAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: AutoSchema) -> Schema:
        return {
            "type": "apiKey",
            "in": "cookie",
            "name": settings.SESSION_COOKIE_NAME,
            "description": (
                f"A session of the site. A POST needs the value of the cookie `{settings.CSRF_COOKIE_NAME}` in the "
                "header `X-CSRFToken`; without it the response is 403."
            ),
        }
