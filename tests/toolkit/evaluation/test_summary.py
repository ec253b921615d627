"""Summaries: every arm on every kind of question, differences in pairs, nothing said where there is nothing."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from vilavt_toolkit.contracts import Sample, Trajectory, Turn
from vilavt_toolkit.evaluation.arms import EvaluatedItem
from vilavt_toolkit.evaluation.summary import (
    build_summary_table,
    format_differences,
    format_warnings,
    summarise_results,
)


def item(model, arm: str, number: int, score: float, **tags: object) -> EvaluatedItem:
    trajectory = Trajectory()
    trajectory.turns.append(Turn("a", answer="7" if score else None))
    return EvaluatedItem(arm, Sample(str(number), "what?", "7", (), tags=tags), trajectory, 0, score)


def results(model) -> dict[str, list[EvaluatedItem]]:
    kinds = [{"needs_zoom": n % 2 == 0, "several": n % 4 == 0, "group": n // 2} for n in range(40)]
    right = {"single_pass": lambda n: n % 2, "modulated": lambda n: n % 10 != 0, "shuffled": lambda n: n % 4 != 0}
    return {
        arm: [item(model, arm, n, float(scored(n) > 0), **kinds[n]) for n in range(40)] for arm, scored in right.items()
    }


def test_arms_are_scored_on_what_needs_a_zoom_and_on_what_does_not(tiny_model, tiny_task):
    arms = summarise_results(results(tiny_model), tiny_task)["arms"]
    single = arms["single_pass"]["accuracy"]
    assert (single["needs a zoom"]["mean"], single["needs none"]["mean"], single["all"]["mean"]) == (0, 1, 0.5)
    assert single["all"]["items"] == 40 and single["all"]["clusters"] == 20, "questions of one group go together"
    assert arms["modulated"]["accuracy"]["needs a zoom"]["mean"] == 0.8
    assert arms["shuffled"]["accuracy"]["several to read"]["mean"] == 0
    assert arms["modulated"]["answered"] == 0.9


def test_differences_are_paired_and_left_out_where_an_arm_is_missing(tiny_model, tiny_task):
    found = {
        (d["first"], d["second"], d["subset"]): d
        for d in summarise_results(results(tiny_model), tiny_task)["differences"]
    }
    zoom = found["modulated", "single_pass", "needs a zoom"]
    assert zoom["mean"] == 0.8 and 0 < zoom["low"] <= 0.8 <= zoom["high"] <= 1
    assert not any("unmodulated" in key for key in found)
    assert ("modulated", "shuffled", "several to read") in found


def test_calls_are_means_over_items_and_differences_are_over_clusters(tiny_model, tiny_task):
    found = results(tiny_model)
    found["modulated"] = [replace(item, calls=number % 3) for number, item in enumerate(found["modulated"])]
    summary = summarise_results(found, tiny_task)
    assert summary["arms"]["modulated"]["calls"] == sum(number % 3 for number in range(40)) / 40
    assert summary["arms"]["single_pass"]["calls"] == 0
    several = summary["differences"][-1]
    assert (several["subset"], several["items"], several["clusters"]) == ("several to read", 10, 10)
    zoom = summary["differences"][0]
    assert (zoom["subset"], zoom["items"], zoom["clusters"]) == ("needs a zoom", 20, 20)


def test_the_seed_of_the_recipe_decides_the_intervals(tiny_model, tiny_task):
    found = results(tiny_model)
    for arm, items in found.items():
        found[arm] = [replace(item, score=item.score * number / 40) for number, item in enumerate(items)]
    first, again, second = (summarise_results(found, tiny_task, seed) for seed in (0, 0, 1))
    assert first == again
    for kind in ("needs a zoom", "all"):
        assert first["arms"]["modulated"]["accuracy"][kind] != second["arms"]["modulated"]["accuracy"][kind]
    assert first["differences"][0] != second["differences"][0]


def test_the_table_and_the_sentences_show_what_was_found(tiny_model, tiny_task):
    summary = summarise_results(results(tiny_model), tiny_task)
    shown = io.StringIO()
    Console(file=shown, width=200).print(build_summary_table(summary))
    text = shown.getvalue()
    assert "n=20" in text and "n=10" in text and "single_pass" in text and "80.0 [" in text
    assert format_differences(summary)[0].startswith("modulated - single_pass, needs a zoom: +80.0 points [+")


def test_a_kind_of_question_that_does_not_occur_is_left_out(tiny_model, tiny_task):
    items = {"blind": [item(tiny_model, "blind", n, 1.0) for n in range(3)]}
    summary = summarise_results(items, tiny_task)
    assert list(summary["arms"]["blind"]["accuracy"]) == ["all"] and summary["differences"] == []
    assert [str(column.header).split("\n")[0] for column in build_summary_table(summary).columns] == [
        "arm",
        "all",
        "tool calls",
    ]


def test_a_task_that_does_not_say_which_need_a_zoom_has_its_arms_compared_on_all(tiny_model, tiny_task):
    arms = {"modulated": 1.0, "unmodulated": 0.0}
    items = {arm: [item(tiny_model, arm, n, score) for n in range(8)] for arm, score in arms.items()}
    (line,) = format_differences(summarise_results(items, tiny_task))
    assert line.startswith("modulated - unmodulated, all: +100.0 points")


class Grouped:
    """A task with metrics over groups, one of which no group was asked whole for."""

    def metrics(self, samples, scores):
        groups = {}
        for sample, score in zip(samples, scores, strict=True):
            groups.setdefault(sample.tags["group"], []).append(score)
        return {"consistency": [min(found) for found in groups.values()], "cycles": []}


def test_metrics_over_groups_stand_beside_the_accuracy_with_their_own_intervals(tiny_model):
    summary = summarise_results(results(tiny_model), Grouped())
    modulated = summary["arms"]["modulated"]["metrics"]
    assert list(modulated) == ["consistency"]
    assert modulated["consistency"]["mean"] == 16 / 20 and modulated["consistency"]["items"] == 20
    assert summary["arms"]["single_pass"]["metrics"]["consistency"]["mean"] == 0
    shown = io.StringIO()
    Console(file=shown, width=200).print(build_summary_table(summary))
    assert "consistency" in shown.getvalue() and "80.0 [" in shown.getvalue() and "cycles" not in shown.getvalue()


def test_replies_that_cannot_be_read_are_told_before_the_table(tiny_model, tiny_task):
    found = results(tiny_model)
    assert format_warnings(summarise_results({"modulated": found["modulated"]}, tiny_task)) == []
    unread = [item(tiny_model, "modulated", n, float(n < 8)) for n in range(40)]
    (line,) = format_warnings(summarise_results({"modulated": unread}, tiny_task))
    assert line.startswith("Few replies hold an answer") and "modulated 20%" in line and "task.replies=answer" in line


def test_an_arm_that_was_never_taught_is_told_and_has_no_difference(tiny_model, tiny_task):
    summary = summarise_results(results(tiny_model), tiny_task, untaught=("single_pass", "blind"))
    assert summary["untaught"] == ["single_pass"]
    assert all("single_pass" not in (row["first"], row["second"]) for row in summary["differences"])
    assert any(line.startswith("The arm single_pass means nothing here") for line in format_warnings(summary))
