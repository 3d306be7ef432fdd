"""Real PostgreSQL, Redis and Kafka on one machine, without containers and without root.

``python -m devstack --help`` shows the commands; ``Stack`` is the same for programs. ``ManagedProcess`` runs
our own programs beside them.
"""

from devstack.addresses import Addresses
from devstack.errors import DevstackError
from devstack.processes import ManagedProcess, wait_until
from devstack.stack import Part, PartStatus, Stack

__all__ = ["Addresses", "DevstackError", "ManagedProcess", "Part", "PartStatus", "Stack", "wait_until"]
