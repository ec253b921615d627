"""Accuracy against cost of one trained run under every stopping policy, each over a range of its setting.

python benchmarks/stopping.py runs/stopping/base --halt runs/stopping/learned_halt          # 1,000 items
python benchmarks/stopping.py runs/stopping/base --halt runs/stopping/learned_halt --write  # into docs/stopping.md too
python benchmarks/stopping.py runs/stopping/base --items 100 --only confidence budget
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from _cost_curves import Point, draw_curves
from _measure import measurement_facts, replace_section
from _script import write_json

from vilavt_toolkit.checkpoints.native import load_checkpoint
from vilavt_toolkit.contracts import Sample, Task, Usage
from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.errors import VilavtError
from vilavt_toolkit.evaluation.arms import EvaluatedItem, evaluate_arms
from vilavt_toolkit.evaluation.statistics import Estimate
from vilavt_toolkit.evaluation.summary import estimate_accuracy

PAGE = Path(__file__).parent.parent / "docs" / "stopping.md"
PICTURE = PAGE.with_name("stopping-curve.png")
ARM, MOST = "modulated", "{name: max_turns, turns: 4}"
BESIDE = "`model_decides` is placed first and `max_turns` 4 last, around every policy but these two."

SWEEPS: Mapping[str, tuple[str, Sequence[Any]]] = {
    "model_decides": ("", [""]),
    "max_turns": ("{name: max_turns, turns: %s}", [1, 2, 3, 4]),
    "budget": ("{name: budget, patches: %s}", [16, 32, 48, 64]),
    "confidence": ("{name: confidence, threshold: %s}", [0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.9]),
    "converged": ("{name: converged, signal: %s}", ["answer", "features"]),
    "learned_halt": (
        "{name: learned_halt, hidden_dim: 128, threshold: %s}",
        [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.9],
    ),
    "all_of": (
        "{name: all_of, policies: [{name: confidence, threshold: %s}, {name: converged, signal: answer}]}",
        [0.3, 0.5, 0.9],
    ),
    "any_of": (
        "{name: any_of, policies: [{name: budget, patches: 32}, {name: confidence, threshold: %s}]}",
        [0.15, 0.2, 0.9],
    ),
}
"""Policy -> (its text in a recipe, with %s for the setting that is varied; the values of the setting)."""
_UNITS = {"max_turns": "turns", "budget": "patches", "converged": "of"}


@dataclass(frozen=True)
class PolicyResult:
    """The result of one setting of one policy on all items: accuracies, and the mean cost of an item."""

    policy: str
    setting: str
    accuracy: Estimate
    needs_zoom: Estimate
    needs_none: Estimate
    spent: Usage
    calls: float
    why: Mapping[str, int]
    """Number of dialogues that each reason ended, with # for the numbers in a reason."""

    def format_row(self) -> str:
        """Write the line of the table."""
        spent = self.spent
        cost = f"{spent.patches:.1f} | {spent.tokens:.1f} | {spent.flops / 1e6:.1f} | {self.calls:.2f}"
        accuracies = f"{self.accuracy} | {100 * self.needs_zoom.mean:.1f} | {100 * self.needs_none.mean:.1f}"
        return f"| `{self.policy}` | {self.setting} | {accuracies} | {cost} |"


