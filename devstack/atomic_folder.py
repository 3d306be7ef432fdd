"""Creates folders atomically: complete or not at all."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a path at which to make a folder; it is renamed to ``target`` at the end, unless an exception is raised.

    The path's parent is a temporary folder, usable for helper files, and always deleted. Each call has a new one: a
    tool whose caller was killed may still write into the previous one. Callers must hold a lock for ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{target.name}.unfinished-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.unfinished-", dir=target.parent))
    try:
        yield temporary / target.name
        (temporary / target.name).rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
