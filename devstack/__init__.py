"""Real PostgreSQL, Redis and Kafka on one machine, without containers and without root.

``python -m devstack --help`` lists the commands; ``Stack`` is their Python API. ``ManagedProcess`` runs the service's
own programs beside the servers.
"""

from devstack.addresses import Addresses
from devstack.errors import DevstackError
from devstack.processes import ManagedProcess, wait_until
from devstack.stack import Part, PartStatus, Stack

__all__ = ["Addresses", "DevstackError", "ManagedProcess", "Part", "PartStatus", "Stack", "wait_until"]
