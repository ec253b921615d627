"""A plan: what the stages of a recipe take on a device, found by simulating a step of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vilavt_toolkit.checkpoints.native import load_run_recipe
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.data.file_task import FileTask
from vilavt_toolkit.errors import InputError, VilavtError
from vilavt_toolkit.formats import foreign
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.planning.dialogues import (
    DEFAULT_LENGTH,
    PlannedDialogues,
    extend_dialogue,
    invent_dialogues,
    measure_dialogues,
)
from vilavt_toolkit.planning.rates import DeviceRates
from vilavt_toolkit.planning.reinforcement import simulate_reinforcement_step
from vilavt_toolkit.planning.simulation import Simulation, build_planned_model, simulate_supervised_step
from vilavt_toolkit.registry import Part
from vilavt_toolkit.training.strategy_choice import choose_strategy, with_strategy

StageName = Literal["train", "rl"]
FILLED_SHARE = 0.92
"""Share of a device's memory that can be filled: the rest goes to the context, to libraries and to fragments."""


@dataclass(frozen=True)
class PlanRequest:
    """Holds what a plan is made for."""

    rates: DeviceRates
    memory: int | None = None
    """Bytes of a device; None: those of the rates."""
    length: int | None = None
    """Tokens of every dialogue; None: as the task has them."""

    @property
    def limit(self) -> int:
        """Bytes that a step may take."""
        return int((self.rates.memory if self.memory is None else self.memory) * FILLED_SHARE)


@dataclass
class StagePlan:
    """Holds what a stage of a recipe takes."""

    stage: StageName
    origin: str
    """Source of the lengths, in words."""
    lengths: list[int]
    steps: int
    """Optimizer steps of the stage."""
    simulation: Simulation
    limit: int
    rates: str
    """Name of the rates of the times."""
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """True if the step needs no more than a device has."""
        return self.simulation.peak.bytes <= self.limit


class RecipeReader:
    """Reads a recipe, each time with more overrides, and knows which models stand in for what the hub does not give."""

    def __init__(self, name: str, overrides: Sequence[str], stand_ins: foreign.StandIns) -> None:
        self._name, self._overrides, self._stand_ins = name, tuple(overrides), stand_ins

    @property
    def stand_ins(self) -> list[str]:
        """Names of published models whose shapes have been used."""
        return self._stand_ins.used

    def read(self, more: Sequence[str] = ()) -> CheckedRecipe:
        """Read the recipe with `more` overrides; raises RecipeErrors."""
        recipe = load_run_recipe(self._name, [*self._overrides, *more])
        model = recipe.recipe.model
        # An encoder's shapes are part of its settings, so that it needs no description.
        model = replace(
            model,
            language_model=_find_description(model.language_model),
            inquiry_encoder=_find_description(model.inquiry_encoder),
        )
        return replace(recipe, recipe=replace(recipe.recipe, model=model))


@contextmanager
def reading_recipe(name: str, overrides: Sequence[str]) -> Iterator[RecipeReader]:
    """Yield a reader of a recipe. The files of models that stand in for others are there inside the block."""
    with foreign.published_stand_ins() as stand_ins:
        yield RecipeReader(name, overrides, stand_ins)


def _find_description(part: Part) -> Part:
    """Return a part with a folder in the place of a hub name that only a stand-in describes."""
    path = getattr(part.config, "path", None)
    if not path or not foreign.is_hub_name(path):
        return part
    try:
        folder = foreign.fetch_folder(path, foreign.HubAccess(), weights=False)
    except InputError:
        # The part itself says what is wrong with it.
        return part
    return replace(part, config=replace(part.config, path=str(folder)))


def list_stages(recipe: CheckedRecipe) -> list[StageName]:
    """Return the stages of a recipe: reinforcement alone if its task has no traces to learn from."""
    entry = recipe.recipe.task.entry.cls
    learns = not issubclass(entry, FileTask) or (entry.trains and entry.has_traces)
    if recipe.recipe.rl is None:
        return ["train"]
    return ["train", "rl"] if learns else ["rl"]


