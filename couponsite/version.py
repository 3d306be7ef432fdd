"""The version of this service, as its processes report it."""

from __future__ import annotations

import tomllib
from pathlib import Path

_COMMIT_CHARACTERS = 12


def service_version(root: Path) -> str:
    """Return the version in ``pyproject.toml``, in a checkout followed by the commit: ``0.1.0+4f2a90c1b7d3``.

    Empty without the file.
    """
    try:
        version = str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return ""
    commit = _commit(root / ".git")
    return f"{version}+{commit[:_COMMIT_CHARACTERS]}" if commit else version


def _commit(git: Path) -> str:
    """Return the commit that is checked out, empty if it cannot be read. Starts no program."""
    try:
        if git.is_file():
            # A worktree: the file names its folder, which names the common one.
            git = git.parent / git.read_text().removeprefix("gitdir:").strip()
        common_name = git / "commondir"
        common = git / common_name.read_text().strip() if common_name.exists() else git
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        if (common / ref).exists():
            return (common / ref).read_text().strip()
        packed = (common / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {ref}")), "")
    except (OSError, UnicodeError):
        return ""
