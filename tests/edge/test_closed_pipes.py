"""``command | head -1``: the reader goes away, and the command ends without a word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from django.conf import settings

from tests.support.service import environment

KILLED_BY_A_PIPE = 128 + signal.SIGPIPE


def started(*arguments: str, stdout: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "manage.py", *arguments],
        cwd=settings.BASE_DIR,
        env={**os.environ, **environment()},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_quiet(command: subprocess.Popen[str]) -> None:
    """It ended by the pipe and said nothing of it: at most it logged what it did."""
    _, said = command.communicate(timeout=60)
    levels = [json.loads(line)["level"] for line in said.splitlines()]
    assert (command.returncode, set(levels) <= {"info"}) == (KILLED_BY_A_PIPE, True), said


def test_a_reader_that_has_enough_ends_the_command_quietly(db: None) -> None:
    command = started("issue_tokens", "--users", "1-1000000", stdout=subprocess.PIPE)
    assert command.stdout is not None
    assert command.stdout.readline().count(".") == 2
    command.stdout.close()
    assert_quiet(command)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "arguments",
    [("issue_tokens", "--users", "1"), ("create_product", "Socks", "--price", "1"), ("check_invariants",), ("--help",)],
)
def test_a_reader_that_was_never_there_is_no_traceback(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = started(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert_quiet(command)
