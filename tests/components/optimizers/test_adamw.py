"""AdamW decays matrices only."""

import pytest
import torch
from torch import nn

from vilavt_components.optimizers.adamw import AdamW, AdamWConfig
from vilavt_toolkit.errors import BadConfig


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.ones(1, 4, 2))
        self.embed_tokens = nn.Embedding(3, 2)
        self.patch_embed = nn.Conv2d(3, 2, 2)
        self.norm = nn.LayerNorm(2)
        self.linear = nn.Linear(2, 2)


def decay_of(optimizer, parameter):
    (found,) = [g["weight_decay"] for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
    return found


def test_matrices_and_kernels_decay_and_norms_biases_and_embeddings_do_not():
    model = Model()
    optimizer = AdamW(AdamWConfig(weight_decay=0.1)).build(model.named_parameters())
    assert decay_of(optimizer, model.linear.weight) == 0.1
    assert decay_of(optimizer, model.patch_embed.weight) == 0.1
    for parameter in (model.linear.bias, model.norm.weight, model.pos_embed, model.embed_tokens.weight):
        assert decay_of(optimizer, parameter) == 0


def test_settings_reach_every_group():
    optimizer = AdamW(AdamWConfig(lr=0.5, betas=(0.8, 0.9), eps=1e-6)).build(Model().named_parameters())
    assert len(optimizer.param_groups) == 2
    assert all((g["lr"], g["betas"], g["eps"]) == (0.5, (0.8, 0.9), 1e-6) for g in optimizer.param_groups)


def test_nothing_to_train_is_refused():
    with pytest.raises(BadConfig, match="every part is frozen"):
        AdamW(AdamWConfig()).build(Model().requires_grad_(False).named_parameters())


def test_it_is_fused_wherever_torch_can_unless_the_recipe_says_otherwise():
    """With False in place of None torch would update one tensor after another on a GPU."""
    chosen = [
        AdamW(AdamWConfig(fused=fused)).build(Model().named_parameters()).defaults["fused"]
        for fused in (None, False, True)
    ]
    assert chosen == [True, None, True]
    on_meta = Model().to("meta")
    assert AdamW(AdamWConfig()).build(on_meta.named_parameters()).defaults["fused"] is None


def test_the_fused_update_is_that_of_single_tensors():
    models = [Model(), Model()]
    models[1].load_state_dict(models[0].state_dict())
    for model, fused in zip(models, (True, False), strict=True):
        optimizer = AdamW(AdamWConfig(lr=1e-2, fused=fused)).build(model.named_parameters())
        for step in range(10):
            torch.manual_seed(step)
            for weight in model.parameters():
                weight.grad = torch.randn(weight.shape)
            optimizer.step()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_fused_step_lets_the_gradient_be_unscaled_before_it_is_clipped():
    assert not AdamW(AdamWConfig(fused=True)).build(Model().named_parameters())._step_supports_amp_scaling
