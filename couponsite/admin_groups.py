"""The group ``viewers``: may look at everything of ours in the admin and change nothing."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.apps import apps as installed_apps
from django.apps.registry import Apps
from django.db import router

VIEWERS = "viewers"
_APPS = frozenset({"coupons", "kafka_bridge", "orders", "waffle"})


def grant_views(app_config: AppConfig, using: str, apps: Apps = installed_apps, **_options: Any) -> None:
    """After ``migrate`` of one of our apps: the group exists and has the view permission of each of its models.

    Permissions are created by the same signal, earlier; a migration would run before they exist. It only adds: what
    an operator grants besides stays.
    """
    if app_config.label not in _APPS:
        return
    try:
        group_model = apps.get_model("auth", "Group")
        permission_model = apps.get_model("auth", "Permission")
    except LookupError:
        # Migrated before django.contrib.auth: the signal comes again when that is migrated.
        return
    if not router.allow_migrate_model(using, group_model):
        return
    group, _ = group_model._default_manager.using(using).get_or_create(name=VIEWERS)
    codenames = [f"view_{model._meta.model_name}" for model in app_config.get_models()]
    group.permissions.add(
        *permission_model._default_manager.using(using).filter(
            content_type__app_label=app_config.label, codename__in=codenames
        )
    )
