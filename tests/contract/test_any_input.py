"""Whatever a client sends, the running server answers with something that its OpenAPI document tells of.

Schemathesis makes the input up from the document: valid and invalid, by its examples, at its limits, at random, and
along its links. It looks for statuses, media types, bodies and headers that are not described, for 500s, for valid
input refused and invalid input taken, for methods and tokens that are not looked at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from coupons.api import examples
from couponsite.auth.tokens import ISSUE_FOR_OTHERS, issue_access_token
from demo.processes import WebProcess, wait_until_ready
from devstack.ports import free_port
from tests.support.service import environment

pytestmark = pytest.mark.django_db(transaction=True)

_CONFIG = Path(__file__).with_name("schemathesis.toml")
# Logging in looks at no token.
_ALL_BUT_LOGIN = ["--exclude-tag", "auth"]


@pytest.fixture(scope="module")
def port(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a web process on the test database."""
    number = free_port()
    env = environment(
        PORT=str(number),
        HOST="127.0.0.1",
        WEB_CONCURRENCY="1",
        AUTH_TOKEN_THROTTLE="1000000/min",
        DJANGO_SETTINGS_MODULE="tests.contract.settings",
    )
    with WebProcess(env, tmp_path_factory.mktemp("web") / "web.log") as web:
        wait_until_ready(web, number)
        yield number


def searched(port: int, folder: Path, token: str, selection: Sequence[str]) -> set[tuple[str, int]]:
    """Let Schemathesis search as the bearer of ``token``; fails with its report, returns methods and statuses seen."""
    report = folder / "calls.har"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(_CONFIG)),
            *("run", f"http://127.0.0.1:{port}/api/schema", "--report-har-path", str(report), *selection),
        ],
        env={**os.environ, "TOKEN": token, "SCHEMATHESIS_HOOKS": str(_CONFIG.with_name("schemathesis_hooks.py"))},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    entries = json.loads(report.read_text())["log"]["entries"]
    return {(entry["request"]["method"], entry["response"]["status"]) for entry in entries}


def test_a_user_gets_described_answers(cast: None, port: int, tmp_path: Path) -> None:
    seen = searched(port, tmp_path, issue_access_token(examples.USER_ID), _ALL_BUT_LOGIN)
    assert {("GET", status) for status in (200, 400, 401, 403, 404)} <= seen
    assert {("POST", status) for status in (200, 201, 202, 400, 401, 403, 404, 409, 415, 422)} <= seen
    assert {("DELETE", 405)} <= seen


def test_somebody_who_may_act_for_others_gets_described_answers(cast: None, port: int, tmp_path: Path) -> None:
    seen = searched(port, tmp_path, issue_access_token(5, ISSUE_FOR_OTHERS), _ALL_BUT_LOGIN)
    assert {("GET", 200), ("POST", 202)} <= seen
    assert ("POST", 403) not in seen


def test_somebody_without_a_token_gets_described_answers(cast: None, port: int, tmp_path: Path) -> None:
    seen = searched(port, tmp_path, "", ["--phases", "examples,coverage,fuzzing"])
    assert {("POST", status) for status in (200, 400, 401, 415)} <= seen
    assert ("POST", 202) not in seen
