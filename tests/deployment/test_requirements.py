"""What is installed is locked by hash, and is what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import pytest

from tests.deployment.files import ROOT

RUNTIME, DEVELOPMENT = "requirements.txt", "requirements-dev.txt"
BOTH = pytest.mark.parametrize("file", [RUNTIME, DEVELOPMENT])
# As `make lock` names what pyproject.toml asks for directly.
DIRECTLY = "(pyproject.toml"


class Locked(NamedTuple):
    """A package of a requirements file."""

    version: str
    hashes: frozenset[str]
    required_by: str


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(requirements: list[str]) -> dict[str, str]:
    """The version of each package; only ``==`` is understood."""
    pins = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?==([\w.]+)", requirement)
        assert match, requirement
        pins[normalised(match[1])] = match[2]
    return pins


def locked(file: str) -> dict[str, Locked]:
    """The packages of a file; what is not a package, one of its hashes or a comment fails."""
    packages = {}
    text = re.sub(r" *\\\n *", " ", (ROOT / file).read_text())
    for block in re.split(r"\n(?=[^ #])", re.sub(r"\A(#.*\n)+", "", text)):
        line, _, comments = block.partition("\n")
        match = re.fullmatch(r"([a-z0-9-]+)==([\w.]+)(?: ; [^#]*?)?((?: --hash=sha256:[0-9a-f]{64})+)", line)
        assert match, line
        assert all(re.fullmatch(r"    # .*", comment) for comment in comments.splitlines())
        packages[match[1]] = Locked(match[2], frozenset(match[3].split()), comments)
    return packages


def direct(file: str) -> dict[str, str]:
    return {name: package.version for name, package in locked(file).items() if DIRECTLY in package.required_by}


def test_the_runtime_is_locked_as_the_project_asks_for_it() -> None:
    assert direct(RUNTIME) == pinned(project()["project"]["dependencies"])


def test_development_is_locked_as_the_project_asks_for_it() -> None:
    asked = [*project()["project"]["dependencies"], *project()["dependency-groups"]["dev"]]
    assert direct(DEVELOPMENT) == pinned(asked)


def test_development_and_tests_run_what_is_deployed() -> None:
    runtime, development = locked(RUNTIME), locked(DEVELOPMENT)
    assert {name: package[:2] for name, package in runtime.items()} == {name: development[name][:2] for name in runtime}


@BOTH
def test_no_file_names_an_index(file: str) -> None:
    assert "://" not in (ROOT / file).read_text()


def test_these_tests_run_on_what_is_locked() -> None:
    different = {}
    for name, package in locked(DEVELOPMENT).items():
        # Some packages are for other versions of Python or other systems.
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if installed != package.version:
            different[name] = installed
    assert different == {}
