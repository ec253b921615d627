"""The arms differ in one thing each, and a run's evaluation holds every item of every arm."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
import weakref
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.config.schema import EvalSection
from vilavt_toolkit.contracts import Trajectory
from vilavt_toolkit.errors import UsageError
from vilavt_toolkit.evaluation import arms as runner
from vilavt_toolkit.evaluation.arms import ARMS, EvaluatedItem, evaluate_arms, permute_inquiries
from vilavt_toolkit.evaluation.run import evaluate_run
from vilavt_toolkit.testing.scripted import Scripted

SMALL = EvalSection(items=7, batch_size=3, max_new_tokens=40)


@given(st.lists(st.lists(st.integers(0, 3), max_size=2).map(tuple), max_size=12), st.integers(0, 5))
def test_inquiries_are_permuted_and_another_one_is_heard_wherever_there_is_one(own, seed):
    found = permute_inquiries(own, seed)
    asked = [number for number, ids in enumerate(own) if ids]
    assert list(found) == asked, "who asked nothing hears nothing"
    counts = Counter(own[number] for number in asked)
    assert Counter(found.values()) == counts, "a permutation"
    # One inquiry that more than half ask must come back to some of them, and to no more than that.
    unavoidable = max(0, 2 * max(counts.values(), default=0) - len(asked))
    assert sum(found[number] == own[number] for number in asked) == unavoidable
    assert permute_inquiries(own, seed) == found


class Heard:
    """A loop whose first turn always zooms, and which notes what the encoder is told."""

    def __init__(self, model, monkeypatch):
        self.told: list[tuple[tuple[int, ...], ...]] = []
        encode = type(model).encode
        turns = ['<think>a</think><tool>{"region": [{"index": 0, "bbox_2d": [0, 0, 2, 2]}], "query": "%s"}</tool>']
        turns.append("<think>b</think><answer>7</answer>")
        words = ["red square", "blue circle", "green triangle"]

        def noting(this, views, groups, inquiries):
            self.told.append(tuple(tuple(inquiries[group]) for group in groups))
            return encode(this, views, groups, inquiries)

        def script(request) -> list[int]:
            zoom = turns[0] % words[request.number % 3] if request.session.sources else ""
            return model.language_model.tokenizer.encode(zoom + turns[1])

        class Zooming(Scripted):
            def __init__(self, model, decoding, rewrite):
                super().__init__(model, decoding, lambda number: [], rewrite)

            def _sample(self, requests, logits):
                for request in requests:
                    self._left.setdefault(request, script(request))
                return super()._sample(requests, logits)

        monkeypatch.setattr(type(model), "encode", noting)
        monkeypatch.setattr(runner, "Loop", Zooming)


def arm(model, task, name, monkeypatch, section=SMALL, watch=None):
    import dataclasses

    heard = Heard(model, monkeypatch)
    arms = ["modulated", name] if name == "shuffled" else [name]
    results = evaluate_arms(model, task, dataclasses.replace(section, arms=arms), seed=3, on_item=watch)
    return results, heard.told


def zoom_inquiries(told) -> list[tuple[int, ...]]:
    return [ids for call in told for ids in call]


def test_the_blind_arm_sees_nothing_and_may_not_look(tiny_model, tiny_task, monkeypatch):
    results, told = arm(tiny_model, tiny_task, "blind", monkeypatch)
    decode = tiny_model.language_model.tokenizer.decode
    assert told == []
    for item in results["blind"]:
        trajectory = item.trajectory
        assert not trajectory.regions
        assert "Answer now." in decode(trajectory.ids) and item.sample.question in decode(trajectory.ids)


def test_the_single_pass_arm_sees_the_image_once_and_is_asked_at_once(tiny_model, tiny_task):
    import dataclasses

    results = evaluate_arms(tiny_model, tiny_task, dataclasses.replace(SMALL, arms=["single_pass"]), seed=3)
    decode = tiny_model.language_model.tokenizer.decode
    for item in results["single_pass"]:
        trajectory = item.trajectory
        assert trajectory.regions[0].box is None
        assert decode(trajectory.ids).index("Answer now.") < decode(trajectory.ids).index("<|assistant|>")


def test_a_model_that_calls_where_it_may_not_is_never_given_a_crop(tiny_model, tiny_task, monkeypatch):
    """Without the tool the answer was demanded; a call is no answer, and scores nothing."""
    results, told = arm(tiny_model, tiny_task, "single_pass", monkeypatch)
    for item in results["single_pass"]:
        assert item.calls == 0 and len(item.trajectory.regions) == 1
    assert all(ids == () for ids in zoom_inquiries(told))


def test_the_modulated_arm_hears_its_own_inquiries(tiny_model, tiny_task, monkeypatch):
    results, told = arm(tiny_model, tiny_task, "modulated", monkeypatch)
    own = [group.ids for item in results["modulated"] for group in item.trajectory.groups]
    assert Counter(zoom_inquiries(told)) == Counter(own)
    assert sum(bool(ids) for ids in own) == 7
    assert all(item.calls == 1 and item.trajectory.answer == "7" for item in results["modulated"])


def test_the_unmodulated_arm_zooms_alike_and_hears_nothing(tiny_model, tiny_task, monkeypatch):
    results, told = arm(tiny_model, tiny_task, "unmodulated", monkeypatch)
    assert set(zoom_inquiries(told)) == {()}
    assert all(item.calls == 1 for item in results["unmodulated"])
    assert all(item.trajectory.groups[1].ids for item in results["unmodulated"]), "it asked all the same"


def test_the_shuffled_arm_hears_the_inquiries_of_others(tiny_model, tiny_task, monkeypatch):
    results, told = arm(tiny_model, tiny_task, "shuffled", monkeypatch)
    half = len(told) // 2
    first, second = zoom_inquiries(told[:half]), zoom_inquiries(told[half:])
    assert Counter(first) == Counter(second), "the same inquiries, given to others"
    moved = [(a, b) for a, b in zip(first, second, strict=True) if a]
    assert len(moved) == 7 and all(a != b for a, b in moved)
    for own, other in zip(results["modulated"], results["shuffled"], strict=True):
        assert own.sample.id == other.sample.id
        assert own.trajectory.groups == other.trajectory.groups, "it asked its own question"


@pytest.mark.parametrize("arms", [["shuffled"], [], ["blind", "blind"]])
def test_arms_that_cannot_be_run_are_refused_by_the_recipe(tiny_recipe, arms):
    with pytest.raises(UsageError, match=r"eval: arms"):
        load_recipe(tiny_recipe, [f"eval.arms={json.dumps(arms)}"])


def test_no_picture_is_kept_once_an_item_is_scored(tiny_model, tiny_task, monkeypatch):
    """Neither originals nor sources nor views: at full resolution they fill the memory of a machine."""
    heard: list[weakref.ref] = []
    results, _ = arm(
        tiny_model, tiny_task, "modulated", monkeypatch, watch=lambda item, s: heard.append(weakref.ref(s))
    )
    gc.collect()
    assert len(heard) == 7 and all(session() is None for session in heard)
    assert all(item.sample.originals == () and item.calls == 1 for item in results["modulated"])
    assert len(pickle.dumps(results)) < 7 * 64 * 64 * 3, "less than the scenes alone"


def test_an_unknown_split_is_refused(tiny_model, tiny_task):
    with pytest.raises(UsageError, match="no split 'tst'"):
        evaluate_arms(tiny_model, tiny_task, EvalSection(split="tst"), seed=0)


def test_the_batch_size_changes_no_answer(tiny_model, tiny_task):
    import dataclasses

    section = dataclasses.replace(SMALL, arms=["modulated", "blind"], max_new_tokens=12)
    one = evaluate_arms(tiny_model, tiny_task, dataclasses.replace(section, batch_size=1), seed=0)
    many = evaluate_arms(tiny_model, tiny_task, dataclasses.replace(section, batch_size=7), seed=0)
    for name in section.arms:
        assert [i.trajectory.ids for i in one[name]] == [i.trajectory.ids for i in many[name]]


def test_evaluating_a_run_writes_every_item_of_every_arm_and_prints_the_table(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    console = Console(record=True, width=200, file=open(tmp_path / "shown.txt", "w"))  # noqa: SIM115
    summary = evaluate_run(run, ["eval.items=6", "eval.max_new_tokens=12"], console)
    rows = [json.loads(line) for line in (run / "eval" / "items.jsonl").read_text().splitlines()]
    assert Counter(row["arm"] for row in rows) == dict.fromkeys(ARMS, 6)
    assert len({row["id"] for row in rows}) == 6
    for row in rows:
        assert isinstance(Trajectory.from_json(row["trajectory"]), Trajectory)
        assert row["score"] == float((row["predicted"] or "").strip().lower() == row["answer"].lower())
        assert {"question", "why", "calls", "tags"} <= row.keys()
    saved = json.loads((run / "eval" / "summary.json").read_text())
    assert saved == json.loads(json.dumps(summary))
    assert saved["step"] == 4 and saved["versions"] and saved["recipe"]["eval"]["items"] == 6
    shown = console.export_text()
    for name in ARMS:
        accuracy = saved["arms"][name]["accuracy"]["all"]
        assert f"{100 * accuracy['mean']:.1f} [" in shown and name in shown
        assert accuracy["mean"] == pytest.approx(sum(r["score"] for r in rows if r["arm"] == name) / 6)
    for path in (run, run / "eval" / "items.jsonl", run / "eval" / "example.png"):
        assert str(path) in shown
    assert (run / "eval" / "example.png").stat().st_size > 0
    assert (run / "eval" / "scene.png").stat().st_size > 0


def test_what_was_trained_cannot_be_changed_by_an_evaluation(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    with pytest.raises(UsageError, match=r"cannot change after training"):
        evaluate_run(run, ["model.projector.hidden_dim=3"], Console(quiet=True))
    with pytest.raises(UsageError, match=r"eval\.itms"):
        evaluate_run(run, ["eval.itms=3"], Console(quiet=True))
    assert not (run / "eval").exists()


def test_an_item_without_an_answer_scores_nothing(tiny_model, tiny_task):
    sample = tiny_task.sample("test", 0)
    item = EvaluatedItem("blind", sample, Trajectory(), 0, tiny_task.score(sample, None))
    assert item.to_json()["predicted"] is None and item.score == 0.0
