"""`vilavt check`: everything that would fail later in a recipe, found without allocating or loading weights."""

from __future__ import annotations

import functools
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vilavt_toolkit.cli.learning_report import LearningReport
from vilavt_toolkit.cli.sample_check import SampleReport, check_samples
from vilavt_toolkit.config.limits import MOST_PARAMETERS
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.config.schema import ModelSection, Recipe, RLSection, StageSection
from vilavt_toolkit.contracts import Optimizer, Task
from vilavt_toolkit.data.row_budget import require_packing
from vilavt_toolkit.data.source_check import check_sources
from vilavt_toolkit.data.splits import require_samples
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.formats import foreign
from vilavt_toolkit.models.adapters import remove_adapters
from vilavt_toolkit.models.assemble import ErrorCollector, assemble_model
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.training.memory import check_memory_settings


@dataclass(frozen=True)
class RecipeReport:
    """Holds what is known of a recipe in which nothing fails."""

    model: VisualChatModel
    """Its model, on the meta device."""
    learning: dict[str, LearningReport]
    """For `train`, and `rl` if the recipe has it: what is trained, and how."""
    samples: list[SampleReport]


def check_recipe(recipe: CheckedRecipe) -> RecipeReport:
    """Return what is known of a recipe; raises RecipeErrors with all that would fail later."""
    sections = recipe.recipe
    collect = ErrorCollector(recipe.where)
    # On the meta device nothing is allocated, so a recipe of a 7 B model is checked in seconds on a laptop.
    with torch.device("meta"):
        model = collect.try_build("model", lambda: assemble_model(sections.model, recipe.where))
    if model is not None:
        collect.check_fits("model", functools.partial(_check_size, model))
    if sections.model.checkpoint:
        collect.try_build("model.checkpoint", lambda: _check_checkpoint(sections.model.checkpoint))
    task: Task | None = collect.try_build("task", sections.task.build)
    splits = _check_splits(collect, sections, task)
    learning = {"train": _check_training(collect, sections, model)}
    if sections.rl is not None:
        learning["rl"] = _check_reinforcement(collect, recipe, sections.rl, model)
    _check_start(collect, recipe)
    samples: list[SampleReport] = []
    if model is not None:
        _check_weights(collect, sections, model)
        if task is not None:
            samples = check_samples(collect, sections, model, task, splits)
    collect.raise_errors()
    assert model is not None
    return RecipeReport(model, {key: found for key, found in learning.items() if found is not None}, samples)


def _check_size(model: VisualChatModel) -> None:
    """Raise BadConfig if no computer holds a model's weights."""
    parameters = sum(weight.numel() for weight in model.parameters())
    if parameters > MOST_PARAMETERS:
        raise BadConfig(
            f"the model has {parameters:,} parameters, and the most is {MOST_PARAMETERS:,}. Make its parts smaller."
        )


def _check_checkpoint(name: str) -> None:
    """Hold that a folder's weights are there and whole, without reading any tensor."""
    found = foreign.find_foreign_checkpoint(name, weights=False)
    # Weights of a hub name are not here yet; the download checks them.
    if not foreign.is_hub_name(name):
        found.format.check_weights(found.folder)


def _check_weights(collect: ErrorCollector, sections: Recipe, model: VisualChatModel) -> None:
    """Load the weights that parts name, where they are here, into the model that has no memory."""
    parts = {"encoder": sections.model.encoder, "inquiry_encoder": sections.model.inquiry_encoder}
    parts["language_model"] = sections.model.language_model
    modules: dict[str, Any] = {str(kind): module for kind, module in model.parts().items()}
    with warnings.catch_warnings():
        # torch warns of every tensor that such a model does not keep. That is the point: names and shapes are compared.
        warnings.filterwarnings("ignore", message=".*meta parameter")
        for kind, part in parts.items():
            path = getattr(part.config, "path", None) if part is not None else None
            # What lies on the hub is checked by the download.
            if path and Path(path).exists() and kind in modules:
                collect.try_build(f"model.{kind}", modules[kind].load_weights)


def _check_splits(collect: ErrorCollector, sections: Recipe, task: Task | None) -> dict[str, str]:
    """Look up every split that the recipe names; return those in which nothing fails, each with its key."""
    if task is None:
        return {}
    named = {"task": "train", "eval.split": sections.eval.split}
    if sections.train.validate_every is not None:
        named["train.validate_every"] = "val"
    if sections.rl is not None:
        named["rl.split"] = sections.rl.split
    found: dict[str, str] = {}
    for key, split in named.items():
        needed = functools.partial(require_samples, task, str(sections.task), split)
        opened = functools.partial(check_sources, task, sections.model.source, split)
        if collect.try_build(key, needed) is not None and collect.check_fits(key, opened):
            # Two keys may name the same split, which is told by the first.
            found.setdefault(split, key)
    return found


