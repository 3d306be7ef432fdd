"""Prints one table of ratios, each measured in this run. Uses the configured servers, but no data of theirs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType

import django

_ROUNDS = 5


def main() -> int:
    """Measure what the command line asks for and print the table."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "couponsite.settings")
    django.setup()
    try:
        # Its modules need the settings.
        from .report import report

        report(rounds=options.rounds, old_rows=options.rows)
    except KeyboardInterrupt:
        print("interrupted; nothing is left behind", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"turns of each side (default {_ROUNDS})")
    parser.add_argument("--rows", type=int, default=0, help="measure once more with so many old rows in the tables")
    return parser


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
