"""The audit trail: who did what, when and why, with the values before and after."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from ..models import OperatorAction

logger = logging.getLogger(__name__)

LONGEST_REASON: int = OperatorAction._meta.get_field("reason").max_length or 0

Values = Mapping[str, Any]


def record_action(
    *,
    actor: str,
    action: str,
    subject: str,
    reason: str = "",
    before: Values | None = None,
    after: Values | None = None,
) -> OperatorAction:
    """Record an operator's action in the caller's transaction, which changes what the action changes.

    ``action`` is "<subject>.<verb>"; ``before`` and ``after`` are the changed values as JSON can hold them. A text that
    is longer than its column is cut, since an action must not fail for its record. Raises
    TransactionManagementError outside a transaction.
    """
    if not transaction.get_connection().in_atomic_block:
        raise transaction.TransactionManagementError(
            "an operator's action is recorded in the transaction of its change"
        )
    recorded = OperatorAction.objects.create(
        actor=actor[:150],
        action=action,
        subject=subject[:300],
        reason=reason[:LONGEST_REASON],
        before=before,
        after=after,
    )
    transaction.on_commit(lambda: logger.info("%s %s by %s: %s", action, subject, actor, reason or "no reason given"))
    return recorded
