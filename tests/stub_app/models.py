from __future__ import annotations

from django.db import models


class Booking(models.Model):
    """The result of a request; a user has at most one seat of a room."""

    request_id = models.UUIDField(primary_key=True)
    room = models.TextField()
    user_id = models.BigIntegerField(null=True)
    status = models.TextField()
    reason = models.TextField(default="")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["room", "user_id"], condition=models.Q(status="SUCCESS"), name="stub_one_seat_per_user"
            )
        ]

    def __str__(self) -> str:
        return f"{self.request_id} {self.status}"
