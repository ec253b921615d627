"""Low-rank adapters: on the layers that patterns choose, merged, switched off, and refused where they cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vilavt_components.encoders.timm import TimmEncoder
from vilavt_toolkit.checkpoints.loading import build
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.models import adapters
from vilavt_toolkit.models.adapters import (
    Adapters,
    adapters_switched_off,
    add_adapters,
    find_linear_layers,
    is_adapter,
    list_adapted_layers,
    merge_adapters,
)
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.testing import adapters as claims
from vilavt_toolkit.testing import bench
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder


@pytest.fixture
def model(tiny_recipe):
    return build(tiny_recipe)


def batch_of(tiny_recipe, model):
    from vilavt_toolkit.config.recipe import load_recipe
    from vilavt_toolkit.dialogue.traces import build_trace_session

    task = load_recipe(tiny_recipe).recipe.task.build()
    session = build_trace_session(model, task.sample("train", 0))
    return collate([session.trajectory], [session.views], model.language_model)


def adapted(model, *patterns: str, **settings):
    """A model with adapters that change something, as after a step."""
    layers = find_linear_layers(model, patterns, "train.lora.targets")
    add_adapters(
        model, Adapters(**{"rank": 2, "alpha": 4.0, "dropout": 0.0, "rslora": False, "layers": layers, **settings})
    )
    torch.manual_seed(3)
    for layer in list_adapted_layers(model).values():
        nn.init.normal_(layer.lora_B["default"].weight, std=0.2)
    return model


def test_a_part_chooses_its_linear_layers_without_the_head_and_a_pattern_by_name(model):
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    own = {name for name in linear if name.startswith("language_model.")}
    head = next(name for name in own if "lm_head" in name)
    assert set(find_linear_layers(model, ["language_model"], "k")) == own - {head}
    assert find_linear_layers(model, ["language_model.*lm_head"], "k") == (head,)
    found = find_linear_layers(model, ["*q_proj", "vision.backbone.*blocks.0"], "k")
    assert any(name.endswith("q_proj") for name in found) and any(".blocks.0.attn.qkv" in name for name in found)
    assert all(name.endswith("q_proj") or ".blocks.0." in name for name in found)


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["language_model.*q_prj"], r"matches no linear layer\. Nearest: language_model\.[^ ]*q_proj, "),
        (["language_model.*norm"], "matches no linear layer"),
        (["language_model", "*q_proj"], "both match language_model.*q_proj. Narrow one of them"),
    ],
)
def test_patterns_that_choose_nothing_or_overlap_are_refused(model, patterns, words):
    with pytest.raises(BadConfig, match=words):
        find_linear_layers(model, patterns, "train.lora.targets")


def test_a_layer_that_shares_its_weight_is_refused(model):
    language = model.language_model.model
    language.lm_head.weight = language.get_input_embeddings().weight
    with pytest.raises(BadConfig, match=r"lm_head shares its weight with .*embed_tokens"):
        find_linear_layers(model, ["language_model.*lm_head"], "train.lora.targets")


def test_a_layer_that_its_part_freezes_is_refused(model):
    model.vision.inquiry_encoder.requires_grad_(False)
    with pytest.raises(BadConfig, match="is frozen by its own part"):
        find_linear_layers(model, ["inquiry_encoder"], "train.lora.targets")


@torch.no_grad()
def test_new_adapters_change_nothing_trained_ones_do_and_merging_keeps_it(tiny_recipe, model):
    batch = batch_of(tiny_recipe, model)
    before, names = model(batch), list(model.state_dict())
    changed = adapted(model, "language_model", "encoder")(batch)
    assert (changed - before)[before.isfinite()].abs().max() > 1e-2
    with adapters_switched_off(model):
        assert torch.equal(model(batch), before)
    assert torch.equal(model(batch), changed)
    merge_adapters(model)
    assert model.adapters is None and list(model.state_dict()) == names
    finite = changed.isfinite()
    # Logits of random weights reach 100 here.
    assert torch.allclose(model(batch)[finite], changed[finite], atol=1e-5 * float(changed[finite].abs().max()))


def test_switching_off_leaves_training_as_it_was(model):
    adapted(model, "language_model")
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    with adapters_switched_off(model):
        pass
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before
    assert all(before[name] for name in before if is_adapter(name))


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4 / 2**0.5)])
def test_an_adapter_is_scaled_by_rank_or_its_root(model, rslora, scale):
    layer = next(iter(list_adapted_layers(adapted(model, "*q_proj", rslora=rslora)).values()))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.allclose(layer.weight - layer.get_base_layer().weight, scale * b @ a, atol=1e-6)


def test_a_layer_at_two_places_gets_one_adapter_at_both():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.other = nn.Sequential(self.one)

    module = Twice()
    add_adapters(module, Adapters(2, 4.0, 0.0, False, ("one",)))
    assert module.one is module.other[0] and len(list_adapted_layers(module)) == 1


def test_conv1d_of_gpt2_is_adapted_and_merged_the_other_way_round():
    from transformers.pytorch_utils import Conv1D

    module = nn.Sequential(Conv1D(5, 3), nn.Linear(5, 2))
    add_adapters(module, Adapters(2, 4.0, 0.0, False, ("0", "1")))
    for layer in list_adapted_layers(module).values():
        nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(4, 3)
    expected = module(x)
    merge_adapters(module)
    assert type(module[0]) is Conv1D and torch.allclose(module(x), expected, atol=1e-5)


def test_weights_in_bfloat16_are_rounded_once_when_adapters_are_merged():
    layer = nn.Sequential(nn.Linear(64, 64, bias=False))
    add_adapters(layer, Adapters(4, 1.0, 0.0, False, ("0",)))
    nn.init.normal_(layer[0].lora_B["default"].weight, std=0.01)
    base = layer[0].get_base_layer()
    base.weight.data = base.weight.data.bfloat16()
    exact = base.weight.float() + layer[0].get_delta_weight("default")
    merge_adapters(layer)
    assert torch.equal(layer[0].weight, exact.bfloat16())


def test_without_peft_adapters_are_refused_with_the_command(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(BadConfig, match=r"pip install 'vilavt-toolkit\[peft\]'"):
        add_adapters(model, Adapters(2, 4.0, 0.0, False, ("projector.net.1",)))


def test_the_claim_finds_a_part_that_leaves_adapters_out():
    """As published toolkits did for years: the layer's own weight is read, and its adapter never gets a gradient."""

    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            layer = self.layer
            weight = (layer.base_layer if hasattr(layer, "base_layer") else layer).weight
            return nn.functional.linear(x, weight)

    module, x = Reading(), torch.randn(2, 3)
    with pytest.raises(AssertionError, match="the adapter of 'layer' gets no gradient"):
        claims.assert_adapters_learn(module, lambda: module(x))


def test_without_adapters_in_the_weights_that_blocks_read_the_claim_about_timm_fails(monkeypatch):
    """timm's BEiT adds the biases of `qkv` itself and never calls the layer, whose adapter peft alone leaves out."""
    from peft.tuners.lora import Linear

    encoder = TimmEncoder(TimmEncoder.variants()["relative_table"])
    views = bench.example_views(encoder)

    def run():
        return DynamicEncoder(encoder).encode(views, range(len(views)), [[]] * len(views))[0]

    monkeypatch.setattr(adapters, "_adapted_linear", lambda: Linear)
    with pytest.raises(AssertionError, match="qkv' gets no gradient"):
        claims.assert_adapters_learn(encoder, run)
