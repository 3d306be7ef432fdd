"""``command | head -1``: the reader goes away, and the command ends without a word."""

from __future__ import annotations

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


def test_a_reader_that_has_enough_ends_the_command_quietly(db: None) -> None:
    command = started("issue_tokens", "--users", "1-1000000", stdout=subprocess.PIPE)
    assert command.stdout is not None
    assert command.stdout.readline().count(".") == 2
    command.stdout.close()
    _, said = command.communicate(timeout=60)
    assert (command.returncode, said) == (KILLED_BY_A_PIPE, "")


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
    _, said = command.communicate(timeout=60)
    assert (command.returncode, said) == (KILLED_BY_A_PIPE, "")
