"""Prepared samples that runs share: the same to the bit, and never those of another recipe, file or code."""

from __future__ import annotations

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from vilavt_toolkit.checkpoints.loading import build_model
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.data.row_budget import build_row_budget
from vilavt_toolkit.training.supervised import cached_samples
from vilavt_toolkit.training.supervised.data import PreparedDataset, TraceDataset
from vilavt_toolkit.training.supervised.run import run_supervised
from vilavt_toolkit.training.supervised.sample_cache import SampleCache
from vilavt_toolkit.training.supervised.sample_key import build_sample_key

MIB = 2**20


class CountingTask:
    """Keeps the indices of the samples that are asked for."""

    def __init__(self, task):
        self.task, self.asked = task, []

    def __getattr__(self, name):
        return getattr(self.task, name)

    def sample(self, split, index):
        self.asked.append(index)
        return self.task.sample(split, index)


def prepare(model, task, indices, cache, workers=0):
    counting = CountingTask(task)
    rows = PreparedDataset(TraceDataset(model, counting, 32), indices, workers, 60.0, cache=cache)
    return rows, counting.asked


def is_same(first, second) -> bool:
    views = list(zip(first[1], second[1], strict=True))
    return first[0] == second[0] and all(a.size == b.size and torch.equal(a.data, b.data) for a, b in views)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_run_gets_the_samples_of_the_first_to_the_bit(tiny_model, tiny_task, tmp_path, workers):
    first, _ = prepare(tiny_model, tiny_task, range(20), SampleCache(tmp_path, "key", MIB), workers)
    second, asked = prepare(tiny_model, tiny_task, range(5, 25), SampleCache(tmp_path, "key", MIB))
    assert len(second) == 20 and all(is_same(first[index], second[index]) for index in range(5, 20))
    # The new ones, one of them twice to see whether it names files, and the few that are compared.
    assert len(asked) == 5 + 1 + 3 and set(range(20, 25)) < set(asked)
    third, asked = prepare(tiny_model, tiny_task, range(25), SampleCache(tmp_path, "key", MIB))
    assert len(third) == 25 and len(asked) == 3
    assert not list((tmp_path / "key").glob(".*")), "nothing is left half written"


def test_another_key_has_samples_of_its_own(tiny_model, tiny_task, tmp_path):
    prepare(tiny_model, tiny_task, range(4), SampleCache(tmp_path, "key", MIB))
    assert not SampleCache(tmp_path, "other", MIB).load(range(4), lambda index, facts: True)


