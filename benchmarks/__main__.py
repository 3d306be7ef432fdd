"""Prints tables of ratios measured in this run. Uses the configured servers, but its own databases and topics."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType

import django

_ROUNDS = 5
_OLD_ROWS = 300_000
_REQUESTS = 1_000_000
_OPEN_SECONDS = 600
_DEFAULT_PARTS = ("issue", "issuers", "relay", "accept", "sale", "latency", "overload", "disturbed", "admissions")
# Takes minutes, so only when named.
_PARTS = (*_DEFAULT_PARTS, "memory", "transaction")


def main() -> int:
    """Measure what the command line asks for and print the table."""
    options = _parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "couponsite.settings")
    django.setup()
    try:
        # Imported after setup(): its modules read the settings.
        from .report import report

        report(
            options.only,
            rounds=options.rounds,
            old_rows=options.rows,
            requests=options.requests,
            seconds=options.seconds,
        )
    except KeyboardInterrupt:
        print("interrupted; temporary databases and topics are deleted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        type=_parts,
        default=_DEFAULT_PARTS,
        metavar="PARTS",
        help=f"parts to measure, of {','.join(_PARTS)} (default: all but memory and transaction)",
    )
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"rounds per comparison (default {_ROUNDS})")
    parser.add_argument(
        "--rows",
        type=int,
        default=_OLD_ROWS,
        help=f"old rows in the tables for a second measurement of issue and relay (default {_OLD_ROWS:,}, 0: none)",
    )
    parser.add_argument(
        "--requests", type=int, default=_REQUESTS, help=f"requests of the part memory (default {_REQUESTS:,})"
    )
    parser.add_argument(
        "--seconds",
        type=int,
        default=_OPEN_SECONDS,
        help=f"how long the transaction of the part transaction stays open (default {_OPEN_SECONDS})",
    )
    return parser


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(_PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose of {', '.join(_PARTS)}")
    return parts


def _interrupt(signum: int, frame: FrameType | None) -> None:
    # Ignore further signals: they must not interrupt the cleanup.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