def _check_training(collect: ErrorCollector, sections: Recipe, model: VisualChatModel | None) -> LearningReport | None:
    """Build the optimizer, and try freezing, the optimizer and compiling; return what is trained."""
    section = sections.train
    optimizer = collect.try_build("train.optimizer", section.optimizer.build)
    if model is None:
        return None
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    new = None if section.init_from else sections.model
    report = _check_learning(collect, model, section, optimizer, "train", section.precision, new)
    if section.compile:
        collect.check_fits("train.compile", model.vision.check_compiles)
    if section.pack_tokens is not None:
        collect.check_fits("train.pack_tokens", lambda: require_packing(model))
    collect.check_fits("train.language_model_checkpointing", functools.partial(check_memory_settings, model, section))
    # Reinforcement starts from the unfrozen model: what the first stage freezes the second may train.
    remove_adapters(model)
    for weight in learning:
        weight.requires_grad_(True)
    return report


def _check_reinforcement(
    collect: ErrorCollector, recipe: CheckedRecipe, section: RLSection, model: VisualChatModel | None
) -> LearningReport | None:
    """Build every component of section `rl`, and try freezing and the optimizer; return what is trained."""
    from vilavt_toolkit.training.reinforcement.rollouts import WeightedRewards
    from vilavt_toolkit.training.reinforcement.run import starts_from_base

    collect.try_build("rl.rewards", lambda: WeightedRewards(section.rewards))
    collect.try_build("rl.advantage", section.advantage.build)
    collect.try_build("rl.policy_loss", section.policy_loss.build)
    optimizer = collect.try_build("rl.optimizer", section.optimizer.build)
    if model is None:
        return None
    is_new = starts_from_base(recipe, section)
    precision, new = recipe.recipe.train.precision, recipe.recipe.model if is_new else None
    report = _check_learning(collect, model, section, optimizer, "rl", precision, new)
    if section.pack_tokens is not None:
        collect.check_fits("rl.pack_tokens", lambda: require_packing(model, "rl"))
    # The model is checked further as section `model` describes it.
    remove_adapters(model)
    return report


def _check_learning(
    collect: ErrorCollector,
    model: VisualChatModel,
    section: StageSection,
    optimizer: Optimizer | None,
    key: str,
    precision: str,
    new: ModelSection | None,
) -> LearningReport | None:
    """Try what a stage trains and how; `new` are the settings of a model that it starts with new parts of, if any."""
    from vilavt_toolkit.checkpoints.loading import find_new_parts
    from vilavt_toolkit.training.trainable import (
        add_stage_adapters,
        check_frozen_dtype,
        refuse_frozen_new,
        select_trained,
        try_optimizer,
    )

    collect.check_fits(f"{key}.frozen_dtype", lambda: check_frozen_dtype(section, precision, key))
    # Adapters first, so that their errors are told at their own key.
    if not collect.check_fits(f"{key}.lora", lambda: add_stage_adapters(model, section, key)):
        return None
    if not collect.check_fits(f"{key}.freeze", lambda: select_trained(model, section, key)):
        return None
    if new is not None:
        collect.check_fits(f"{key}.freeze", lambda: refuse_frozen_new(model, section, find_new_parts(new), key))
    if optimizer is None:
        return None
    # The optimizer is tried on the frozen model, since it refuses one in which nothing is trainable.
    rates = collect.try_build(f"{key}.optimizer", lambda: try_optimizer(optimizer, model, section, key))
    return None if rates is None else LearningReport.of_model(model, rates)


def _check_start(collect: ErrorCollector, recipe: CheckedRecipe) -> None:
    """Try what a stage does before its first step, and write nothing."""
    from vilavt_toolkit.checkpoints.run_folder import expand_home
    from vilavt_toolkit.checkpoints.run_lock import refuse_run_folder
    from vilavt_toolkit.training.metric_log import check_trackers
    from vilavt_toolkit.training.trainer import make_trainer
    from vilavt_toolkit.training.world import World, check_launcher

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    section = recipe.recipe.train
    # Pretended: a check starts no other process.
    world = World(0, section.devices * section.nodes)
    collect.check_fits("train", lambda: check_launcher(section))
    collect.try_build("train", lambda: make_trainer(section, world, logger=False, enable_progress_bar=False))
    collect.check_fits("train", lambda: check_trackers(recipe.recipe.train.trackers))
    collect.try_build("run", lambda: refuse_run_folder(expand_home(recipe.recipe.run)))
    if recipe.recipe.train.init_from:
        collect.try_build("train.init_from", lambda: _check_initial_weights(recipe))


def _check_initial_weights(recipe: CheckedRecipe) -> None:
    """Raise VilavtError unless the weights that training starts from are those of the recipe's model."""
    from vilavt_toolkit.checkpoints.loading import load_matching_weights
    from vilavt_toolkit.checkpoints.run_folder import expand_home
    from vilavt_toolkit.training.stage import Stage
    from vilavt_toolkit.training.trainer import find_initial_checkpoint

    section = recipe.recipe.train
    stage = Stage(recipe, section, expand_home(recipe.recipe.run), section.steps, "train")
    folder = find_initial_checkpoint(stage, section.init_from)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*meta parameter")
        load_matching_weights(recipe, folder, other_stopping=True)
