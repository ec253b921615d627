"""Frozen parts cost no backward: no autograd node before the first modulated block, nothing kept for their weights."""

import dataclasses

import pytest
import torch
from torch import nn

from vilavt_components.encoders.timm.encoder import TimmEncoder
from vilavt_components.modulators.film import FiLM, FiLMConfig
from vilavt_toolkit.testing.bench import WordInquiryEncoder, example_views
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

GROUPS = [0, 1, 0, 2, 1]
DEPTH, FIRST = 4, 2


@pytest.fixture
def frozen():
    """An encoder of four blocks, frozen, of which the last two are modulated."""
    torch.manual_seed(0)
    tiny = TimmEncoder.tiny()
    encoder = TimmEncoder(dataclasses.replace(tiny, config={**tiny.config, "depth": DEPTH}))
    encoder.requires_grad_(False)
    made = DynamicEncoder(encoder, [(FiLM, FiLMConfig(zero_init=False))], "late", WordInquiryEncoder())
    assert list(made.modulators) == [str(block) for block in range(FIRST, DEPTH)]
    return made.train()


def encode(made, texts=("a b", "", "c")):
    return made.encode(example_views(made.backbone), GROUPS, [made.tokenize(text) for text in texts])[0]


def outputs_of_blocks(made, monkeypatch):
    """What goes into and comes out of every block, by index."""
    seen, block = {}, made.backbone.block

    def spy(index, tokens, site, attend):
        seen[index] = (tokens.x, block(index, tokens, site, attend))
        return seen[index][1]

    monkeypatch.setattr(made.backbone, "block", spy)
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_node_is_made_before_the_first_modulated_block(frozen, monkeypatch, checkpointing):
    frozen.gradient_checkpointing = checkpointing
    seen = outputs_of_blocks(frozen, monkeypatch)
    features = encode(frozen)
    assert features.requires_grad
    for index in range(DEPTH):
        before, after = seen[index]
        assert before.requires_grad == (index > FIRST)
        assert after.requires_grad == (index >= FIRST)
        assert (after.grad_fn is None) == (index < FIRST)


def saved_while_encoding(made):
    """Storages that autograd keeps, and those that go into the encoder's linear layers, by name."""
    kept, inputs = set(), {}

    def keep(tensor):
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, args[0]))
        for name, module in made.backbone.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = encode(made)
    for site in hooks:
        site.remove()
    return features, {name for name, x in inputs.items() if x.untyped_storage().data_ptr() in kept}, set(inputs)


def test_frozen_linear_layers_keep_no_input_for_the_gradient_of_their_weights(frozen):
    features, kept, layers = saved_while_encoding(frozen)
    features.sum().backward()
    assert len(layers) == 4 * DEPTH
    # What attention gives is kept by attention itself.
    assert all("attn.proj" in name for name in kept), kept
    frozen.backbone.requires_grad_(True)
    assert saved_while_encoding(frozen)[1] == layers, "trained ones keep theirs, or this test sees nothing"


def test_without_an_inquiry_a_frozen_encoder_makes_no_graph_at_all(frozen):
    assert not encode(frozen, ("", "", "")).requires_grad


def test_a_frozen_inquiry_encoder_makes_no_graph(frozen, monkeypatch):
    made, forward = [], frozen.inquiry_encoder.forward
    monkeypatch.setattr(frozen.inquiry_encoder, "forward", lambda ids: made.append(forward(ids)) or made[-1])
    encode(frozen)
    assert all(x.requires_grad for x in made[0])
    frozen.inquiry_encoder.requires_grad_(False)
    features = encode(frozen)
    assert all(x.grad_fn is None for x in made[1])
    features.square().mean().backward()
    assert all(parameter.grad is not None for parameter in frozen.modulators.parameters())
