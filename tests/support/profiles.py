"""The profiles in seeds/, read as an operator's shell reads them."""

from __future__ import annotations

import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_OF_DEVSTACK = "DEVSTACK_"


def profile(number: str) -> dict[str, str]:
    """Return the variables that seeds/seed-<number>.env sets, without those of devstack; ``number`` as in "001"."""
    script = f"set -a; . seeds/seed-{number}.env; env -0"
    # An empty environment: what the shell reports beside the file's variables are its own.
    report = subprocess.run(["sh", "-c", script], env={}, cwd=_ROOT, capture_output=True, text=True, check=True)
    bare = subprocess.run(["sh", "-c", "set -a; env -0"], env={}, cwd=_ROOT, capture_output=True, text=True, check=True)
    own = {line.partition("=")[0] for line in bare.stdout.split("\0")}
    pairs = (line.partition("=") for line in report.stdout.split("\0") if line)
    return {name: value for name, _, value in pairs if name not in own and not name.startswith(_OF_DEVSTACK)}