def plan_stage(
    recipe: CheckedRecipe, stage: StageName, request: PlanRequest, stand_ins: Sequence[str] = ()
) -> StagePlan:
    """Simulate a step of a stage; raises VilavtError."""
    notes = _describe_stand_ins(stand_ins)
    recipe, reason = resolve_planned_strategy(recipe, stage, request)
    if reason:
        notes.append(f"train.strategy auto is {recipe.recipe.train.strategy}: {reason}")
    model = build_planned_model(recipe)
    # All figures are of one device. Without a note a reader would take them for the whole.
    if (devices := _count_devices(recipe)) > 1:
        ways = (
            "weights, gradients and moments sharded" if recipe.recipe.train.strategy == "fsdp2" else "all weights each"
        )
        notes.append(
            f"the share of one of {devices:,} devices: {ways}"
            if stage == "train"
            else "reinforcement trains on one device, whatever train.devices says"
        )
    planned = _choose_dialogues(recipe, stage, model, request, bool(stand_ins), notes)
    if stage == "train":
        simulation = simulate_supervised_step(recipe, model, planned.dialogues, request.rates, _count_devices(recipe))
    else:
        simulation = simulate_reinforcement_step(recipe, model, planned.dialogues, request.rates)
    rl = recipe.recipe.rl
    steps = rl.steps if stage == "rl" and rl is not None else recipe.recipe.train.steps
    return StagePlan(
        stage, planned.origin, planned.lengths, steps, simulation, request.limit, request.rates.name, notes
    )


def resolve_planned_strategy(
    recipe: CheckedRecipe, stage: StageName, request: PlanRequest
) -> tuple[CheckedRecipe, str]:
    """Return a recipe with a strategy in the place of `auto` where several devices train, and the reason or nothing."""
    if stage != "train" or _count_devices(recipe) == 1 or recipe.recipe.train.strategy != "auto":
        return recipe, ""
    strategy, reason = choose_strategy(recipe, request.rates.memory if request.memory is None else request.memory)
    return with_strategy(recipe, strategy), reason


def _count_devices(recipe: CheckedRecipe) -> int:
    return recipe.recipe.train.devices * recipe.recipe.train.nodes


def _describe_stand_ins(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"the hub does not give {', '.join(names)}: the published shapes stand in for them"]


def _choose_dialogues(
    recipe: CheckedRecipe,
    stage: StageName,
    model: VisualChatModel,
    request: PlanRequest,
    is_stand_in: bool,
    notes: list[str],
) -> PlannedDialogues:
    """Return the dialogues of a step: of the stated length, else as the task has them, else of a usual length."""
    rl = recipe.recipe.rl if stage == "rl" else None
    # Each device gets its share of a step's dialogues.
    count = -(-recipe.recipe.train.batch_size // _count_devices(recipe)) if rl is None else rl.prompts_per_step
    written = None if rl is None else rl.max_new_tokens
    if request.length is not None:
        return invent_dialogues(model, request.length, count, written)
    reason = "its tokenizer is not here"
    if not is_stand_in:
        try:
            task: Task = recipe.recipe.task.build()
            measured = measure_dialogues(model, task, "train" if rl is None else rl.split, count, traces=rl is None)
            return measured if rl is None else _extend_prompts(model, measured, rl.max_new_tokens)
        except VilavtError as error:
            reason = " ".join(str(error).split())
    length = min(DEFAULT_LENGTH, model.language_model.context_length)
    notes.append(f"lengths of the task cannot be measured ({reason.rstrip('.')}). Set another with --length")
    return invent_dialogues(model, length, count, written)


def _extend_prompts(model: VisualChatModel, prompts: PlannedDialogues, written: int) -> PlannedDialogues:
    dialogues = tuple(extend_dialogue(model, prompt, written) for prompt in prompts.dialogues)
    return PlannedDialogues(dialogues, f"{prompts.origin}, with two calls and {written:,} tokens written")


def to_json(plan: StagePlan) -> dict[str, Any]:
    """Return a plan as plain data."""
    simulation = plan.simulation
    return {
        "stage": plan.stage,
        "fits": plan.fits,
        "limit_bytes": plan.limit,
        "lengths": {"from": plan.origin, "mean": sum(plan.lengths) / len(plan.lengths), "longest": max(plan.lengths)},
        "parameters": {
            part: {"trained": trained, "frozen": frozen} for part, (trained, frozen) in simulation.parameters.items()
        },
        "peak_bytes": simulation.peak.bytes,
        "peak_by_kind": dict(simulation.peak.by_kind),
        "peak_by_phase": {phase: peak.bytes for phase, peak in simulation.peaks.items()},
        "operations": dict(simulation.cost.operations),
        "rates": plan.rates,
        "step_seconds": simulation.cost.seconds,
        "seconds_by_phase": {phase: cost.seconds for phase, cost in simulation.phases.items()},
        "launches": simulation.cost.launches,
        "waits": dict(simulation.cost.waits),
        "steps": plan.steps,
        "notes": plan.notes,
    }
