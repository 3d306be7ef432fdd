"""The version that installations upgrade from, run from its own code."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from devstack.atomic_folder import atomic_folder
from devstack.state import exclusive
from tests.support.service import Service

# At each release move it forward to the revision that was released, and write the dump again: see ``__main__``.
REVISION = "d3ba2897185547c7d712dd032f2837156898961c"

_ROOT = Path(__file__).resolve().parents[2]
_CACHE = _ROOT / ".devstack" / "cache"
_PIN = re.compile(r"^([\w.-]+)(?:\[[\w,-]+\])?==([\w.!+-]+)", re.MULTILINE)
_INSTALL_SECONDS = 90.0


class NotToBeHad(Exception):
    """The code or the packages of the old version cannot be had here; the message says why."""


class OldVersion:
    """The code of ``REVISION``, unpacked in a folder."""

    def __init__(self, folder: Path) -> None:
        """Unpack the code from the history of the repository. Raises NotToBeHad."""
        self.root = folder
        with tarfile.open(fileobj=io.BytesIO(_archive())) as archive:
            archive.extractall(folder, filter="data")
        self._packages = _installed((folder / "requirements.txt").read_text())

    def service(self, log_folder: Path, env: Mapping[str, str]) -> Service:
        """Return what starts its processes and commands. ``env`` is that of ``support.service.environment``."""
        return Service(log_folder, {**env, "PYTHONPATH": self._packages}, root=self.root)


def _archive() -> bytes:
    try:
        result = subprocess.run(["git", "archive", REVISION], cwd=_ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        raise NotToBeHad("the code of the old version comes from git, which is not installed") from None
    if result.returncode != 0:
        error = result.stderr.decode(errors="replace").strip()
        raise NotToBeHad(f"revision {REVISION} is not in this clone, as in a shallow one: {error}")
    return result.stdout


def _installed(requirements: str) -> str:
    """Install the pins of ``requirements`` that this interpreter lacks, once; return the folder, empty if it has all.

    A folder before the module path takes seconds, an environment of its own nearly a minute.
    """
    missing = sorted(f"{name}=={pin}" for name, pin in _PIN.findall(requirements) if _version(name) != pin)
    if not missing:
        return ""
    digest = hashlib.sha256(" ".join([sys.version, *missing]).encode()).hexdigest()[:16]
    folder = _CACHE / f"packages-{digest}"
    with exclusive(_CACHE / "packages.lock", lambda: None):
        if not folder.exists():
            _install(missing, folder)
    return str(folder)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _install(pins: list[str], folder: Path) -> None:
    with atomic_folder(folder) as unfinished:
        # Without dependencies: those are pinned in the same file.
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-input", "--target", str(unfinished)]
        try:
            result = subprocess.run(
                [sys.executable, "-m", "pip", "install", *options, *pins],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_INSTALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NotToBeHad(f"pip did not install {' '.join(pins)} in {_INSTALL_SECONDS:.0f} s") from None
        if result.returncode != 0:
            lines = result.stderr.strip().splitlines() or ["no output"]
            raise NotToBeHad(f"pip cannot install {' '.join(pins)}, which the old version needs: {lines[-1]}")
