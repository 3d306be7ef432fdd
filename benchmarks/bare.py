"""What the door is measured against: Django that does nothing, on the same server with the same options.

No middleware, no database, no log line: one view that answers a constant of the door's size, and the body unread.
"""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

ADDRESS = "api/v1/coupons/issue-async"
_BODY = (
    b'{"requestId":"01890a5d-ac96-774b-bcce-b302099a8057","status":"PENDING","couponId":1,"couponType":"HOT",'
    b'"userId":1000000,"sequence":null}'
)


def answer(request: HttpRequest) -> HttpResponse:
    length = {"Content-Length": str(len(_BODY))}
    return HttpResponse(_BODY, status=202, content_type="application/json", headers=length)


urlpatterns = [path(ADDRESS, answer)]


def _application() -> Any:
    settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="signs nothing", ALLOWED_HOSTS=["127.0.0.1"], MIDDLEWARE=[])
    django.setup()
    return get_wsgi_application()


# Only the server imports this module.
application = _application()
