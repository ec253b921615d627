"""`train.strategy: auto`: what the state takes, as it is after a real step, and the strategy that follows from it."""

from __future__ import annotations

import pytest
import torch

from vilavt_toolkit.checkpoints.loading import build
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.config.schema import PARTS_WITH_WEIGHTS
from vilavt_toolkit.models.assemble import assemble_model
from vilavt_toolkit.training.strategy_choice import choose_strategy, measure_state, resolve_strategy
from vilavt_toolkit.training.trainable import build_optimizer, select_trained, store_frozen, trainable_parameters
from vilavt_toolkit.training.world import World

LORA = "train.lora={rank: 2, targets: [language_model]}"
CASES = {
    "all": [],
    "frozen": ["train.freeze=[encoder]"],
    "adapters": ["train.freeze=[encoder]", LORA, "train.precision=bf16-mixed", "train.frozen_dtype=bfloat16"],
    "bfloat16": ["train.precision=bf16-true"],
    "no moments": ["train.precision=bf16-true", "train.optimizer.master=none"],
}


def bytes_of(tensors) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_the_size_is_that_of_a_real_model_and_its_optimizer_after_a_step(tiny_recipe, settings):
    recipe = load_recipe(tiny_recipe, settings)
    section = recipe.recipe.train
    shapes = assemble_model(recipe.recipe.model, recipe.where, filled=frozenset(PARTS_WITH_WEIGHTS))
    found = measure_state(shapes, section)

    # The tokenizer of a new model is trained on the task, which changes the size of the embeddings.
    model = assemble_model(recipe.recipe.model, recipe.where)
    if section.precision == "bf16-true":
        model.to(torch.bfloat16)
    select_trained(model, section)
    store_frozen(model, section, section.precision)
    optimizer = build_optimizer(section.optimizer.build(), trainable_parameters(model))
    for _, weight in trainable_parameters(model):
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    state = [
        value for values in optimizer.state.values() for value in values.values() if isinstance(value, torch.Tensor)
    ]
    large = [value for value in state if value.dim()]
    copies = 2 * sum(w.numel() for w in model.parameters() if w.dtype == torch.float32) if LORA in settings else 0
    assert found.weights == bytes_of(model.parameters()) + copies
    assert found.gradients == bytes_of(weight.grad for _, weight in trainable_parameters(model))
    assert found.optimizer == pytest.approx(bytes_of(large), rel=1e-3)
    assert all(weight.is_meta for weight in shapes.parameters())


def test_a_mean_of_the_weights_takes_four_bytes_of_each(tiny_recipe):
    sizes = []
    for settings in ([], ["train.ema=0.9"]):
        recipe = load_recipe(tiny_recipe, settings)
        sizes.append(measure_state(build(tiny_recipe), recipe.recipe.train).optimizer)
    trained = sum(weight.numel() for weight in build(tiny_recipe).parameters())
    assert sizes[1] - sizes[0] == 4 * trained


def test_weights_are_sharded_where_the_state_takes_more_than_its_share_of_a_device(tiny_recipe):
    recipe = load_recipe(tiny_recipe)
    shapes = assemble_model(recipe.recipe.model, recipe.where, filled=frozenset(PARTS_WITH_WEIGHTS))
    limit = int(measure_state(shapes, recipe.recipe.train).total / 0.7)
    assert choose_strategy(recipe, limit + 2)[0] == "replicated"
    strategy, reason = choose_strategy(recipe, limit - 2)
    assert strategy == "fsdp2" and "GiB of a device, which should be 70% at most" in reason


def test_what_excludes_sharding_is_told_and_keeps_the_weights_replicated(tiny_recipe):
    strategy, reason = choose_strategy(load_recipe(tiny_recipe, ["train.precision=16-mixed"]), 1)
    assert strategy == "replicated" and "fsdp2 is not possible" in reason


def test_a_strategy_that_is_written_is_taken_and_one_device_needs_none(tiny_recipe, caplog):
    written = load_recipe(tiny_recipe, ["train.devices=2", "train.strategy=fsdp2"])
    alone = load_recipe(tiny_recipe)
    assert resolve_strategy(written, World(0, 2)) is written and resolve_strategy(alone, World()) is alone
    assert not caplog.records
    chosen = resolve_strategy(load_recipe(tiny_recipe, ["train.devices=2"]), World(0, 2))
    assert chosen.recipe.train.strategy == "replicated" and chosen.resolved["train"]["strategy"] == "auto"
    assert "train.strategy auto is replicated" in caplog.text
