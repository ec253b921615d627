"""Learning rate and weight decay of single weights, by parts and by patterns of names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vilavt_toolkit.checkpoints.loading import build
from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import BadConfig, RecipeErrors, UsageError
from vilavt_toolkit.testing.isolation import isolated_registries
from vilavt_toolkit.training.parameter_groups import find_rules
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.trainable import build_optimizer, trainable_parameters, try_optimizer


def rates_of(recipe, *overrides: str) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every trained weight of a recipe's model."""
    sections, model = load_recipe(recipe, overrides).recipe, build(recipe, overrides)
    module = SupervisedModule(model, sections.train.optimizer.build(), sections.train)
    optimizer = module.configure_optimizers()
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = [
        (names[id(weight)], (group["initial_lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for weight in group["params"]
    ]
    assert len(dict(found)) == len(found) == len(trainable_parameters(model))
    return dict(found)


RATES = 'train.rates={encoder: {lr: 1e-6, weight_decay: 0.3}, "language_model.*q_proj*": {lr: 5e-4}}'


def test_a_part_and_a_pattern_get_their_own_rates_and_all_others_the_optimizers(tiny_recipe):
    base = rates_of(tiny_recipe, "train.optimizer.lr=1e-3", "train.optimizer.weight_decay=0.1")
    found = rates_of(tiny_recipe, "train.optimizer.lr=1e-3", "train.optimizer.weight_decay=0.1", RATES)
    assert {lr for lr, _ in base.values()} == {1e-3} and {decay for _, decay in base.values()} == {0.0, 0.1}
    for name, (lr, decay) in found.items():
        if name.startswith("vision.backbone."):
            assert lr == 1e-6
            assert decay == (0.3 if base[name][1] else 0.0)
        else:
            assert lr == (5e-4 if "language_model" in name and "q_proj" in name else 1e-3)
            assert decay == base[name][1]
    assert {found[name][1] for name in found if name.startswith("vision.backbone.")} == {0.0, 0.3}


def test_a_pattern_comes_before_a_part(tiny_recipe):
    found = rates_of(tiny_recipe, 'train.rates={"language_model.*lm_head*": {lr: 2.0}, language_model: {lr: 1.0}}')
    own = {name: lr for name, (lr, _) in found.items() if name.startswith("language_model.")}
    assert set(own.values()) == {1.0, 2.0}
    assert all((lr == 2.0) == ("lm_head" in name) for name, lr in own.items())


def test_all_rates_follow_the_schedule_together(tiny_recipe):
    sections, model = load_recipe(tiny_recipe, [RATES, "train.warmup_steps=4"]).recipe, build(tiny_recipe)
    module = SupervisedModule(model, sections.train.optimizer.build(), sections.train)
    optimizer = module.configure_optimizers()
    module.optimizers = lambda: optimizer
    module.begin_step()
    assert all(group["lr"] == group["initial_lr"] / 4 for group in optimizer.param_groups)
    assert len({group["lr"] for group in optimizer.param_groups}) == 3


def test_without_rates_the_groups_are_the_optimizers_own(tiny_recipe):
    """So that a checkpoint of an earlier version resumes: its state is numbered in the order of the groups."""
    sections, model = load_recipe(tiny_recipe).recipe, build(tiny_recipe)
    optimizer = sections.train.optimizer.build()
    plain = optimizer.build(trainable_parameters(model))
    rules = find_rules(model, sections.train, "train")
    split = build_optimizer(optimizer, trainable_parameters(model), "train", rules)
    orders = [[id(weight) for group in each.param_groups for weight in group["params"]] for each in (plain, split)]
    assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ('{"language_model.*q_prj*": {lr: 1}}', r"matches no weight\. Nearest: .*q_proj"),
        ("{encodr: {lr: 1}}", "matches no weight. Nearest: encoder"),
        ('{"*q_proj*": {lr: 1}, "language_model.*.weight": {lr: 2}}', "both match language_model.*q_proj"),
    ],
)
def test_patterns_that_match_nothing_or_the_same_weight_are_refused(tiny_recipe, rates, words):
    sections, model = load_recipe(tiny_recipe, [f"train.rates={rates}"]).recipe, build(tiny_recipe)
    with pytest.raises(BadConfig, match=words):
        find_rules(model, sections.train, "train")


def test_a_rate_that_sets_nothing_is_refused(tiny_recipe):
    with pytest.raises(RecipeErrors, match=r"train\.rates\.encoder: it sets nothing"):
        load_recipe(tiny_recipe, ["train.rates={encoder: {}}"])


class Norms(nn.Module):
    """Weights that only their modules, or their names, tell apart from matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm((2, 3))
        self.linear = nn.Linear(2, 3)
        self.relative_position_bias_table = nn.Parameter(torch.ones(4, 2))


class Plain(Optimizer):
    """One that decays all, as an optimizer of a plugin may."""

    def build(self, parameters):
        return torch.optim.SGD([weight for _, weight in parameters], lr=0.1, weight_decay=0.5)


def test_norms_and_biases_of_any_shape_are_not_decayed_by_any_optimizer(tiny_recipe):
    model = build(tiny_recipe)
    model.projector.more = Norms()
    sections = load_recipe(tiny_recipe, ["train.rates={projector: {weight_decay: 0.7}}"]).recipe
    found = try_optimizer(Plain(), model, sections.train)
    mine = {name.removeprefix("projector.more."): found[name].weight_decay for name in found if ".more." in name}
    assert mine == {
        "norm.weight": 0, "norm.bias": 0, "linear.weight": 0.7, "linear.bias": 0, "relative_position_bias_table": 0,
    }  # fmt: skip


def test_decay_for_an_optimizer_without_one_is_refused(tiny_recipe):
    class NoDecay(Optimizer):
        def build(self, parameters):
            built = torch.optim.SGD([weight for _, weight in parameters], lr=0.1)
            for group in built.param_groups:
                del group["weight_decay"]
            return built

    sections = load_recipe(tiny_recipe, ["train.rates={encoder: {weight_decay: 0.7}}"]).recipe
    with isolated_registries(), pytest.raises(UsageError, match=r"no weight decay, which train\.rates sets"):
        try_optimizer(NoDecay(), build(tiny_recipe), sections.train)
