"""An evaluation from Python, as the command `vilavt eval` runs it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from vilavt_toolkit.checkpoints.native import load_run_recipe
from vilavt_toolkit.config.recipe import recipe_names
from vilavt_toolkit.config.yaml_reading import SUFFIXES
from vilavt_toolkit.evaluation.run import evaluate_recipe, evaluate_run
from vilavt_toolkit.registry.trust import trusting_plugins


def evaluate(
    run: str | os.PathLike[str], overrides: Sequence[str] = (), name: str | None = None, trust_plugins: bool = False
) -> dict[str, Any]:
    """Evaluate a run, or the model that a recipe starts from, and return the summary; raises VilavtError.

    `overrides` are texts like "eval.items=100". The files go into the run's folder `eval`, or into `eval-NAME`.
    `trust_plugins` is that of `vt.load`.
    """
    silent = Console(quiet=True)
    with trusting_plugins(trust_plugins):
        if names_recipe(run):
            return evaluate_recipe(load_run_recipe(os.fspath(run), overrides), silent, name)
        return evaluate_run(run, overrides, silent, name)


def names_recipe(run: str | os.PathLike[str]) -> bool:
    """Return True for the name or path of a recipe, and False for the folder of a run."""
    text = os.fspath(run)
    # `runs/quickstart` is a folder and may also end like a recipe's name: what exists on disk comes first.
    return not os.path.isdir(text) and (text.endswith(SUFFIXES) or text in recipe_names())
