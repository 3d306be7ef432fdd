"""Errors of orders; each class carries its HTTP status and problem code, see ``common.api.errors``."""

from __future__ import annotations

from common.api.errors import DomainError


class InvalidState(DomainError):
    status = 409
    code = "invalid_state"
    title = "The order is not in a state that allows this"


class InProgress(DomainError):
    status = 409
    code = "in_progress"
    title = "The same call is already in progress"
