"""Run folders: one process at a time trains into one, and an earlier run in the way is moved whole or not at all."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from vilavt_toolkit.checkpoints import run_lock
from vilavt_toolkit.checkpoints.native import find_checkpoint
from vilavt_toolkit.checkpoints.run_folder import expand_home
from vilavt_toolkit.checkpoints.run_lock import RunLock
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import RunError
from vilavt_toolkit.training.reinforcement.run import run_reinforcement
from vilavt_toolkit.training.supervised.run import run_supervised


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    """A copy of the trained run."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def live():
    """A process that does nothing."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def move_aside(run: Path) -> None:
    with RunLock(run) as lock:
        lock.move_run_aside()


def write_lock(run: Path, process: int, host: str) -> None:
    run.mkdir(exist_ok=True)
    (run / ".lock").write_text(f"{process}\n{host}\n")


# --- The lock ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("stage", ["train", "rl"])
def test_a_second_run_into_a_folder_is_refused_while_the_first_lives(tiny_recipe, run, live, stage, resume):
    write_lock(run, live.pid, socket.gethostname())
    before = {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")}
    rl = ["rl={steps: 1, prompts_per_step: 1, group_size: 2}", f"rl.run={run}"]
    recipe = load_recipe(tiny_recipe, [f"run={run}", *(rl if stage == "rl" else ())])
    key = "rl.run" if stage == "rl" else "run"
    with pytest.raises(RunError, match=f"in use by process {live.pid} on .* another folder with `{key}=`"):
        (run_reinforcement if stage == "rl" else run_supervised)(recipe, resume)
    assert {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")} == before


def test_a_lock_whose_process_is_gone_is_taken_over(run, live):
    live.kill()
    live.wait()
    write_lock(run, live.pid, socket.gethostname())
    with RunLock(run, create=False):
        assert (run / ".lock").read_text().startswith(f"{os.getpid()}\n")
    assert not (run / ".lock").exists()


def test_a_lock_of_another_host_is_refused_with_what_removes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_SECONDS_UNNAMED", 0.0)
    write_lock(tmp_path / "my run", 7, "node-12")
    with (
        pytest.raises(RunError, match=r"process 7 on node-12.*remove its lock: rm '.*my run/\.lock'"),
        RunLock(tmp_path / "my run"),
    ):
        pass
    (tmp_path / "my run" / ".lock").write_text("")
    with pytest.raises(RunError, match=r"names no process.*rm '.*my run/\.lock'"), RunLock(tmp_path / "my run"):
        pass


def test_of_many_that_start_at_once_on_an_earlier_run_one_goes_on(run):
    told, everyone = list[str](), threading.Barrier(6)

    def start(number: int) -> None:
        everyone.wait()
        try:
            with RunLock(run) as lock:
                lock.move_run_aside()
                (run / "checkpoints").mkdir()
                (run / "owner").write_text(str(number))
                everyone.wait()
                assert (run / "owner").read_text() == str(number)
                told.append("ran")
        except RunError as error:
            told.append(str(error))
            everyone.wait()

    threads = [threading.Thread(target=start, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told.count("ran") == 1 and len(told) == 6
    assert all("in use by process" in each for each in told if each != "ran")
    assert [path.name for path in run.parent.glob("run.old-*")] == ["run.old-1"]
    assert find_checkpoint(run.parent / "run.old-1").name == "step-00000004"


def test_a_run_is_not_moved_away_from_under_its_evaluation(run, live):
    write_lock(run / "eval.unfinished-1", live.pid, socket.gethostname())
    for attempt in (lambda: move_aside(run), lambda: RunLock(run).__enter__()):
        with pytest.raises(RunError, match=f"process {live.pid} on .*, which evaluates the run in it"):
            attempt()
    with RunLock(run, create=False):
        pass  # it may be trained further
    live.kill()
    live.wait()
    move_aside(run)
    assert not run.exists() and not list(run.parent.glob("run.old-1/*/.lock"))


def test_a_lock_left_by_a_start_that_was_killed_is_no_run(tmp_path):
    write_lock(tmp_path / "run", 2**22 + 1, socket.gethostname())
    move_aside(tmp_path / "run")
    assert not list(tmp_path.glob("*.old-1"))


# --- Folders -------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_built(tiny_recipe, tmp_path):
    task = "task={name: conversations, files: [missing.json]}"
    for run in ("/proc/run", tmp_path / "tiny.yaml" / "run"):
        with pytest.raises(RunError, match=r"cannot be written|is a file"):
            run_supervised(load_recipe(tiny_recipe, [f"run={run}", task]))
    assert not (tmp_path / "run").exists()


def test_what_fails_before_the_first_step_leaves_no_folder(tiny_recipe, tmp_path):
    with pytest.raises(RuntimeError), RunLock(tmp_path / "a" / "b" / "run"):
        assert (tmp_path / "a" / "b" / "run" / ".lock").is_file()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_behind_a_link_the_run_it_leads_to_is_moved_and_the_link_stays(run, tmp_path):
    link = tmp_path / "links" / "latest"
    link.parent.mkdir()
    link.symlink_to(run)
    move_aside(link)
    assert link.is_symlink() and Path(os.readlink(link)) == run
    assert find_checkpoint(tmp_path / "run.old-1").name == "step-00000004"
    # A link that leads nowhere yet is a new run there.
    with RunLock(link) as lock:
        lock.move_run_aside()
        assert (run / ".lock").is_file() and link.is_symlink()


def refused(run: Path, words: str) -> None:
    """A new run into the folder is one sentence, and touches nothing."""
    top = Path(run.parent.resolve())
    before = sorted(top.rglob("*"))
    with pytest.raises(RunError, match=words) as error:
        move_aside(run)
    assert "\n" not in str(error.value) and sorted(top.rglob("*")) == before


def test_only_a_run_is_moved_out_of_the_way(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "photos", "holds files that are no run.*`run=`")
    refused(tmp_path / "file", "is a file.*`run=`")
    monkeypatch.chdir(tmp_path / "photos")
    refused(Path("."), "no run")
    refused(Path(".."), "no run")
    for kind in ("recipe.yaml", "checkpoints", "eval"):
        (tmp_path / "run" / kind).mkdir(parents=True)
        move_aside(Path("../run"))
        assert not (tmp_path / "run").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "file", "run.old-1", "run.old-2", "run.old-3"}


@pytest.mark.parametrize("name", ["eval", "eval-small", "eval.old-1", "eval-small.unfinished-1"])
def test_a_folder_with_evaluations_alone_can_become_a_run(tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    move_aside(tmp_path / "run")
    assert (tmp_path / "run.old-1" / name).is_dir()


@pytest.mark.parametrize("name", ["", "  "])
def test_blanks_name_no_folder(name):
    with pytest.raises(RunError, match=r"names no folder"):
        expand_home(name)


def test_the_folder_one_is_in_is_not_moved_away(run, tmp_path, monkeypatch):
    (run / "notes").mkdir()
    monkeypatch.chdir(run / "notes")
    refused(Path(".."), "the folder you are in")
    refused(run, "the folder you are in")
    move_aside(Path("."))  # empty
    assert (run / "notes").is_dir()


def test_a_run_that_cannot_be_moved_is_one_sentence(run, monkeypatch):
    def fail(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", fail)
    refused(run, r"cannot be moved \(Permission denied\)")
    assert run.is_dir()


def test_a_name_that_is_too_long_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match="File name too long"):
        move_aside(tmp_path / ("x" * 300))