@pytest.mark.parametrize("place", [0.001, 0.02, 0.5, 0.99])
def test_a_file_that_is_damaged_is_left_out_and_made_again(tiny_model, tiny_task, tmp_path, place, caplog):
    first, _ = prepare(tiny_model, tiny_task, range(8), SampleCache(tmp_path, "key", MIB))
    (file,) = (tmp_path / "key").iterdir()
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 0x10
    file.write_bytes(data)
    second, _ = prepare(tiny_model, tiny_task, range(8), SampleCache(tmp_path, "key", MIB))
    assert "is damaged" in caplog.text and all(is_same(first[index], second[index]) for index in range(8))
    file.write_bytes(bytes(data[: len(data) // 2]))
    assert not SampleCache(tmp_path, "key", MIB).load(range(8), lambda index, facts: True)


def test_samples_that_would_be_prepared_otherwise_are_noticed(tiny_model, tiny_task, tmp_path, caplog):
    prepare(tiny_model, tiny_task, range(8), SampleCache(tmp_path, "key", MIB))

    class Changed(CountingTask):
        def sample(self, split, index):
            found = self.task.sample(split, index)
            return dataclasses.replace(found, question=found.question + " Now?")

    cache = SampleCache(tmp_path, "key", MIB)
    rows = PreparedDataset(TraceDataset(tiny_model, Changed(tiny_task), 32), range(8), 0, 60.0, cache=cache)
    assert "no longer the same" in caplog.text
    assert is_same(rows[2], TraceDataset(tiny_model, Changed(tiny_task), 32)[2])


def test_room_is_made_by_throwing_away_what_was_used_longest_ago(tiny_model, tiny_task, tmp_path):
    prepare(tiny_model, tiny_task, range(8), SampleCache(tmp_path, "0", MIB))
    size = sum(file.stat().st_size for file in (tmp_path / "0").iterdir())
    most = int(2.5 * size)
    prepare(tiny_model, tiny_task, range(8), SampleCache(tmp_path, "1", most))
    for age, name in [(50, "0"), (100, "1")]:
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    SampleCache(tmp_path, "1", most).load(range(8), lambda index, facts: True)
    prepare(tiny_model, tiny_task, range(8), SampleCache(tmp_path, "2", most))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["1", "2"]
    prepare(tiny_model, tiny_task, range(8), SampleCache(tmp_path, "3", size // 2))
    assert not (tmp_path / "3").exists(), "samples that are larger than the whole cache are not kept"


def test_runs_that_prepare_the_same_at_once_end_with_whole_files(tiny_model, tiny_task, tmp_path):
    def run(_):
        return prepare(tiny_model, tiny_task, range(16), SampleCache(tmp_path, "key", MIB))[0]

    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(run, range(4)))
    found = SampleCache(tmp_path, "key", MIB).load(range(16), lambda index, facts: True)
    assert len(found) == 16 and len(list((tmp_path / "key").iterdir())) == 1
    assert all(is_same(found[index], each[index]) for each in rows for index in range(16))


def test_a_cache_that_cannot_be_written_ends_no_run(tiny_model, tiny_task, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    rows, _ = prepare(tiny_model, tiny_task, range(4), SampleCache(tmp_path / "file", "key", MIB))
    assert len(rows) == 4 and "not kept for other runs" in caplog.text


def test_values_that_json_would_change_are_not_kept(tiny_model, tiny_task, tmp_path):
    trajectory, views = TraceDataset(tiny_model, tiny_task, 32)[0]
    changed = dataclasses.replace(trajectory, why=("a", "tuple"))
    cache = SampleCache(tmp_path, "key", MIB)
    cache.store({0: (changed, views)}, {})
    assert not cache.load([0], lambda index, facts: True)


def key_of(recipe_file, *overrides):
    recipe = load_recipe(recipe_file, list(overrides))
    model, task = build_model(recipe), recipe.recipe.task.build()
    return build_sample_key(recipe, model, task, build_row_budget(recipe.recipe.train, model))


def test_only_settings_that_samples_depend_on_are_in_their_key(tiny_recipe):
    key = key_of(tiny_recipe)
    assert key_of(tiny_recipe, "seed=5", "train.steps=9", "train.batch_size=2", "model.integration=all") == key
    others = ["task.difficulty=1", "model.dialogue.demand=Now answer.", "train.pack_tokens=300"]
    others.append("model.encoder.zoom_pixels=512")
    assert len({key, *(key_of(tiny_recipe, other) for other in others)}) == 1 + len(others)


@pytest.fixture
def own_data(tmp_path):
    """A recipe's settings and an image that its data file names."""
    image = tmp_path / "one.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(image)
    turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "noise"}]
    (tmp_path / "data.json").write_text(json.dumps([{"images": ["one.png"], "conversations": turns}] * 6))
    return image, {"name": "conversations", "files": str(tmp_path / "data.json"), "val_share": 0.0}


def test_an_image_that_has_changed_is_read_again(tiny_model, own_data, tmp_path):
    from vilavt_toolkit.registry import tasks

    image, settings = own_data
    entry = tasks.snapshot()["conversations"]
    task = entry.cls(entry.config(files=settings["files"]))
    first, _ = prepare(tiny_model, task, range(6), SampleCache(tmp_path / "cache", "key", MIB))
    same, _ = prepare(tiny_model, task, range(6), SampleCache(tmp_path / "cache", "key", MIB))
    assert is_same(first[0], same[0])
    Image.new("RGB", (64, 64), "red").save(image)
    second, _ = prepare(tiny_model, task, range(6), SampleCache(tmp_path / "cache", "key", MIB))
    assert not any(is_same(first[index], second[index]) for index in range(6))


def test_a_second_run_of_a_recipe_prepares_nothing(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("VILAVT_CACHE_HOME", str(tmp_path / "home"))
    seen = []
    load = cached_samples.load_samples

    def count_loaded(dataset, indices, cache):
        found = load(dataset, indices, cache)
        seen.append((len(indices), len(found)))
        return found

    monkeypatch.setattr("vilavt_toolkit.training.supervised.data.load_samples", count_loaded)
    settings = ["train.preprocess=ahead", "train.steps=2", "train.trackers=[]"]
    first = run_supervised(load_recipe(tiny_recipe, [*settings, f"run={tmp_path / 'first'}"]))
    more = [f"run={tmp_path / 'more'}", f"train.init_from={first}"]
    run_supervised(load_recipe(tiny_recipe, [*settings, *more]))
    assert seen[0][1] == 0 and seen[1][0] == seen[1][1] == seen[0][0]
    run_supervised(load_recipe(tiny_recipe, [*settings, f"run={tmp_path / 'off'}", "train.sample_cache=0"]))
    assert len(seen) == 2, "the key turns it off"
