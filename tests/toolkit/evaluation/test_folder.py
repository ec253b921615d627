"""Evaluations on disk: nothing that was measured is lost, and none replaces another."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from vilavt_toolkit.contracts import Sample, Trajectory
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.evaluation import folder as folders
from vilavt_toolkit.evaluation.arms import EvaluatedItem
from vilavt_toolkit.evaluation.folder import EvaluationFolder, find_evaluation_folder, name_evaluation_folder
from vilavt_toolkit.evaluation.run import evaluate_run

QUICK = ["eval.items=4", "eval.max_new_tokens=4", "eval.batch_size=1", "eval.arms=[modulated]"]


def item(number: int) -> EvaluatedItem:
    return EvaluatedItem("modulated", Sample(str(number), "what?", "7", ()), Trajectory(), 0, 1.0)


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def ids(file: Path) -> list[str]:
    return [json.loads(line)["id"] for line in file.read_text().splitlines()]


def test_items_are_on_disk_as_soon_as_they_end(tmp_path):
    folder = EvaluationFolder(tmp_path / "eval")
    assert folder.path is None and not list(tmp_path.iterdir())
    for number in range(3):
        folder.add_item(item(number))
        assert ids(tmp_path / "eval.unfinished-1" / "items.jsonl") == [str(each) for each in range(number + 1)]
    folder.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["eval"]


def test_an_earlier_evaluation_is_moved_aside_and_two_at_once_share_nothing(tmp_path):
    both = [EvaluationFolder(tmp_path / "eval") for _ in range(2)]
    for number, folder in enumerate(both):
        folder.add_item(item(number))
    for folder in both:
        folder.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "eval.old-1"]
    assert ids(tmp_path / "eval.old-1" / "items.jsonl") == ["0"]
    assert ids(tmp_path / "eval" / "items.jsonl") == ["1"]


def test_an_evaluation_that_fails_keeps_the_items_that_ended(run, monkeypatch, caplog):
    evaluate_run(run, QUICK, Console(quiet=True))
    whole = ids(run / "eval" / "items.jsonl")
    original = folders.EvaluationFolder.add_item

    def fail_at_the_third(self, item):
        if item.sample.id == whole[2]:
            raise InputError("item 3 is bad")
        original(self, item)

    monkeypatch.setattr(folders.EvaluationFolder, "add_item", fail_at_the_third)
    with pytest.raises(InputError, match="item 3 is bad"):
        evaluate_run(run, QUICK, Console(quiet=True))
    assert ids(run / "eval.unfinished-1" / "items.jsonl") == whole[:2]
    assert "eval.unfinished-1" in caplog.text
    assert ids(run / "eval" / "items.jsonl") == whole, "the earlier evaluation stands"


def test_a_full_disk_costs_the_files_and_not_the_table(run, monkeypatch, tmp_path):
    def refuse(base):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "_make_free_folder", refuse)
    console = Console(record=True, width=200, file=(tmp_path / "shown.txt").open("w"))
    with pytest.raises(InputError, match=r"cannot be written .No space left on device."):
        evaluate_run(run, QUICK, console)
    assert "accuracy in %" in console.export_text()
    assert not list(run.glob("eval*"))


def test_evaluations_of_several_names_stand_beside_each_other(run):
    for name in (None, "short"):
        evaluate_run(run, QUICK, Console(quiet=True), name)
    assert {path.name for path in run.glob("eval*")} == {"eval", "eval-short"}
    assert find_evaluation_folder(run) == run / "eval"
    assert find_evaluation_folder(run / "eval-short") == run / "eval-short"


@pytest.mark.parametrize("name", ["", "../out", "a/b", ".hidden", "a b", "x" * 101])
def test_a_name_that_is_no_folder_s_is_refused(name):
    with pytest.raises(UsageError, match=r"--name .* cannot name a folder"):
        name_evaluation_folder(Path("run"), name)


def test_a_folder_that_is_being_written_is_locked_and_a_finished_one_is_not(tmp_path):
    folder = EvaluationFolder(tmp_path / "eval")
    folder.add_item(item(1))
    assert folder.path is not None and (folder.path / ".lock").is_file()
    folder.finish()
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["items.jsonl"]
