"""Addresses of a stack's services, and the environment variables that hold them."""

from dataclasses import dataclass

DATABASE_URL = "DATABASE_URL"
REDIS_URL = "REDIS_URL"
KAFKA_BOOTSTRAP_SERVERS = "KAFKA_BOOTSTRAP_SERVERS"


@dataclass(frozen=True)
class Addresses:
    """The three addresses, in the forms that the service's settings take.

    ``database_url`` is ``postgres://USER:PASSWORD@HOST:PORT/NAME``, ``redis_url`` is
    ``redis://HOST:PORT/0`` and ``kafka_bootstrap_servers`` is ``HOST:PORT`` or several, joined by commas.
    """

    database_url: str
    redis_url: str
    kafka_bootstrap_servers: str

    def environment(self) -> dict[str, str]:
        """Return the environment variables that name these services, and only those."""
        return {
            DATABASE_URL: self.database_url,
            REDIS_URL: self.redis_url,
            KAFKA_BOOTSTRAP_SERVERS: self.kafka_bootstrap_servers,
        }
