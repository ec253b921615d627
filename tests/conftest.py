"""What many tests share: one small model, assembled from a recipe as a user's would be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Without deadlines: other workers share the cores. `make nightly` asks for its profile by name.
settings.register_profile("suite", max_examples=40, deadline=None)
settings.register_profile("nightly", max_examples=400, deadline=None)
settings.load_profile("suite")

TINY_RECIPE = """
seed: 3
model:
  encoder:
    name: timm
    config: {img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, mlp_ratio: 2.0}
    overview_pixels: 1024
    zoom_pixels: 1024
  modulator: {name: film}
  integration: all
  projector: {name: mlp, hidden_dim: 32}
  language_model:
    name: hf_causal
    vocab_size: 400
    config:
      model_type: llama
      hidden_size: 32
      intermediate_size: 64
      num_hidden_layers: 2
      num_attention_heads: 4
      num_key_value_heads: 2
      max_position_embeddings: 384
      initializer_range: 0.3
  dialogue: {name: native, box_units: 4, system: ''}
  stopping: [{name: model_decides}, {name: max_turns, turns: 3}]
task:
  name: digit_scenes
  size: 64
  cells: 2
  objects: 2
  train_items: 32
  test_items: 12
train:
  steps: 4
  batch_size: 8
  accelerator: cpu
  optimizer: {name: adamw, lr: 1.0e-3}
  checkpoint_every: 2
eval: {max_new_tokens: 16, batch_size: 5}
"""

# Over it: Qwen2.5-VL's tower and language model, whose positions have three axes.
MROPE_RECIPE = """
inherits: tiny.yaml
model:
  encoder:
    name: qwen2_5_vl
    config:
      depth: 2
      hidden_size: 32
      intermediate_size: 64
      num_heads: 2
      out_hidden_size: 32
      patch_size: 4
      temporal_patch_size: 1
      window_size: 16
      fullatt_block_indexes: [1]
      initializer_range: 0.3
    overview_pixels: 1024
    zoom_pixels: 768
    min_pixels: 0
  projector: {name: identity}
  language_model:
    name: qwen2_5_vl
    vocab_size: 400
    config:
      hidden_size: 32
      intermediate_size: 64
      num_hidden_layers: 2
      num_attention_heads: 2
      num_key_value_heads: 2
      max_position_embeddings: 384
      initializer_range: 0.3
"""


@pytest.fixture(scope="session", autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests trust and prepare out of the folders of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VILAVT_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("VILAVT_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        yield


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """A recipe file of a model that is built and trained in seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_RECIPE)
    return path


@pytest.fixture(scope="session")
def _tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY_RECIPE)
    (folder / "mrope.yaml").write_text(MROPE_RECIPE)
    return folder


@pytest.fixture(scope="session")
def tiny_model(_tiny_folder: Path):
    """A random model of that recipe; tests must not change it. Large weights, so that mistakes show."""
    from vilavt_toolkit.checkpoints.loading import build

    return build(_tiny_folder / "tiny.yaml")


@pytest.fixture(scope="session")
def mrope_model(_tiny_folder: Path):
    """A random model of the recipe whose positions have three axes; tests must not change it."""
    from vilavt_toolkit.checkpoints.loading import build

    return build(_tiny_folder / "mrope.yaml")


@pytest.fixture(scope="session")
def tiny_task(_tiny_folder: Path):
    """The task of that recipe."""
    from vilavt_toolkit.config.recipe import load_recipe

    part = load_recipe(_tiny_folder / "tiny.yaml").recipe.task
    return part.build()


@pytest.fixture(scope="session")
def tiny_run(_tiny_folder: Path) -> Path:
    """The run of the tiny recipe after its four steps, with checkpoints at two and four; tests copy it to change it."""
    from vilavt_toolkit.config.recipe import load_recipe
    from vilavt_toolkit.training.supervised.run import run_supervised

    return run_supervised(load_recipe(_tiny_folder / "tiny.yaml", [f"run={_tiny_folder / 'run'}", "train.log_every=1"]))
