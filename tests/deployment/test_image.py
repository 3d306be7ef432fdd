"""The Dockerfile keeps to good manners, and what it runs and copies works and exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment.files import (
    ROOT,
    copied_into_image,
    dockerfile,
    final_stage,
    ignored_for_image,
    procfile,
    requires_python,
)

DUMMY = re.compile(r"\b(SECRET_KEY|DATABASE_URL|REDIS_URL|KAFKA_BOOTSTRAP_SERVERS)=(\S+)")


def runs() -> list[str]:
    """The shell of every RUN, without its options."""
    return [re.sub(r"^(--\S+\s+)+", "", one.arguments) for one in dockerfile() if one.name == "RUN"]


def collecting() -> str:
    (shell,) = (shell for shell in runs() if "collectstatic" in shell)
    return shell


# What it is made of


def test_every_base_is_pinned_or_a_stage() -> None:
    stages: set[str] = set()
    for arguments in (one.arguments for one in dockerfile() if one.name == "FROM"):
        base, _, stage = arguments.partition(" AS ")
        if base not in stages:
            assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", base)
        stages.add(stage)


def test_the_python_is_one_that_the_project_supports() -> None:
    (oldest,) = re.findall(r">=3\.(\d+)", requires_python())
    (minor,) = re.findall(r"python:3\.(\d+)\.", dockerfile()[0].arguments)
    assert int(minor) >= int(oldest)


def test_only_runtime_packages_are_installed() -> None:
    installing = [shell for shell in runs() if re.search(r"\bpip (install|wheel)\b", shell)]
    assert len(installing) == 2
    for shell in installing:
        assert re.findall(r"--requirement (\S+)", shell) == ["requirements.txt"]
        assert "--no-cache-dir" in shell
        assert "--require-hashes" in shell
    assert not any("requirements-dev" in one.arguments for one in dockerfile())


def test_the_image_installs_from_the_wheels_alone() -> None:
    (shell,) = (shell for shell in runs() if "pip install" in shell)
    assert "--no-index" in shell
    assert not any("/wheels" in arguments for arguments in final_stage("COPY"))


def test_package_lists_are_cleaned_where_they_are_fetched() -> None:
    for shell in runs():
        if "apt-get" in shell:
            assert "--no-install-recommends" in shell
            assert "rm -rf /var/lib/apt/lists/*" in shell


def test_nothing_is_fetched_but_packages() -> None:
    assert not [one for one in dockerfile() if one.name == "ADD"]
    assert not any(re.search(r"\b(curl|wget|git clone)\b|https?://", one.arguments) for one in dockerfile())


# What it may contain


@pytest.mark.parametrize("path", copied_into_image())
def test_what_is_copied_exists_and_reaches_the_builder(path: str) -> None:
    assert (ROOT / path).exists()
    assert not ignored_for_image(path)


@pytest.mark.parametrize(
    "path",
    [
        ".git",
        ".git/config",
        ".env",
        ".env.example",
        ".venv/bin/python",
        ".devstack/demo/state.json",
        "tests/conftest.py",
        "devstack/__main__.py",
        "benchmarks/report.py",
        "fuzz/run.py",
        "staticfiles/staticfiles.json",
        "couponsite/__pycache__/settings.cpython-311.pyc",
        "demo/sale.py",
        "demo/management/commands/demo.py",
    ],
)
def test_what_is_no_part_of_the_service_stays_outside(path: str) -> None:
    assert ignored_for_image(path)


@pytest.mark.parametrize(
    "path",
    ["couponsite/settings.py", "coupons/migrations/0001_initial.py", "templates/base.html", "docs/operations.md"],
)
def test_what_is_part_of_the_service_gets_in(path: str) -> None:
    assert (ROOT / path).is_file()
    assert not ignored_for_image(path)


def test_every_app_is_copied() -> None:
    apps = {path.parent.name for path in ROOT.glob("*/apps.py")}
    assert apps <= set(copied_into_image())


def test_no_secret_is_left_in_a_layer() -> None:
    for one in dockerfile():
        if one.name in ("ENV", "ARG", "LABEL"):
            assert not re.search(r"SECRET|PASSWORD|TOKEN|KEY|_URL", one.arguments)
    assert len(DUMMY.findall(collecting())) == 4
    for name, value in DUMMY.findall(collecting()):
        # The discard port of this machine, where no process listens.
        assert "127.0.0.1:9" in value or (name == "SECRET_KEY" and value.endswith("which-signs-nothing"))


# How it runs


def test_it_runs_as_an_ordinary_user_named_by_number() -> None:
    (user,) = final_stage("USER")
    uid, _, gid = user.partition(":")
    assert int(uid) >= 10000
    assert int(gid) >= 10000
    # The files are root's: an intruder in the service cannot change it.
    assert not any("--chown" in arguments for arguments in final_stage("COPY"))
    assert not any("chmod" in shell for shell in runs())


def test_nothing_is_done_as_root_after_the_user_is_chosen() -> None:
    names = [one.name for one in dockerfile()]
    assert set(names[names.index("USER") + 1 :]) <= {"EXPOSE", "CMD"}


def test_its_command_is_the_web_process_and_gets_signals(tmp_path: Path) -> None:
    command = json.loads(final_stage("CMD")[0])
    (tmp_path / "Procfile").write_text(
        "worker: false\nweb: true && exec sh -c 'echo $$ ${PORT:-8000}'\nwebcam: false\n"
    )
    environment = {"PATH": os.environ["PATH"]}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=10)
    # A shell that stayed would have another id, and keep SIGTERM to itself.
    assert output == f"{process.pid} 8000\n"
    assert " && exec " in procfile()["web"]
    assert "Procfile" in copied_into_image()
    assert not final_stage("ENTRYPOINT")


def test_python_writes_logs_at_once_and_no_bytecode() -> None:
    variables = dict(pair.split("=") for arguments in final_stage("ENV") for pair in arguments.split())
    assert variables["PYTHONUNBUFFERED"] == variables["PYTHONDONTWRITEBYTECODE"] == "1"


def test_static_files_are_collected_as_the_dockerfile_does_it(tmp_path: Path) -> None:
    """The very command of the Dockerfile, on what the image has: copied where it is, ignored where it is ignored."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(ROOT)
        return {name for name in names if ignored_for_image(str(inside / name))}

    for path in copied_into_image():
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, tmp_path / path, ignore=ignore)
        else:
            shutil.copy(ROOT / path, tmp_path / path)
    subprocess.run(
        ["sh", "-ec", collecting()],
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    manifest = json.loads((tmp_path / "staticfiles/staticfiles.json").read_text())["paths"]
    named_by_content = manifest["couponsite/site.css"]
    assert named_by_content != "couponsite/site.css"
    assert (tmp_path / "staticfiles" / named_by_content).is_file()
    assert (tmp_path / "staticfiles" / f"{named_by_content}.gz").is_file()