class CachedTask(Task):
    """A task that keeps its samples, so that they are made once for all settings."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._samples: dict[tuple[str, int], Sample] = {}

    @classmethod
    def tiny(cls) -> None:
        """Return nothing: it is never built by name."""

    def length(self, split: str) -> int:
        """Return the same as the task."""
        return self._task.length(split)

    def sample(self, split: str, index: int) -> Sample:
        """Return the same as the task."""
        if (split, index) not in self._samples:
            self._samples[split, index] = replace(self._task.sample(split, index), trace=())
        return self._samples[split, index]

    def corpus(self) -> Iterator[str]:
        """Return the same as the task."""
        return self._task.corpus()

    def score(self, sample: Sample, answer: str | None) -> float:
        """Return the same as the task."""
        return self._task.score(sample, answer)


def main() -> None:
    """Measure, draw, and write the results by the options."""
    options = _parse_options()
    names = [name for name in SWEEPS if name in options.only]
    if options.halt is None and "learned_halt" in names:
        names.remove("learned_halt")
        _report_progress("learned_halt is left out. Give the run of its head with --halt.")
    tasks: dict[str, Task] = {}
    found = [
        _measure_policy(options.halt if name == "learned_halt" else options.run, name, setting, options, tasks)
        for name in names
        for setting in SWEEPS[name][1]
    ]
    text = _format_table(found)
    print(text)
    about = measurement_facts("cpu", " ".join(["python benchmarks/stopping.py", *sys.argv[1:]])) | {
        "items": options.items
    }
    write_json(options.json, {**about, "points": [asdict(each) for each in found]})
    picture = PICTURE if options.write else options.png
    if picture is not None:
        _draw_page_curves(picture, found)
    if options.write:
        _write_page(text, about)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="trained run")
    parser.add_argument("--halt", type=Path, help="run of the same weights with a trained head, for learned_halt")
    parser.add_argument("--items", type=int, default=1000, help="questions asked of each setting, 1 or more")
    parser.add_argument("--batch", type=int, default=128, help="dialogues that run at once")
    parser.add_argument(
        "--only", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), metavar="POLICY", help=", ".join(SWEEPS)
    )
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    parser.add_argument("--png", type=Path, help="draw the curves into this file")
    parser.add_argument("--write", action="store_true", help="put table and curves into docs/")
    options = parser.parse_args()
    if options.items < 1 or options.batch < 1:
        parser.error("--items and --batch must be 1 or more. Give larger numbers.")
    if options.halt is None and options.only == ["learned_halt"]:
        parser.error("learned_halt needs the run of its head. Give it with --halt.")
    if options.write and (options.halt is None or options.only != list(SWEEPS)):
        parser.error("--write replaces the whole table. Give --halt and leave out --only.")
    return options


def _stopping_override(name: str, setting: Any) -> str:
    """Write the recipe's list of policies, with the head of learned_halt where its recipe has it."""
    if name == "model_decides":
        return "[model_decides]"
    policy = SWEEPS[name][0] % setting
    return f"[model_decides, {policy}]" if name == "max_turns" else f"[model_decides, {policy}, {MOST}]"


def _measure_policy(
    run: Path, name: str, setting: Any, options: argparse.Namespace, tasks: dict[str, Task]
) -> PolicyResult:
    model, recipe = load_checkpoint(run, overrides=[f"model.stopping={_stopping_override(name, setting)}"])
    task = tasks.setdefault(str(recipe.recipe.task.config), CachedTask(recipe.recipe.task.build()))
    section = replace(recipe.recipe.eval, arms=[ARM], items=options.items, batch_size=options.batch)
    spent: list[Usage] = []

    def watch(item: EvaluatedItem, session: Session) -> None:
        spent.append(session.spent)

    results = evaluate_arms(model, task, section, recipe.recipe.seed, watch)
    every, zoomed, none = (estimate_accuracy(results, ARM, subset) for subset in ("all", "needs a zoom", "needs none"))
    assert every is not None and zoomed is not None and none is not None
    calls = sum(item.calls for item in results[ARM]) / len(spent)
    reasons = [re.sub(r"[\d.,]+", "#", item.trajectory.why) for item in results[ARM]]
    why = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    total = sum(spent, Usage())
    mean = Usage(**{key: value / len(spent) for key, value in asdict(total).items()})
    label = f"{_UNITS.get(name, 'threshold')} {setting}" if setting else ""
    done = PolicyResult(name, label, every, zoomed, none, mean, calls, why)
    _report_progress(done.format_row())
    return done


def _format_table(found: Sequence[PolicyResult]) -> str:
    head = (
        "| policy | setting | accuracy in % [95% interval] | needs a zoom | needs none | patches | tokens | MFLOPs "
        "| calls |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    return "\n".join([head, *(each.format_row() for each in found)])


def _draw_page_curves(path: Path, found: Sequence[PolicyResult]) -> None:
    series: dict[str, list[Point]] = {}
    for each in found:
        costs = each.spent.patches, each.spent.flops / 1e6
        estimate = each.accuracy
        series.setdefault(each.policy, []).append(Point(costs, estimate.mean, estimate.low, estimate.high))
    draw_curves(path, ["patches through the encoder, mean of an item", "MFLOPs, mean of an item"], series)


def _write_page(text: str, about: Mapping[str, Any]) -> None:
    """Replace the page's table and the circumstances of its measurement."""
    named = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if name != "machine")
    body = (
        f"![Accuracy against cost under every policy]({PICTURE.name})\n\n{text}\n\n{about['items']} items. {BESIDE}\n"
        f"{about['date']}; {named}.\nCommand: `{about['command']}`."
    )
    replace_section(PAGE, "stopping", body)


def _report_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except VilavtError as error:
        raise SystemExit(error.report()) from None
