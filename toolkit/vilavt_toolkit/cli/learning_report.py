"""The report of `vilavt check` on learning: the weights that every stage trains, and at which rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from vilavt_toolkit.models.adapters import is_adapter
from vilavt_toolkit.models.weight_names import collapse_numbers, name_without_adapter, part_of_weight
from vilavt_toolkit.utils.text import shorten_list

if TYPE_CHECKING:
    from vilavt_toolkit.config.schema import TrainSection
    from vilavt_toolkit.models.model import VisualChatModel
    from vilavt_toolkit.training.trainable import WeightRate


@dataclass(frozen=True)
class LearningWeight:
    """One weight of a model as a stage treats it."""

    name: str
    """As it is in the model without adapters."""
    part: str
    shape: tuple[int, ...]
    numbers: int
    rate: WeightRate | None
    """The rates by which it learns; None for a frozen one."""


@dataclass(frozen=True)
class LearningReport:
    """The weights of a model as one stage treats them."""

    weights: Sequence[LearningWeight]

    @classmethod
    def of_model(cls, model: VisualChatModel, rates: Mapping[str, WeightRate]) -> LearningReport:
        """Report on a model whose trained weights learn at `rates`, by name."""
        parts = part_of_weight(model)
        return cls(
            [
                LearningWeight(
                    name_without_adapter(name),
                    parts.get(id(weight), ""),
                    tuple(weight.shape),
                    weight.numel(),
                    rates.get(name),
                )
                for name, weight in model.named_parameters()
            ]
        )

    def count_trained(self, part: str) -> int:
        """Return the number of trained numbers of a part."""
        return sum(weight.numbers for weight in self.weights if weight.part == part and weight.rate is not None)


def make_learning_table(stages: Mapping[str, LearningReport]) -> Table:
    """Return a table of the numbers that each stage trains in every part, by learning rate, and of frozen ones."""
    table = Table(title="trained weights")
    for number, column in enumerate(
        ("stage", "part", "trained", "of it LoRA", "frozen", "learning rate", "weight decay")
    ):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=number != 6)
    for stage, report in stages.items():
        for part in dict.fromkeys(weight.part for weight in report.weights):
            _add_part(table, stage, part, [weight for weight in report.weights if weight.part == part])
    return table


def describe_average(section: TrainSection) -> str | None:
    """Return a line on the running mean of the weights that checkpoints of the stage hold; None without one."""
    if section.ema is None:
        return None
    # A running mean reaches back over so many steps, and begins with the weights at the start.
    reach = 1 / (1 - section.ema)
    text = (
        f"train.ema={section.ema:g}: checkpoints and validations have the mean of the trained weights over about "
        f"{reach:,.0f} of {section.steps:,} steps"
    )
    short = ", which is too few for a mean" if section.steps < 3 * reach else ""
    return f"{text}{short}."


def _add_part(table: Table, stage: str, part: str, weights: Sequence[LearningWeight]) -> None:
    """Add a row for every learning rate of a part, and the frozen numbers to the first of them."""
    frozen = sum(weight.numbers for weight in weights if weight.rate is None)
    rates = sorted({weight.rate.lr for weight in weights if weight.rate is not None}, reverse=True)
    label = part.replace("_", " ")
    if not rates:
        table.add_row(stage, label, "", "", f"{frozen:,}", "", "")
    # A row a rate and not a weight: a part has one or two rates, and hundreds of weights.
    for place, lr in enumerate(rates):
        decays: dict[float, int] = {}
        lora = 0
        for weight in weights:
            if weight.rate is not None and weight.rate.lr == lr:
                decays[weight.rate.weight_decay] = decays.get(weight.rate.weight_decay, 0) + weight.numbers
                lora += weight.numbers if is_adapter(weight.name) else 0
        shown = [f"{decay:g}: {numbers:,}" for decay, numbers in sorted(decays.items(), reverse=True)]
        held = f"{frozen:,}" if frozen and not place else ""
        adapters = f"{lora:,}" if lora else ""
        table.add_row(stage, label, f"{sum(decays.values()):,}", adapters, held, f"{lr:g}", ", ".join(shown))


def make_names_table(stages: Mapping[str, LearningReport]) -> Table:
    """Return a table of the names of all weights, in which numbers of layers are a `*`, and of how they learn."""
    table = Table(title="names of weights")
    for column in ("name", "weights", "shape", *(f"learning rate in {stage}" for stage in stages)):
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=column == "name")
    rows: dict[str, list[list[LearningWeight]]] = {}
    for place, report in enumerate(stages.values()):
        for weight in report.weights:
            row = rows.setdefault(collapse_numbers(weight.name), [[] for _ in stages])
            row[place].append(weight)
    for name, row in rows.items():
        shapes = dict.fromkeys(str(list(weight.shape)) for weight in row[0])
        table.add_row(name, str(len(row[0])), shorten_list([*shapes], 2), *map(_describe_rates, row))
    return table


def _describe_rates(weights: Sequence[LearningWeight]) -> str:
    found = dict.fromkeys("frozen" if weight.rate is None else f"{weight.rate.lr:g}" for weight in weights)
    return ", ".join(found)
