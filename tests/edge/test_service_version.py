"""The version that processes report: of the project, and in a checkout with its commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from couponsite.version import service_version

COMMIT = "4f2a90c1b7d3e5f60718293a4b5c6d7e8f901234"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    return tmp_path


def checkout(git: Path, head: str) -> None:
    git.mkdir(parents=True)
    (git / "HEAD").write_text(f"{head}\n")


def test_without_a_checkout_it_is_that_of_the_project(root: Path) -> None:
    assert service_version(root) == "1.2.3"


def test_without_anything_it_is_empty(tmp_path: Path) -> None:
    assert service_version(tmp_path) == ""


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_branch_names_its_commit(root: Path, is_packed: bool) -> None:
    checkout(root / ".git", "ref: refs/heads/main")
    if is_packed:
        (root / ".git/packed-refs").write_text(f"# pack-refs\n{'0' * 40} refs/heads/other\n{COMMIT} refs/heads/main\n")
    else:
        (root / ".git/refs/heads").mkdir(parents=True)
        (root / ".git/refs/heads/main").write_text(f"{COMMIT}\n")
    assert service_version(root) == "1.2.3+4f2a90c1b7d3"


def test_a_commit_may_be_checked_out_without_a_branch(root: Path) -> None:
    checkout(root / ".git", COMMIT)
    assert service_version(root) == "1.2.3+4f2a90c1b7d3"


def test_a_worktree_names_its_commit(root: Path) -> None:
    common = root / "elsewhere/.git"
    checkout(common / "worktrees/one", "ref: refs/heads/topic")
    (common / "worktrees/one/commondir").write_text("../..\n")
    (common / "refs/heads").mkdir(parents=True)
    (common / "refs/heads/topic").write_text(f"{COMMIT}\n")
    (root / ".git").write_text(f"gitdir: {common / 'worktrees/one'}\n")
    assert service_version(root) == "1.2.3+4f2a90c1b7d3"


def test_a_branch_without_a_commit_names_none(root: Path) -> None:
    checkout(root / ".git", "ref: refs/heads/main")
    assert service_version(root) == "1.2.3"
