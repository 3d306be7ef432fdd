"""The tables of the bridge."""

from __future__ import annotations

from .alerts import AlarmLease, Alert, AlertNotification, AlertSilence
from .consuming import MOST_REPLAYS, DeadLetter, ProcessedEvent
from .operators import GroupPause, OperatorAction, PartitionInstruction, target_name
from .outbox import SHARDS, HeldMessage, OutboxHold, OutboxMessage, RelayLease, RelayMember
from .processes import BrokerState, HousekeepingRun, ProcessHeartbeat, Sample, SweptPartition
from .redrives import MOST_RATE, Redrive, RedriveItem

__all__ = [
    "MOST_RATE",
    "MOST_REPLAYS",
    "SHARDS",
    "AlarmLease",
    "Alert",
    "AlertNotification",
    "AlertSilence",
    "BrokerState",
    "DeadLetter",
    "GroupPause",
    "HeldMessage",
    "HousekeepingRun",
    "OperatorAction",
    "OutboxHold",
    "OutboxMessage",
    "PartitionInstruction",
    "ProcessHeartbeat",
    "ProcessedEvent",
    "Redrive",
    "RedriveItem",
    "RelayLease",
    "RelayMember",
    "Sample",
    "SweptPartition",
    "target_name",
]
