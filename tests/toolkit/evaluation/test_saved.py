"""Saved evaluations: whatever is wrong with a file is told in a sentence that names it."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vilavt_toolkit.errors import RunError, VilavtError
from vilavt_toolkit.evaluation.compare import RunSummary, TextTable, build_modulator_table, read_summaries, write_table
from vilavt_toolkit.evaluation.compare_encoders import EncoderRun, build_encoder_table, read_encoder_runs
from vilavt_toolkit.evaluation.compare_stages import read_stage_items
from vilavt_toolkit.evaluation.saved import read_cost, read_items, read_summary

ESTIMATE = {"mean": 0.5, "low": 0.4, "high": 0.6, "items": 8, "clusters": 4}
ARM = {"accuracy": {"needs a zoom": ESTIMATE, "all": ESTIMATE}, "metrics": {}, "calls": 1.0, "answered": 1.0}
SUMMARY = {
    "arms": dict.fromkeys(("single_pass", "modulated", "unmodulated", "shuffled"), ARM),
    "differences": [{"first": "modulated", "second": "unmodulated", "subset": "needs a zoom", **ESTIMATE}],
    "recipe": {"task": {}, "eval": {}, "model": {"encoder": {"name": "timm"}, "modulator": [{"name": "film"}]}},
    "step": 4,
    "seed": 0,
    "versions": {"torch": "2"},
    "format": 2,
}
COST = {"parameters": {"encoder": 10}, "seconds_per_step": 0.1, "device": "cpu", "threads": 1}
ITEM = {"arm": "modulated", "id": "0", "score": 1.0, "calls": 0, "tags": {"group": "a"}}
JUNK = st.sampled_from([None, True, -1, 1e400, float("nan"), "x", [], {}, [1], {"a": 1}, 10**400])


def list_places(value: Any, path: tuple = ()) -> list[tuple]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in pairs for place in list_places(each, (*path, key)))]


def put(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    changed = copy.deepcopy(value)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return changed


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "eval").mkdir()
    return folder


def write(run: Path, summary: Any = SUMMARY, cost: Any = COST, items: Any = (ITEM,)) -> None:
    (run / "eval" / "summary.json").write_text(json.dumps(summary))
    (run / "cost.json").write_text(json.dumps(cost))
    (run / "eval" / "items.jsonl").write_text("".join(json.dumps(each) + "\n" for each in items))


@given(st.data())
def test_a_damaged_evaluation_gives_its_tables_or_a_sentence(run, data):
    summary = put(SUMMARY, data.draw(st.sampled_from(list_places(SUMMARY))), data.draw(JUNK))
    cost = put(COST, data.draw(st.sampled_from(list_places(COST))), data.draw(JUNK))
    item = put(ITEM, data.draw(st.sampled_from(list_places(ITEM))), data.draw(JUNK))
    write(run, summary, cost, [item, {**ITEM, "arm": "single_pass"}])
    for build in (
        lambda: build_modulator_table(read_summaries([run])),
        lambda: build_encoder_table(read_encoder_runs([run])),
        lambda: [stage.format_row() for stage in read_stage_items([run])],
    ):
        try:
            build()
        except VilavtError as error:
            assert str(run) in str(error) and len(str(error)) < 700


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "null", '{"arms": {}}', "\ud800"])
def test_a_file_that_is_no_evaluation_is_named(run, text):
    write(run)
    (run / "eval" / "summary.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunError, match=r"summary\.json cannot be read"):
        read_summaries([run])


@pytest.mark.parametrize("file", ["eval/summary.json", "eval/items.jsonl", "cost.json"])
def test_of_a_key_that_stands_twice_neither_value_is_taken(run, file):
    write(run)
    path = run / file
    path.write_text(path.read_text().replace("{", '{"seed": 1, "seed": 2, ', 1))
    with pytest.raises(RunError, match=r"cannot be read \(the key 'seed' stands twice in one object\)"):
        for read in (read_summary, read_cost, lambda folder: list(read_items(folder))):
            read(run)


@pytest.mark.parametrize("file", ["eval/summary.json", "eval/items.jsonl", "cost.json"])
def test_a_pipe_or_a_device_in_the_place_of_a_file_is_not_waited_for(tmp_path, file):
    (tmp_path / "eval").mkdir()
    write(tmp_path)
    path, read = (
        tmp_path / file,
        {"summary.json": read_summary, "cost.json": read_cost}.get(
            Path(file).name, lambda folder: list(read_items(folder))
        ),
    )
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RunError, match=r"cannot be read \(it is no file but a folder, a pipe or a device\)"):
        read(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(RunError, match="a pipe or a device"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["folder.md", "pipe.md", "bytes.md", "a" * 300 + ".md", "a\0.md"])
def test_a_table_is_not_written_into_what_is_no_text(tmp_path, name):
    (tmp_path / "folder.md").mkdir()
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "bytes.md").write_bytes(b"\xff<!-- vilavt compare -->")
    table = TextTable(["run"], [["a"]], 1, "no numbers")
    with pytest.raises(VilavtError, match=r"cannot be (read|written)"):
        write_table(table, tmp_path / name)


@pytest.mark.parametrize(("folder", "words"), [("", "vilavt eval {run}"), ("eval-big", "vilavt eval {run} --name big")])
def test_an_evaluation_that_is_missing_is_told_with_the_command_that_makes_it(tmp_path, folder, words):
    run = tmp_path
    (run / "checkpoints").mkdir()
    for read in (read_summary, lambda path: list(read_items(path))):
        with pytest.raises(RunError) as error:
            read(run / folder)
        assert str(error.value).endswith("Do that first: " + words.format(run=run))


def test_the_line_of_a_damaged_item_is_told(run):
    write(run, items=[ITEM, {**ITEM, "score": "high"}])
    with pytest.raises(RunError, match=r"line 2: score is 'high' .*must be a number"):
        list(read_items(run))


def test_a_whole_evaluation_makes_all_tables(run):
    write(run)
    (found,) = read_summaries([run])
    assert build_modulator_table([found]).rows[0][1] == "film"
    assert build_encoder_table([EncoderRun(RunSummary(str(run), SUMMARY), COST)]).rows[0][1] == "timm"
