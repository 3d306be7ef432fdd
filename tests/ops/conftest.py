"""Browsers of users with different permissions, and rows that the pages show."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.test import Client

from couponsite.admin.viewers import VIEWERS
from kafka_bridge.models import Alert
from kafka_bridge.operating.alerts import AlertRule, alert_rules


def make_viewer(name: str = "victor") -> User:
    user = User.objects.create_user(name, is_staff=True)
    user.groups.add(Group.objects.get(name=VIEWERS))
    return user


def make_operator(name: str = "olga") -> User:
    """A viewer who may silence alerts and hold messages."""
    user = make_viewer(name)
    user.user_permissions.set(Permission.objects.filter(codename__in=("silence_alerts", "hold_messages")))
    return user


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def viewer(db: None) -> Client:
    return signed_in(make_viewer())


@pytest.fixture
def operator(db: None) -> Client:
    return signed_in(make_operator())


@pytest.fixture
def rule() -> AlertRule:
    """A rule that the site's process has registered."""
    return alert_rules()["gate-admitted-refused"]


@pytest.fixture
def alert(db: None, rule: AlertRule) -> Alert:
    """An open alert."""
    return Alert.objects.create(
        rule=rule.name, severity=rule.severity, summary="Two gates differ <b>.", runbook=rule.runbook
    )
