from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def logged(code: str) -> list[dict[str, Any]]:
    """What a process of ours that runs ``code`` writes to stderr."""
    process = subprocess.run(
        [sys.executable, "manage.py", "shell", "--no-imports", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert process.stdout == ""
    return [json.loads(line) for line in process.stderr.splitlines()]


def test_a_line_is_json_with_what_was_bound() -> None:
    (line,) = logged(
        "import structlog\n"
        "structlog.contextvars.bind_contextvars(requestId='r1')\n"
        "structlog.get_logger('shop').info('sold', coupon='SUMMER')\n"
    )
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "sold", "coupon": "SUMMER", "requestId": "r1", "logger": "shop", "level": "info"}


def test_the_standard_library_logs_the_same_lines() -> None:
    (line,) = logged("import logging; logging.getLogger('lib').warning('took %d ms', 5)")
    assert (line["event"], line["logger"], line["level"]) == ("took 5 ms", "lib", "warning")


def test_an_exception_shows_where_but_not_the_values_around_it() -> None:
    (line,) = logged(
        "import structlog\n"
        "def sell(card='4111'):\n    raise ValueError('no')\n"
        "try:\n    sell()\n"
        "except ValueError:\n    structlog.get_logger().exception('failed')\n"
    )
    assert "ValueError: no" in line["exception"]
    assert "4111" not in line["exception"]


@pytest.mark.parametrize("name", ["token", "password", "authorization", "payload", "body"])
def test_credentials_and_payloads_are_hidden(name: str) -> None:
    (line,) = logged(f"import structlog; structlog.get_logger().info('x', {name}='hunter2')")
    assert line[name] == "[hidden]"


def test_refusals_are_no_log_lines() -> None:
    assert not logging.getLogger("django.request").isEnabledFor(logging.WARNING)


def test_a_client_that_complains_without_end_is_heard_now_and_then() -> None:
    lines = logged(
        "import logging\n"
        "for n in range(100):\n"
        "    logging.getLogger('librdkafka').error('FAIL [thrd] connection %d refused', n)\n"
        "logging.getLogger('librdkafka').error('GETPID [thrd] something else')\n"
        "logging.getLogger('other').error('FAIL a')\n"
        "logging.getLogger('other').error('FAIL b')\n"
    )
    assert [line["event"] for line in lines] == [
        "FAIL [thrd] connection 0 refused",
        "GETPID [thrd] something else",
        "FAIL a",
        "FAIL b",
    ]
