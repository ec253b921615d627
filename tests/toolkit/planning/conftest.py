"""A recipe of a step in which numbers weigh more than Python does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vilavt_toolkit.checkpoints.native import load_run_recipe
from vilavt_toolkit.config.recipe import CheckedRecipe

MEDIUM = [
    "model.encoder.config={img_size: 32, patch_size: 4, embed_dim: 96, depth: 3, num_heads: 4, mlp_ratio: 4.0}",
    "model.language_model.config={model_type: llama, hidden_size: 128, intermediate_size: 256, num_hidden_layers: 3, "
    "num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 1024}",
    "model.language_model.vocab_size=800",
    "train.micro_batch=4",
]
"""Overrides of the tiny recipe."""


@pytest.fixture
def read_medium(tiny_recipe: Path) -> Callable[..., CheckedRecipe]:
    """Return a function that reads the recipe with more overrides."""
    return lambda *overrides: load_run_recipe(str(tiny_recipe), [*MEDIUM, *overrides])


@pytest.fixture
def medium_overrides() -> list[str]:
    """Return the overrides that `read_medium` reads the tiny recipe with."""
    return list(MEDIUM)
