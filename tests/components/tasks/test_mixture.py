"""Mixtures: shares by weight or by epoch in every stretch, answers scored by their own task, losses by data set."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vilavt_components.tasks.mixture import Mixture, MixtureConfig
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.errors import RecipeErrors, UsageError
from vilavt_toolkit.registry import Part, tasks
from vilavt_toolkit.training.supervised.run import run_supervised


def scenes(size: int, seed: int = 0) -> Part:
    entry = tasks.get("digit_scenes")
    return Part("task", "digit_scenes", replace(entry.cls.tiny(), train_items=size, seed=seed))


def places(mixture: Mixture, split: str = "train") -> list[tuple[int, int]]:
    return [mixture._locate(split, index) for index in range(mixture.length(split))]


sizes = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@given(sizes, st.data())
def test_weights_give_every_stretch_its_shares_and_show_every_sample(sizes, data):
    weights = data.draw(st.lists(st.integers(1, 5), min_size=len(sizes), max_size=len(sizes)))
    parts = [scenes(size, seed) for seed, size in enumerate(sizes)]
    mixture = Mixture(MixtureConfig(parts, weights=[float(weight) for weight in weights]))
    order = places(mixture)
    assert {(number, inner) for number, size in enumerate(sizes) for inner in range(size)} == set(order)
    shares = [weight / sum(weights) for weight in weights]
    counts: Counter[int] = Counter()
    for length, (number, _) in enumerate(order, start=1):
        counts[number] += 1
        # Rounding to whole samples moves a share by less than a sample of each data set.
        assert all(abs(counts[i] - share * length) < len(sizes) + 1 for i, share in enumerate(shares))


@given(sizes, st.data())
def test_epochs_say_how_often_each_is_shown(sizes, data):
    epochs = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.5]), min_size=len(sizes), max_size=len(sizes)))
    mixture = Mixture(MixtureConfig([scenes(size, seed) for seed, size in enumerate(sizes)], epochs=epochs))
    shown = Counter(places(mixture))
    for number, (size, rate) in enumerate(zip(sizes, epochs, strict=True)):
        of_set = [shown[number, inner] for inner in range(size)]
        assert sum(of_set) == max(1, round(rate * size)) and max(of_set) - min(of_set) <= 1


def test_samples_of_other_splits_come_once_and_are_named_and_scored_by_their_own_task():
    mixture = Mixture(MixtureConfig([scenes(8), scenes(4, 1)], names=["a", "b"], weights=[1.0, 9.0]))
    alone = scenes(4, 1).build()
    assert mixture.length("test") == 8 and mixture.datasets() == ["a", "b"]
    (index,) = [i for i in range(8) if mixture._locate("test", i) == (1, 2)]
    sample, expected = mixture.sample("test", index), alone.sample("test", 2)
    assert sample.id == f"b/{expected.id}" and sample.tags["dataset"] == "b" and sample.question == expected.question
    assert mixture.score(sample, sample.answer) == 1.0 and mixture.score_turn(sample, "", None) == 0.0
    found = mixture.metrics([mixture.sample("test", i) for i in range(8)], [float(i) for i in range(8)])
    assert found.keys() == {"a/score", "b/score"} and sum(map(sum, found.values())) == 28
    with pytest.raises(UsageError, match="no_such"):
        mixture.length("no_such")


def test_data_files_in_a_mixture_are_checked_and_a_changed_one_is_noticed(tmp_path):
    row = {"question": "what?", "answer": "red", "options": ["red", "blue"]}
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text(json.dumps(row) + "\n")
    parts = [{"name": "questions", "files": [str(file)]} for file in files]
    recipe = f"task={json.dumps({'name': 'mixture', 'tasks': parts})}"
    built = load_recipe("quickstart", [recipe]).recipe.task.build
    before = built().fingerprint("train")
    assert built().datasets() == ["questions", "questions-2"] and before
    files[1].write_text(json.dumps({**row, "answer": "blue"}) + "\n")
    assert built().fingerprint("train") != before
    # Neither has a split val: the first one says how to get one.
    with pytest.raises(UsageError, match=r"task\.val_files"):
        built().length("val")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("weights: [1]", "weights has 1 entries for 2 tasks"),
        ("weights: [1, 0]", "0.0 is not above 0"),
        ("weights: [1, 2], epochs: [1, 1]", "two ways of mixing"),
        ("names: [a, a]", "a twice"),
        ("names: [a, b/c]", "without a slash"),
    ],
)
def test_settings_that_mix_nothing_are_refused(settings, words):
    with pytest.raises(RecipeErrors, match=words):
        load_recipe("quickstart", [f"task={{name: mixture, tasks: [digit_scenes, digit_scenes], {settings}}}"])


def test_the_loss_of_each_data_set_is_logged_and_they_make_up_the_whole(tiny_recipe, tmp_path):
    common = "{name: digit_scenes, size: 64, cells: 2, objects: 2, train_items: 16"
    task = f"task={{name: mixture, names: [few, many], weights: [1, 3], tasks: [{common}}}, {common}, seed: 1}}]}}"
    settings = [f"run={tmp_path / 'run'}", task, "train.trackers=[csv]", "train.log_every=1", "train.micro_batch=2"]
    run = run_supervised(load_recipe(tiny_recipe, [*settings, "train.steps=3"]))
    with (run / "logs" / "csv" / "from-step-00000000" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for row in rows:
        loss, few, many = (float(row[name]) for name in ("loss", "loss/few", "loss/many"))
        assert min(few, many) <= loss <= max(few, many) and few != many
