"""Changes of a recipe that make a step smaller, each simulated as the recipe itself is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.errors import RecipeErrors, VilavtError
from vilavt_toolkit.planning.plan import PlanRequest, StageName, StagePlan, plan_stage, resolve_planned_strategy
from vilavt_toolkit.training.strategy_choice import with_strategy

_LAYERS = "train.language_model_checkpointing=true"
_BLOCKS = "train.gradient_checkpointing=true"
_ADAPTERS = "lora={targets: [language_model], rank: 16}"


@dataclass(frozen=True)
class Remedy:
    """A change of a recipe, as overrides; STAGE stands for the section of the stage."""

    name: str
    overrides: tuple[str, ...]


REMEDIES = (
    Remedy("one dialogue at a time", ("STAGE.micro_batch=1",)),
    Remedy("compute the encoder's blocks again", (_BLOCKS,)),
    Remedy("compute the language model's layers again", (_BLOCKS, _LAYERS)),
    Remedy("shard over the devices", ("train.strategy=fsdp2",)),
    Remedy("shard over the devices, layers again", ("train.strategy=fsdp2", _BLOCKS, _LAYERS)),
    Remedy("weights in bfloat16", ("train.precision=bf16-true",)),
    Remedy("weights in bfloat16, layers again", ("train.precision=bf16-true", _BLOCKS, _LAYERS)),
    Remedy("adapters in the language model, layers again", (f"STAGE.{_ADAPTERS}", _BLOCKS, _LAYERS)),
    Remedy(
        "adapters, frozen weights in bfloat16, layers again",
        (f"STAGE.{_ADAPTERS}", "STAGE.frozen_dtype=bfloat16", _BLOCKS, _LAYERS),
    ),
)
"""Changes of a recipe, from the least change to the largest."""


@dataclass(frozen=True)
class TriedRemedy:
    """A remedy and the plan of the recipe with it."""

    overrides: tuple[str, ...]
    name: str
    plan: StagePlan


def try_remedies(
    base: CheckedRecipe,
    read: Callable[[Sequence[str]], CheckedRecipe],
    stage: StageName,
    request: PlanRequest,
    stand_ins: Sequence[str] = (),
) -> Iterator[TriedRemedy]:
    """Yield every remedy that changes a recipe, with its plan; `read` reads the recipe with more overrides."""
    base, _ = resolve_planned_strategy(base, stage, request)
    for remedy in REMEDIES:
        overrides = tuple(each.replace("STAGE", stage) for each in remedy.overrides)
        try:
            recipe = read(overrides)
        except RecipeErrors:
            # The recipe cannot be changed so: it packs its rows, or the two settings exclude each other.
            continue
        is_auto = recipe.recipe.train.strategy == "auto"
        compared = with_strategy(recipe, base.recipe.train.strategy) if is_auto else recipe
        if compared.recipe == base.recipe or ("train.strategy=fsdp2" in overrides and not _is_shared(recipe, stage)):
            continue
        try:
            plan = plan_stage(recipe, stage, request, stand_ins)
        except VilavtError:
            continue
        yield TriedRemedy(overrides, remedy.name, plan)


def _is_shared(recipe: CheckedRecipe, stage: StageName) -> bool:
    """Return True if several devices take a stage's steps."""
    return stage == "train" and recipe.recipe.train.devices * recipe.recipe.train.nodes > 1


def remedy_to_json(tried: TriedRemedy) -> dict[str, Any]:
    """Return a remedy as plain data."""
    return {
        "name": tried.name,
        "overrides": list(tried.overrides),
        "fits": tried.plan.fits,
        "peak_bytes": tried.plan.simulation.peak.bytes,
        "step_seconds": tried.plan.simulation.cost.seconds,
    }
