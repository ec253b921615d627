"""`vilavt check`: everything that would fail later in a recipe, found without allocating or loading weights."""

from __future__ import annotations

import functools
from typing import Any

import torch
from rich.table import Table

from vilavt_toolkit.config.limits import MOST_PARAMETERS
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.config.schema import Recipe, RLSection
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.data.source_check import check_sources
from vilavt_toolkit.data.splits import require_samples
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.formats import foreign
from vilavt_toolkit.models.assemble import ErrorCollector, assemble_model
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.text import shorten_list


def check_recipe(recipe: CheckedRecipe) -> VisualChatModel:
    """Return a recipe's model on the meta device; raises RecipeErrors with all that would fail later."""
    sections = recipe.recipe
    collect = ErrorCollector(recipe.where)
    # On the meta device nothing is allocated, so a recipe of a 7 B model is checked in seconds on a laptop.
    with torch.device("meta"):
        model = collect.try_build("model", lambda: assemble_model(sections.model, recipe.where))
    if model is not None:
        collect.check_fits("model", lambda: _check_size(model))
    if sections.model.checkpoint:
        collect.try_build("model.checkpoint", lambda: _check_checkpoint(sections.model.checkpoint))
    _check_task(collect, sections)
    _check_training(collect, sections, model)
    if sections.rl is not None:
        _check_reinforcement(collect, sections.rl, model)
    collect.raise_errors()
    assert model is not None
    return model


def _check_size(model: VisualChatModel) -> None:
    """Raise BadConfig if no computer holds a model's weights."""
    parameters = _count_parameters(model)
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


def _check_task(collect: ErrorCollector, sections: Recipe) -> None:
    """Build the task and look up every split that the recipe names."""
    task: Task | None = collect.try_build("task", sections.task.build)
    if task is None:
        return
    splits = {"task": "train", "eval.split": sections.eval.split}
    if sections.rl is not None:
        splits["rl.split"] = sections.rl.split
    for key, split in splits.items():
        if collect.try_build(key, functools.partial(require_samples, task, str(sections.task), split)) is not None:
            check = functools.partial(check_sources, task, sections.model.source, split)
            collect.try_build(key, check)


def _check_training(collect: ErrorCollector, sections: Recipe, model: VisualChatModel | None) -> None:
    """Build the optimizer, and try freezing, the optimizer and compiling on the model."""
    from vilavt_toolkit.training.trainable import freeze_parts, try_optimizer

    section = sections.train
    optimizer = collect.try_build("train.optimizer", section.optimizer.build)
    if model is None:
        return
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    if collect.check_fits("train.freeze", lambda: freeze_parts(model, section.frozen)) and optimizer is not None:
        collect.check_fits("train.optimizer", lambda: try_optimizer(optimizer, model))
    if section.compile:
        collect.check_fits("train.compile", model.vision.check_compiles)
    # Reinforcement starts from the unfrozen model: what the first stage freezes the second may train.
    for weight in learning:
        weight.requires_grad_(True)


def _check_reinforcement(collect: ErrorCollector, section: RLSection, model: VisualChatModel | None) -> None:
    """Build every component of section `rl`, and try freezing and the optimizer on the model."""
    from vilavt_toolkit.training.reinforcement.rollouts import WeightedRewards
    from vilavt_toolkit.training.trainable import freeze_parts, try_optimizer

    collect.try_build("rl.rewards", lambda: WeightedRewards(section.rewards))
    collect.try_build("rl.advantage", section.advantage.build)
    collect.try_build("rl.policy_loss", section.policy_loss.build)
    optimizer = collect.try_build("rl.optimizer", section.optimizer.build)
    if model is None:
        return
    # The optimizer is tried on the frozen model, since it refuses one in which nothing is trainable.
    if collect.check_fits("rl.freeze", lambda: freeze_parts(model, section.frozen, "rl")) and optimizer is not None:
        collect.check_fits("rl.optimizer", lambda: try_optimizer(optimizer, model, "rl"))


def make_parts_table(recipe: CheckedRecipe, model: VisualChatModel) -> Table:
    """Return a table of a recipe's components with their parameters and shapes."""
    section, vision, language = recipe.recipe.model, model.vision, model.language_model
    spec, inquiry = vision.backbone.spec, vision.inquiry_encoder
    table = Table(title=f"{recipe.name}: {_count_parameters(model):,} parameters")
    table.add_column("part")
    table.add_column("name")
    table.add_column("parameters", justify="right")
    table.add_column("shapes")

    # Encoders of stages have blocks of several widths.
    widths = "/".join(map(str, sorted({block.width for block in spec.blocks})))
    blocks = f"{spec.depth} blocks of width {widths}, positions {spec.positions}"
    modulated = f"blocks {shorten_list([*vision.modulators], 48) or 'none'}"
    tokens = f"width {language.width}, {language.vocab_size:,} tokens, context {language.context_length:,}"
    units = model.dialogue.units_per_side
    boxes = f"boxes in {units} units per side" if units else "boxes in pixels"
    learned = _count_parameters(model.stopping)

    table.add_row("source", section.source.name, "", f"modality {section.source.entry.cls.modality}")
    table.add_row("encoder", section.encoder.name, f"{_count_parameters(vision.backbone):,}", blocks)
    table.add_row("modulator", _join_names(section.modulator), f"{_count_parameters(vision.modulators):,}", modulated)
    if inquiry is not None:
        parameters, width = f"{_count_parameters(inquiry):,}", f"width {inquiry.width}"
        table.add_row("inquiry encoder", section.inquiry_encoder.name, parameters, width)
    width = f"{spec.out_width} -> {language.width}"
    table.add_row("projector", section.projector.name, f"{_count_parameters(model.projector):,}", width)
    table.add_row("language model", section.language_model.name, f"{_count_parameters(language):,}", tokens)
    table.add_row("dialogue", section.dialogue.name, "", boxes)
    table.add_row("stopping", _join_names(section.stopping), f"{learned:,}" if learned else "", "")
    table.add_row("task", recipe.recipe.task.name, "", "")
    return table


def _join_names(parts: list[Any]) -> str:
    return shorten_list([part.name for part in parts], 12)


def _count_parameters(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())
