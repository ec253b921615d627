"""A trained run that tests read from; training it takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_run(_tiny_folder: Path) -> Path:
    """The run of the tiny recipe after its four steps, with checkpoints at two and four; tests copy it to change it."""
    from vilavt_toolkit.recipe import load_recipe
    from vilavt_toolkit.training.run import train

    return train(load_recipe(_tiny_folder / "tiny.yaml", [f"run={_tiny_folder / 'run'}", "train.log_every=1"]))
