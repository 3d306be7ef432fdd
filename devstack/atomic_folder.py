"""Makes folders that are either complete or not there."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a path to make a folder at; it becomes ``target`` at the end, unless an exception passes.

    The path's parent is a folder of its own, for helper files, and goes in any case. Each call has another
    one: a tool whose caller was killed may still be writing into the former. Callers hold a lock for ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{target.name}.unfinished-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    workshop = Path(tempfile.mkdtemp(prefix=f"{target.name}.unfinished-", dir=target.parent))
    try:
        yield workshop / target.name
        (workshop / target.name).rename(target)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
