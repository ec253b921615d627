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


def test_torch_chooses_how_to_update_unless_the_recipe_does():
    """With False in place of None torch would update one tensor after another on a GPU."""
    chosen = [
        AdamW(AdamWConfig(fused=fused)).build(Model().named_parameters()).defaults["fused"] for fused in (False, True)
    ]
    assert chosen == [None, True]
