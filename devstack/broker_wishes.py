"""Number and ports of the brokers that the environment asks for."""

from collections.abc import Mapping

from devstack.errors import DevstackError

BROKERS = "DEVSTACK_BROKERS"
PORTS = "DEVSTACK_KAFKA_PORTS"
MAX_BROKERS = 9
_LOWEST_PORT, _HIGHEST_PORT = 1024, 65_535


def wanted_brokers(environ: Mapping[str, str]) -> int | None:
    """Return the number of brokers in ``DEVSTACK_BROKERS``; None if it is unset or empty.

    Raises DevstackError for anything but a number from 1 to 9.
    """
    text = environ.get(BROKERS, "").strip()
    if not text:
        return None
    number = _number(text)
    if number is None or not 1 <= number <= MAX_BROKERS:
        raise DevstackError(f"{BROKERS} is {text!r}: set it to the number of brokers, 1 to {MAX_BROKERS}, or unset it")
    return number


def wanted_ports(environ: Mapping[str, str], brokers: int) -> list[int]:
    """Return the ports in ``DEVSTACK_KAFKA_PORTS``, in the order of the brokers; empty if it is unset or empty.

    Raises DevstackError unless it names a different port for each of ``brokers`` brokers.
    """
    text = environ.get(PORTS, "").strip()
    if not text:
        return []
    ports = [port for word in text.split(",") if (port := _number(word.strip())) and _is_port(port)]
    if len(ports) != len(text.split(",")) or len(set(ports)) != len(ports):
        raise DevstackError(
            f"{PORTS} is {text!r}: list different ports from {_LOWEST_PORT} to {_HIGHEST_PORT}, as in 9092,9094,"
            " or unset it"
        )
    if len(ports) != brokers:
        raise DevstackError(
            f"{PORTS} has {len(ports)} port(s) and the stack {brokers} broker(s): list a port for each, or unset it"
        )
    return ports


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else None


def _is_port(number: int) -> bool:
    return _LOWEST_PORT <= number <= _HIGHEST_PORT
