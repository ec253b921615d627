"""Operations of a step: three forward passes where everything is trained, two where gradients only pass through."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vilavt_toolkit.generation.flops import CostCounter
from vilavt_toolkit.models.batch import collate
from vilavt_toolkit.training.losses import target_logprobs
from vilavt_toolkit.training.step_cost import TrainingCostCounter, find_peak_rate
from vilavt_toolkit.training.supervised.data import StepCollator, TraceDataset


@pytest.fixture(scope="module")
def batch(tiny_model, tiny_task):
    dataset = TraceDataset(tiny_model, tiny_task, 4)
    (micro_batch,) = StepCollator(4, tiny_model.language_model)([dataset[index] for index in range(4)]).micro_batches
    return micro_batch


def forward_flops(model, batch) -> float:
    costs, lengths = CostCounter(model), batch.mask.sum(1).tolist()
    reading = sum(costs.reading_flops(length, 0, 0) for length in lengths)
    return (
        costs.encoding_cost(batch.views, batch.groups).flops + reading + costs.reading_flops(0, 0, len(batch.targets))
    )


def test_training_everything_costs_three_forward_passes(tiny_model, batch):
    cost = TrainingCostCounter(tiny_model).count(batch)
    assert cost.flops == pytest.approx(3 * forward_flops(tiny_model, batch))
    assert cost.tokens == int(batch.mask.sum()) and cost.patches == sum(
        tiny_model.vision.backbone.token_count(view.size) for view in batch.views
    )


def test_dialogues_that_share_a_row_cost_what_each_costs_alone(tiny_model, tiny_task, batch):
    dataset = TraceDataset(tiny_model, tiny_task, 4)
    samples = [dataset[index] for index in range(4)]
    packed = collate(*zip(*samples, strict=True), tiny_model.language_model, packed=True)
    counter = TrainingCostCounter(tiny_model)
    assert counter.count(packed).flops == pytest.approx(counter.count(batch).flops)
    assert counter.count(packed).tokens == counter.count(batch).tokens == packed.ids.numel()


def test_frozen_parts_cost_what_gradients_need(tiny_model, batch):
    forward, model = forward_flops(tiny_model, batch), copy.deepcopy(tiny_model)
    encoding = CostCounter(model).encoding_cost(batch.views, batch.groups).flops
    attention = sum(CostCounter(model).reading_attention_flops(n, 0) for n in batch.mask.sum(1).tolist())
    model.language_model.requires_grad_(False)
    reading = forward - encoding
    expected = 3 * encoding + 2 * (reading - attention) + 3 * attention
    assert TrainingCostCounter(model).count(batch).flops == pytest.approx(expected)
    model.requires_grad_(False)
    assert TrainingCostCounter(model).count(batch).flops == pytest.approx(forward)


def test_the_count_is_that_of_torch_but_for_what_it_leaves_out(tiny_model, batch):
    """Torch counts padding and inquiries too, and has no formula of attention on the CPU."""
    model = copy.deepcopy(tiny_model)
    counter = FlopCounterMode(display=False)
    with counter:
        target_logprobs(model.language_model, model.run_layers(batch), batch).sum().backward()
    costs = CostCounter(model)
    attention = costs.encoding_attention_flops(batch.views, batch.groups)
    attention += sum(costs.reading_attention_flops(length, 0) for length in batch.mask.sum(1).tolist())
    counted = TrainingCostCounter(model).count(batch).flops - 3 * attention
    # Nor does it count a gradient of the pixels, which nobody needs.
    assert 0.8 * counter.get_total_flops() < counted < 1.2 * counter.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_of_a_device_without_a_data_sheet_is_measured_without_random_numbers(dtype):
    before = torch.get_rng_state()
    assert 1e8 < find_peak_rate(torch.device("cpu"), dtype) < 1e15
    assert torch.equal(torch.get_rng_state(), before)
