"""Fetches Kafka's jars once, as pinned in pom.xml, into a cache that all stacks share."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from devstack.atomic_folder import atomic_folder
from devstack.errors import DevstackError
from devstack.state import exclusive

POM = Path(__file__).with_name("pom.xml")
CACHE = Path(__file__).resolve().parents[2] / ".devstack" / "cache"


def fetched_jars(java: Path, report: Callable[[str], None]) -> Path:
    """Return the folder of Kafka's jars; fetches them first if they are missing.

    ``report`` gets a line of progress. Raises DevstackError when Maven is missing or fails.
    """
    folder = CACHE / f"kafka-{_kafka_version()}"
    if _complete(folder):
        return folder
    with exclusive(CACHE / "kafka.lock", lambda: report("waiting for another fetch of Kafka's jars")):
        if not _complete(folder):
            report("fetching Kafka's jars with Maven, once")
            _fetch(folder, java)
    return folder


def _complete(folder: Path) -> bool:
    """Return whether the folder has the jars of this pom: it was renamed when complete, with a copy of its pom."""
    try:
        return (folder / POM.name).read_bytes() == POM.read_bytes()
    except FileNotFoundError:
        return False


def _fetch(folder: Path, java: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise DevstackError(
            "Maven is missing, which fetches Kafka's jars once: install `mvn` (Debian: apt-get install maven), "
            "or set KAFKA_BOOTSTRAP_SERVERS"
        )
    # Delete jars of another pom; a broker that still uses them has the files open.
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as unfinished:
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={unfinished}"]
        result = subprocess.run(
            [maven, "-q", "-B", "-f", str(POM), *goal],
            env={"JAVA_HOME": str(java.resolve().parents[1]), **os.environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            errors = [line for line in result.stdout.splitlines() if line.startswith("[ERROR]")]
            reason = errors[0].removeprefix("[ERROR]").strip() if errors else result.stderr.strip()[-200:]
            raise DevstackError(f"Maven could not fetch Kafka's jars; try again when it can: {reason}")
        shutil.copy(POM, unfinished)


def _kafka_version() -> str:
    namespace = {"m": "http://maven.apache.org/POM/4.0.0"}
    for dependency in ElementTree.parse(POM).iterfind("m:dependencies/m:dependency", namespace):
        if dependency.findtext("m:artifactId", "", namespace).startswith("kafka_"):
            return dependency.findtext("m:version", "", namespace)
    raise DevstackError(f"{POM} names no Kafka: restore it")
