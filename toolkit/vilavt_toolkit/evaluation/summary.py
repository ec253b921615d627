"""What an evaluation says: every arm on every kind of question, and the differences that matter, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vilavt_toolkit.contracts import Task
from vilavt_toolkit.evaluation.arms import Item
from vilavt_toolkit.evaluation.statistics import Estimate, bootstrap, paired

if TYPE_CHECKING:
    from rich.table import Table

SUBSETS: Mapping[str, Callable[[Item], bool]] = {
    "needs a zoom": lambda item: item.sample.tags.get("needs_zoom") is True,
    "needs none": lambda item: item.sample.tags.get("needs_zoom") is False,
    "several to read": lambda item: item.sample.tags.get("several") is True,
    "all": lambda item: True,
}
DIFFERENCES = (
    ("modulated", "single_pass", "needs a zoom"),
    ("modulated", "unmodulated", "needs a zoom"),
    ("modulated", "unmodulated", "several to read"),
    ("modulated", "shuffled", "needs a zoom"),
    ("modulated", "shuffled", "several to read"),
)

Results = Mapping[str, Sequence[Item]]


def accuracy(results: Results, arm: str, subset: str, seed: int = 0) -> Estimate | None:
    """Accuracy of an arm on a subset, clustered by group; None where there is no such item."""
    items = [item for item in results[arm] if SUBSETS[subset](item)]
    return bootstrap([item.score for item in items], [_cluster(item) for item in items], seed) if items else None


def difference(results: Results, first: str, second: str, subset: str, seed: int = 0) -> Estimate | None:
    """Paired difference of two arms on a subset; None where there is no such item or arm."""
    if first not in results or second not in results:
        return None
    pairs = [(a, b) for a, b in zip(results[first], results[second], strict=True) if SUBSETS[subset](a)]
    if not pairs:
        return None
    return paired([a.score for a, _ in pairs], [b.score for _, b in pairs], [_cluster(a) for a, _ in pairs], seed)


def _cluster(item: Item) -> Any:
    return item.sample.tags.get("group", item.sample.id)


def metrics(task: Task, items: Sequence[Item], seed: int = 0) -> dict[str, Estimate]:
    """The task's metrics over groups of an arm's items; one of no group is left out."""
    found = task.metrics([item.sample for item in items], [item.score for item in items])
    return {name: bootstrap(scores, range(len(scores)), seed) for name, scores in found.items() if scores}


def summarise(results: Results, task: Task, seed: int = 0) -> dict[str, Any]:
    """The whole summary as plain data."""
    arms: dict[str, Any] = {}
    for arm, items in results.items():
        found = {subset: accuracy(results, arm, subset, seed) for subset in SUBSETS}
        arms[arm] = {
            "accuracy": {subset: asdict(estimate) for subset, estimate in found.items() if estimate},
            "metrics": {name: asdict(estimate) for name, estimate in metrics(task, items, seed).items()},
            "calls": sum(item.calls for item in items) / len(items),
            "answered": sum(item.trajectory.answer is not None for item in items) / len(items),
        }
    differences = []
    for first, second, subset in DIFFERENCES:
        estimate = difference(results, first, second, subset, seed)
        if estimate is not None:
            differences.append({"first": first, "second": second, "subset": subset, **asdict(estimate)})
    return {"arms": arms, "differences": differences}


def table(summary: Mapping[str, Any]) -> Table:
    """The arms as a table: accuracy and the task's own metrics in percent with 95% intervals."""
    from rich.table import Table

    shown = Table(title="accuracy in % [95% interval]")
    shown.add_column("arm")
    columns = [("accuracy", subset) for subset in SUBSETS]
    columns += [("metrics", name) for name in next(iter(summary["arms"].values()))["metrics"]]
    columns = [(kind, name) for kind, name in columns if any(name in arm[kind] for arm in summary["arms"].values())]
    for kind, name in columns:
        counts = {arm[kind][name]["items"] for arm in summary["arms"].values()}
        shown.add_column(f"{name}\n(n={'/'.join(map(str, sorted(counts)))})", justify="right")
    shown.add_column("tool calls\nper item", justify="right")
    for arm_name, arm in summary["arms"].items():
        cells = [str(Estimate(**arm[kind][name])) for kind, name in columns]
        shown.add_row(arm_name, *cells, f"{arm['calls']:.2f}")
    return shown


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The paired differences as sentences."""
    said = []
    for row in summary["differences"]:
        low, high, mean = 100 * row["low"], 100 * row["high"], 100 * row["mean"]
        said.append(f"{row['first']} - {row['second']}, {row['subset']}: {mean:+.1f} points [{low:+.1f}, {high:+.1f}]")
    return said
