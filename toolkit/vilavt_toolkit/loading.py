"""Models by what a user has: a run folder, or a recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from vilavt_toolkit.assemble import assemble, load_weights
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.model import VisualChatModel
from vilavt_toolkit.recipe import CheckedRecipe, load_recipe
from vilavt_toolkit.training import checkpoints


def load(path: str | os.PathLike[str], device: torch.device | str = "auto") -> VisualChatModel:
    """Load the newest checkpoint of a run, ready to be asked; `auto` takes a GPU if there is one. Raises RunError."""
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return checkpoints.load(path, chosen)[0]


def build(recipe: str | os.PathLike[str], overrides: Sequence[str] = ()) -> VisualChatModel:
    """Build the model of a recipe by name or path, pretrained where it says so, else at random; raises RecipeErrors."""
    checked = load_recipe(os.fspath(recipe), overrides)
    torch.manual_seed(checked.recipe.seed)
    return build_model(checked).eval()


def build_model(checked: CheckedRecipe) -> VisualChatModel:
    """Assemble the model of a checked recipe; tokenizers are trained and weights loaded where it says so."""
    section = checked.recipe.model
    model = assemble(section, str(checked.path))
    task: Task = checked.recipe.task.entry.cls(checked.recipe.task.config)
    fixed = model.dialogue.fixed_strings(section.source.entry.cls.box_key)
    model.language_model.fit_tokenizer(task.corpus(), fixed)
    load_weights(model)
    return model
