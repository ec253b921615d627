"""The summary of an evaluation: accuracy of every arm on every kind of question, and the differences that matter."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.contracts import Task
from vilavt_toolkit.evaluation.arms import EvaluatedItem
from vilavt_toolkit.evaluation.statistics import Estimate, bootstrap_mean, cluster_of, paired_difference

if TYPE_CHECKING:
    from rich.table import Table

SUBSETS: Mapping[str, Callable[[EvaluatedItem], bool]] = {
    "needs a zoom": lambda item: item.sample.tags.get("needs_zoom") is True,
    "needs none": lambda item: item.sample.tags.get("needs_zoom") is False,
    "several to read": lambda item: item.sample.tags.get("several") is True,
    "all": lambda item: True,
}
"""The kinds of question. A task that sets no tag `needs_zoom` has items under `all` only."""
DIFFERENCES = (
    ("modulated", "single_pass", "needs a zoom"),
    ("modulated", "unmodulated", "needs a zoom"),
    ("modulated", "unmodulated", "several to read"),
    ("modulated", "shuffled", "needs a zoom"),
    ("modulated", "shuffled", "several to read"),
)
_DIFFERENCES_OF_ALL = tuple((first, second, "all") for first, second, kind in DIFFERENCES if kind == "needs a zoom")

_FEW_ANSWERS = 0.5
"""A share of readable answers below this is told before the table."""

Results = Mapping[str, Sequence[EvaluatedItem]]


def estimate_accuracy(results: Results, arm: str, subset: str, seed: int = 0) -> Estimate | None:
    """Return the accuracy of an arm on a subset, clustered by group; None if the subset is empty."""
    items = [item for item in results[arm] if SUBSETS[subset](item)]
    if not items:
        return None
    return bootstrap_mean([item.score for item in items], [_item_cluster(item) for item in items], seed)


def estimate_difference(results: Results, first: str, second: str, subset: str, seed: int = 0) -> Estimate | None:
    """Return the paired difference of two arms on a subset; None if the subset is empty or an arm was not run."""
    if first not in results or second not in results:
        return None
    # Both arms list the same items in the same order, so that places pair them.
    pairs = [(a, b) for a, b in zip(results[first], results[second], strict=True) if SUBSETS[subset](a)]
    if not pairs:
        return None
    clusters = [_item_cluster(item) for item, _ in pairs]
    return paired_difference([a.score for a, _ in pairs], [b.score for _, b in pairs], clusters, seed)


def _item_cluster(item: EvaluatedItem) -> Hashable:
    return cluster_of(item.sample.tags, item.sample.id)


def estimate_metrics(task: Task, items: Sequence[EvaluatedItem], seed: int = 0) -> dict[str, Estimate]:
    """Return the task's own metrics of an arm, each a mean over groups of items; metrics of no group are left out."""
    # Each score is already a mean over one group, so that groups are the clusters.
    found = task.metrics([item.sample for item in items], [item.score for item in items])
    return {name: bootstrap_mean(scores, range(len(scores)), seed) for name, scores in found.items() if scores}


def summarise_results(results: Results, task: Task, seed: int = 0, untaught: Sequence[str] = ()) -> dict[str, Any]:
    """Return the whole summary as plain data: `arms` by name, a list of `differences`, and the arms `untaught`.

    There is no difference to an arm of `untaught`, which the model was not trained for.
    """
    arms: dict[str, Any] = {}
    for arm, items in results.items():
        found = {subset: estimate_accuracy(results, arm, subset, seed) for subset in SUBSETS}
        # Subsets and metrics without items are left out: a task need not have every kind of question.
        arms[arm] = {
            "accuracy": {subset: asdict(estimate) for subset, estimate in found.items() if estimate},
            "metrics": {name: asdict(estimate) for name, estimate in estimate_metrics(task, items, seed).items()},
            "calls": sum(item.calls for item in items) / len(items),
            "answered": sum(item.trajectory.answer is not None for item in items) / len(items),
        }
    differences = []
    # A task that does not say which questions need a zoom has its arms compared on all.
    tagged = any("needs_zoom" in item.sample.tags for items in results.values() for item in items)
    for first, second, subset in DIFFERENCES if tagged else _DIFFERENCES_OF_ALL:
        if first in untaught or second in untaught:
            continue
        estimate = estimate_difference(results, first, second, subset, seed)
        if estimate is not None:
            differences.append({"first": first, "second": second, "subset": subset, **asdict(estimate)})
    return {"arms": arms, "differences": differences, "untaught": [arm for arm in untaught if arm in arms]}


def format_warnings(summary: Mapping[str, Any]) -> list[str]:
    """Write what a reader must know before the numbers: answers that cannot be read, arms that mean nothing."""
    lines = []
    unread = {name: arm["answered"] for name, arm in summary["arms"].items() if arm["answered"] < _FEW_ANSWERS}
    if unread:
        shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in unread.items())
        lines.append(
            f"Few replies hold an answer that the dialogue can read: {shares}. The accuracy below is about their form. "
            "If the training data has plain replies, train with `task.replies=answer` (docs/data.md)."
        )
    # Evaluations of earlier versions have no such list.
    for name in summary.get("untaught", ()):
        lines.append(
            f"The arm {name} means nothing here: no training sample answers as it asks, so the model never learnt to."
        )
    return lines


def build_summary_table(summary: Mapping[str, Any]) -> Table:
    """Build a table of the arms: accuracy and the task's own metrics in percent, with 95% intervals."""
    from rich.table import Table

    table = Table(title="accuracy in % [95% interval]")
    table.add_column("arm")
    arms = summary["arms"]
    # All arms were asked the same items, so that one arm has every column there is.
    any_arm = next(iter(arms.values()))
    columns = [("accuracy", subset) for subset in SUBSETS if subset in any_arm["accuracy"]]
    columns += [("metrics", name) for name in any_arm["metrics"]]
    for kind, name in columns:
        table.add_column(f"{name}\n(n={any_arm[kind][name]['items']})", justify="right")
    table.add_column("tool calls\nper item", justify="right")
    for arm_name, arm in arms.items():
        cells = [str(Estimate.from_json(arm[kind][name])) for kind, name in columns]
        table.add_row(arm_name, *cells, f"{arm['calls']:.2f}")
    return table


def format_differences(summary: Mapping[str, Any]) -> list[str]:
    """Write the paired differences as sentences."""
    sentences = []
    for row in summary["differences"]:
        points = Estimate.from_json(row).format_points(" points")
        sentences.append(f"{row['first']} - {row['second']}, {row['subset']}: {points}")
    return sentences
