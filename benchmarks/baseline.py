"""The baseline of the accept API: a Django view that does nothing, on the same server with the same options.

Its one view answers a constant of the same size as the accept API's answer and does not read the body: no database, no
log line. The middleware is that of ``startproject``, or none with BARE_MIDDLEWARE=none in the environment.
"""

from __future__ import annotations

import os
from typing import Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

_MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
]
_BODY = (
    b'{"requestId":"01890a5d-ac96-774b-bcce-b302099a8057","status":"PENDING","couponId":1,"couponType":"SALE_01234567",'
    b'"userId":2000000000,"sequence":null}'
)


@csrf_exempt
def answer(request: HttpRequest) -> HttpResponse:
    length = {"Content-Length": str(len(_BODY))}
    return HttpResponse(_BODY, status=202, content_type="application/json", headers=length)


urlpatterns = [path("api/v1/coupons/issue-async", answer)]


def _application() -> Any:
    settings.configure(
        ROOT_URLCONF=__name__,
        SECRET_KEY="signs nothing",
        ALLOWED_HOSTS=["127.0.0.1"],
        INSTALLED_APPS=_APPS,
        MIDDLEWARE=[] if os.environ.get("BARE_MIDDLEWARE") == "none" else _MIDDLEWARE,
    )
    django.setup()
    return get_wsgi_application()


# At import time: only the web server imports this module.
application = _application()
