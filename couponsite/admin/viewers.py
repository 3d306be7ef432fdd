"""The group ``viewers``: read-only access to all models of this project in the admin."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.apps import apps as installed_apps
from django.apps.registry import Apps
from django.db import router

VIEWERS = "viewers"
_APPS = frozenset({"coupons", "kafka_bridge", "orders"})


def grant_views(app_config: AppConfig, using: str, apps: Apps = installed_apps, **_options: Any) -> None:
    """Receiver of ``post_migrate``: create the group and grant it the view permission of each model of the app.

    Django creates the permissions in an earlier receiver of the same signal; a migration would run before they exist.
    Permissions that an operator adds to the group are kept.
    """
    if app_config.label not in _APPS:
        return
    try:
        group_model = apps.get_model("auth", "Group")
        permission_model = apps.get_model("auth", "Permission")
    except LookupError:
        # Migrated before django.contrib.auth: the signal is sent again when that is migrated.
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
