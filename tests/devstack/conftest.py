"""Stacks of the tests' own, in folders of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import Addresses, Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give a stack that nothing was started of yet, and take it down at the end."""
    stack = Stack("tests", root=tmp_path_factory.mktemp("stack"), environ={})
    yield stack
    stack.down(wipe=True)


@pytest.fixture
def addresses(stack: Stack) -> Addresses:
    """Have the stack up, whatever an earlier test did to it."""
    return stack.up()


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    """Give a log file's path in a folder that does not exist yet."""
    return tmp_path / "logs" / "program.log"
