"""Activations that are computed again or moved away: the same gradients, in less memory."""

from __future__ import annotations

import copy

import pytest
import torch

from vilavt_toolkit.dialogue.traces import build_trace_session
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.models.saved_activations import ActivationMover, offload_activations, recompute_blocks
from vilavt_toolkit.training.losses import target_logprobs


@pytest.fixture(params=["tiny_model", "mrope_model"])
def chat_model(request):
    """A model of `hf_causal`, and one of `qwen2_5_vl`, that tests may change."""
    return copy.deepcopy(request.getfixturevalue(request.param))


@pytest.fixture
def batch(chat_model, tiny_task):
    sessions = [build_trace_session(chat_model, tiny_task.sample("train", index)) for index in range(2)]
    return collate([s.trajectory for s in sessions], [s.views for s in sessions], chat_model.language_model)


def gradients(model, batch) -> tuple[dict[str, torch.Tensor], int]:
    """The gradient of a loss by weight, and the bytes that the forward pass kept for it beside weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def count(saved: torch.Tensor) -> torch.Tensor:
        # Storages are held until the end, so that no address is that of two.
        kept.setdefault(saved.untyped_storage().data_ptr(), saved.untyped_storage())
        return saved

    model.zero_grad()
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
        states = model.run_layers(batch)
    (-target_logprobs(model.language_model, states, batch)).sum().backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return found, sum(each.nbytes() for address, each in kept.items() if address not in weights)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and len(found) > 20
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("training", [False, True], ids=["evaluation mode", "training mode"])
def test_layers_that_are_computed_again_have_the_same_gradient_in_less_memory(chat_model, batch, training):
    """Evaluation mode is that of reinforcement, in which transformers' own checkpointing does nothing."""
    chat_model.train(training)
    plain, most = gradients(chat_model, batch)
    names = list(chat_model.state_dict())
    needed = {}
    for every in (2, 1):
        chat_model.language_model_checkpointing = every
        found, needed[every] = gradients(chat_model, batch)
        assert_equal(found, plain)
    assert needed[1] < needed[2] < most
    chat_model.vision.gradient_checkpointing = 2
    found, half = gradients(chat_model, batch)
    chat_model.vision.gradient_checkpointing = 1
    again, least = gradients(chat_model, batch)
    assert_equal(found, plain)
    assert_equal(again, plain)
    assert least < half < needed[1] and least < 0.5 * most
    assert list(chat_model.state_dict()) == names
    assert not any("forward" in vars(block) for block in chat_model.language_model.blocks)


def test_dropout_is_the_same_when_a_layer_is_computed_again(tiny_model, tiny_task):
    model = copy.deepcopy(tiny_model).train()
    for layer in model.language_model.blocks:
        layer.self_attn.attention_dropout = 0.5
    session = build_trace_session(model, tiny_task.sample("train", 0))
    batch = collate([session.trajectory], [session.views], model.language_model)
    plain, _ = gradients(model, batch)
    model.language_model_checkpointing = 1
    assert_equal(gradients(model, batch)[0], plain)
    for layer in model.language_model.blocks:
        layer.self_attn.attention_dropout = 0.0
    assert any(not torch.equal(found, plain[name]) for name, found in gradients(model, batch)[0].items())


def test_nothing_is_computed_again_where_there_is_no_backward_pass(tiny_model):
    blocks = tiny_model.language_model.blocks
    assert len(blocks) == 2
    with torch.no_grad(), recompute_blocks(blocks, 1):
        assert not any("forward" in vars(block) for block in blocks)
    with recompute_blocks(blocks, 2):
        assert ["forward" in vars(block) for block in blocks] == [True, False]


def test_activations_that_were_moved_come_back_as_they_were(chat_model, batch):
    """Between two places in the memory of the CPU, which is the same work as from a GPU."""
    plain, _ = gradients(chat_model, batch)
    moved = {}
    for every in (0, 1):
        chat_model.language_model_checkpointing = every
        mover = ActivationMover(chat_model, smallest=0, moves_from=("cpu",))
        with torch.autograd.graph.saved_tensors_hooks(mover.pack, mover.unpack):
            states = chat_model.run_layers(batch)
        chat_model.zero_grad()
        (-target_logprobs(chat_model.language_model, states, batch)).sum().backward()
        found = {name: weight.grad for name, weight in chat_model.named_parameters() if weight.grad is not None}
        assert_equal(found, plain)
        moved[every] = mover.moved
    assert 0 < moved[1] < moved[0], "the inputs of layers that are computed again are moved too"


def test_weights_and_small_tensors_stay_where_they_are():
    layer = torch.nn.Linear(8, 16)
    mover = ActivationMover(layer, smallest=256, moves_from=("cpu",))
    for saved in (layer.weight, layer.weight.t(), layer.weight.detach().bfloat16(), torch.zeros(63)):
        assert mover.pack(saved) is saved
    assert mover.moved == 0 and not isinstance(mover.pack(torch.zeros(64)), torch.Tensor) and mover.moved == 256


def test_on_a_cpu_nothing_is_moved(chat_model, batch):
    plain, most = gradients(chat_model, batch)
    chat_model.offloads_activations = True
    found, bytes_kept = gradients(chat_model, batch)
    assert_equal(found, plain)
    with offload_activations(torch.nn.Linear(1, 1), is_on=False):
        assert bytes_kept <= most


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_activations_of_a_gpu_wait_in_the_memory_of_the_cpu():
    model = torch.nn.Sequential(*(layer for _ in range(4) for layer in (torch.nn.Linear(256, 256), torch.nn.GELU())))
    model, x = model.cuda(), torch.randn(4096, 256, device="cuda")
    needed, found = [], []
    for is_on in (False, True):
        model.zero_grad()
        before = torch.cuda.memory_allocated()
        with offload_activations(model, is_on):
            out = model(x)
        needed.append(torch.cuda.memory_allocated() - before)
        out.square().mean().backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
        del out
    assert needed[1] < 0.5 * needed[0]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
