"""Both training stages from Python, as the commands `vilavt train` and `vilavt rl` run them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vilavt_toolkit.checkpoints.native import load_run_recipe
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.registry.trust import trusting_plugins
from vilavt_toolkit.training.reinforcement.run import run_reinforcement
from vilavt_toolkit.training.supervised.run import run_supervised

Name = str | os.PathLike[str]


def train(
    recipe: Name,
    overrides: Sequence[str] = (),
    resume: bool = False,
    allow_changes: bool = False,
    trust_plugins: bool = False,
) -> Path:
    """Train the model of a recipe, given by name or path, and return the run folder; raises VilavtError.

    `overrides` are texts like "train.steps=100". `resume` continues from the run's last checkpoint, and with
    `allow_changes` also if settings or data have changed. `trust_plugins` is that of `vt.load`.
    """
    return run_supervised(_read_recipe(recipe, overrides, trust_plugins), resume, allow_changes)


def reinforce(
    recipe: Name,
    overrides: Sequence[str] = (),
    resume: bool = False,
    allow_changes: bool = False,
    trust_plugins: bool = False,
) -> Path:
    """Improve the trained run of a recipe by reinforcement, and return the new run folder; raises VilavtError.

    The arguments are those of `train`.
    """
    return run_reinforcement(_read_recipe(recipe, overrides, trust_plugins), resume, allow_changes)


def _read_recipe(recipe: Name, overrides: Sequence[str], trust_plugins: bool) -> CheckedRecipe:
    with trusting_plugins(trust_plugins):
        return load_run_recipe(os.fspath(recipe), overrides)
