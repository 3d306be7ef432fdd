"""Sends hostile input for a while and reports what failed. Needs an empty database, which it leaves full of garbage."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
from pathlib import Path
from types import FrameType

import django

_HOUR = 3600.0
_INPUTS = ("http", "kafka", "transactions", "redis")


def main() -> int:
    """Run the fuzzer with the command line's options; return 0 if there was no finding, otherwise 1."""
    options = _parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "couponsite.settings")
    django.setup()
    # Imported after setup(): these modules read the settings.
    from common.processes.outages import ServiceUnavailable

    from .run import Fuzz

    inputs = [name for name in _INPUTS if name not in options.without]
    fuzz = Fuzz(seconds=options.seconds, seed=options.seed, inputs=inputs, logs=options.logs)
    try:
        return 0 if fuzz.run() else 1
    except KeyboardInterrupt:
        print("fuzz: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ServiceUnavailable, TimeoutError) as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=_HOUR, metavar="N", help="duration (default an hour)")
    parser.add_argument(
        "--seed", default=secrets.token_hex(4), metavar="S", help="seed of all random input (default random)"
    )
    parser.add_argument("--without", action="append", default=[], choices=_INPUTS, help="leave out a kind of input")
    parser.add_argument("--logs", type=Path, default=Path(".devstack", "fuzz", "logs"), metavar="FOLDER")
    return parser


def _interrupt(signum: int, frame: FrameType | None) -> None:
    # Ignore further signals: they must not interrupt the cleanup.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
