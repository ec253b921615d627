"""The state of git that a run is started in."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from vilavt_toolkit.utils.git_state import describe_git_state

NAME = ["-c", "user.name=a", "-c", "user.email=a@b"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_branch_and_changes_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_git_state(tmp_path) == {}

    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *NAME, *arguments], check=True, capture_output=True)

    git("init", "-b", "trunk")
    assert describe_git_state(tmp_path) == {}, "no commit yet"
    (tmp_path / "a.txt").write_text("a")
    git("add", ".")
    git("commit", "-m", "first")
    found = describe_git_state(tmp_path)
    assert len(found.pop("commit")) == 40
    assert found == {"branch": "trunk", "is_changed": False, "changed": []}
    (tmp_path / "b.txt").write_text("b")
    assert describe_git_state(tmp_path)["changed"] == ["?? b.txt"] and describe_git_state(tmp_path)["is_changed"]


def test_a_machine_without_git_has_no_state(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_git_state(tmp_path) == {}
