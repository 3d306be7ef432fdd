from __future__ import annotations

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client

from couponsite.admin.viewers import VIEWERS


@pytest.fixture
def superuser(db: None) -> Client:
    """The browser of a user with every permission."""
    return _logged_in(User.objects.create_superuser("olga"))


@pytest.fixture
def viewer(db: None) -> Client:
    """The browser of a member of the group ``viewers``."""
    user = User.objects.create_user("victor", is_staff=True)
    user.groups.add(Group.objects.get(name=VIEWERS))
    return _logged_in(user)


def _logged_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client
