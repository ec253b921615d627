"""Training data: every split into micro-batches, every way of making samples ready, teaches the same."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vilavt_toolkit.config.schema import TrainSection
from vilavt_toolkit.contracts import TraceTurn
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.testing.plain_logprobs import plain_logprobs
from vilavt_toolkit.training.schedule import learning_rate_factor
from vilavt_toolkit.training.supervised import workers
from vilavt_toolkit.training.supervised.data import (
    PreparedDataset,
    StepCollator,
    StepSampler,
    TraceDataset,
    build_step_loader,
    build_step_sampler,
)
from vilavt_toolkit.training.world import World


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5), st.data())
def test_the_samples_of_a_step_depend_on_seed_and_step_only(size, batch, seed, data):
    steps = data.draw(st.integers(1, 20))
    start = data.draw(st.integers(0, steps))
    whole = list(StepSampler(size, batch, steps, seed))
    resumed = StepSampler(size, batch, steps + 3, seed, start)
    assert len(resumed) == steps + 3 - start
    assert list(resumed)[: steps - start] == whole[start:]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5), st.integers(1, 3))
def test_every_sample_comes_once_in_every_epoch(size, batch, seed, epochs):
    steps = -(-size * epochs // batch)
    seen = [index for step in StepSampler(size, batch, steps, seed) for index in step]
    for epoch in range(epochs):
        assert Counter(seen[epoch * size : (epoch + 1) * size]) == Counter(range(size))


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 5), st.integers(1, 4))
def test_processes_share_every_step_without_loss_or_repeat(size, batch, ranks, steps):
    whole = list(StepSampler(size, batch, steps, 0))
    shares = [list(StepSampler(size, batch, steps, 0, world=World(rank, ranks))) for rank in range(ranks)]
    for step, expected in enumerate(whole):
        assert Counter(index for share in shares for index in share[step]) == Counter(expected)


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = list(StepSampler(20, 20, 2, 0))
    assert first != second and first != next(iter(StepSampler(20, 20, 1, 1))) and first != list(range(20))


def section(**settings) -> TrainSection:
    from vilavt_toolkit.config.schema import Part

    return TrainSection(steps=2, batch_size=8, optimizer=Part("adamw", None, None), **settings)


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model)
    model.zero_grad()
    for micro in batch.micro_batches:
        (-plain_logprobs(model(micro), micro).sum() / batch.produced_tokens).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_any_split_into_micro_batches_gives_the_gradient_of_the_whole(tiny_model, tiny_task):
    samples = [TraceDataset(tiny_model, tiny_task, 8)[index] for index in range(8)]
    whole = gradients(tiny_model, StepCollator(8, tiny_model.language_model)(samples))
    assert any(name.startswith("vision.modulators") for name in whole)
    for size in (1, 2, 3, 4):
        split = gradients(tiny_model, StepCollator(size, tiny_model.language_model)(samples))
        for name, expected in whole.items():
            scale = expected.abs().max().clamp(min=1e-3)
            found = split.get(name, torch.zeros_like(expected))
            assert (found - expected).abs().max() < 1e-4 * scale, (size, name)


def same(first, second) -> bool:
    views = zip(first[1], second[1], strict=True)
    return first[0] == second[0] and all(a.size == b.size and torch.equal(a.data, b.data) for a, b in views)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_made_ahead_are_the_streamed_ones(tiny_model, tiny_task, workers):
    traces = TraceDataset(tiny_model, tiny_task, 32)
    ahead = PreparedDataset(traces, range(32), workers, 60.0)
    assert len(ahead) == 32
    assert all(same(ahead[index], traces[index]) for index in range(32))


def test_the_loader_gives_the_batches_of_the_steps_that_are_left(tiny_model, tiny_task):
    settings = section(max_samples=10, micro_batch=4)
    whole = list(build_step_loader(tiny_model, tiny_task, settings, 5))
    left = list(build_step_loader(tiny_model, tiny_task, settings, 5, start=1))
    assert len(whole) == 2 and len(left) == 1
    assert [torch.equal(a.ids, b.ids) for a, b in zip(whole[1].micro_batches, left[0].micro_batches, strict=True)] == [
        True,
        True,
    ]
    assert left[0].produced_tokens == sum(len(micro.targets) for micro in left[0].micro_batches)


class BadTask:
    def __init__(self, task):
        self.task = task

    def length(self, split):
        return self.task.length(split)

    def sample(self, split, index):
        made = self.task.sample(split, index)
        return dataclasses.replace(made, trace=(TraceTurn("a"),)) if index == 3 else made


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_learned_is_named(tiny_model, tiny_task, workers):
    traces = TraceDataset(tiny_model, BadTask(tiny_task), 8)
    with pytest.raises(InputError, match=r"sample digit_scenes/0/train/3: turn 0"):
        PreparedDataset(traces, range(8), workers, 60.0)


class CountingTask(BadTask):
    """Keeps the indices of the samples that are asked for."""

    def __init__(self, task):
        super().__init__(task)
        self.asked = []

    def sample(self, split, index):
        self.asked.append(index)
        return self.task.sample(split, index)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 20), st.data())
def test_the_samples_that_the_steps_left_use_are_each_named_once(size, batch, steps, data):
    sampler = StepSampler(size, batch, steps, 0, data.draw(st.integers(0, steps)))
    used = sampler.used_indices()
    assert len(set(used)) == len(used) and set(used) == {index for step in sampler for index in step}


def test_only_the_samples_that_the_steps_use_are_prepared_ahead(tiny_model, tiny_task):
    task = CountingTask(tiny_task)
    list(build_step_loader(tiny_model, task, section(preprocess="ahead"), 0))
    assert tiny_task.length("train") == 32 and len(task.asked) == len(set(task.asked)) == 2 * 8
    task.asked.clear()
    list(build_step_loader(tiny_model, task, section(preprocess="ahead"), 0, start=1))
    assert len(task.asked) == 8, "a resumed run prepares what is left"


@pytest.mark.parametrize("preprocess", ["ahead", "stream"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_to_spare_is_left_out_and_its_neighbours_keep_their_places(
    tiny_model, tiny_task, preprocess, workers
):
    settings = section(max_samples=8, workers=workers, preprocess=preprocess)
    whole = list(build_step_loader(tiny_model, tiny_task, settings, 0))
    spared = dataclasses.replace(settings, max_bad_samples=1)
    left = list(build_step_loader(tiny_model, BadTask(tiny_task), spared, 0))
    for step, (expected, found) in enumerate(zip(whole, left, strict=True)):
        (bad,) = found.bad_samples
        assert bad.index == 3 and "digit_scenes/0/train/3" in bad.reason
        bad_place = build_step_sampler(tiny_task, settings, 0).step_indices(step).index(3)
        assert sorted(found.order) == [place for place in range(8) if place != bad_place]
        ids = {place: row for place, row in rows_by_place(expected) if place != bad_place}
        assert dict(rows_by_place(found)) == ids


def rows_by_place(batch):
    rows = [
        row[mask].tolist() for micro in batch.micro_batches for row, mask in zip(micro.ids, micro.mask, strict=True)
    ]
    return zip(batch.order, rows, strict=True)


@pytest.mark.parametrize("preprocess", ["ahead", "stream"])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_raises_it_in_the_same_words_from_any_process(tiny_model, tiny_task, preprocess, workers):
    settings = section(max_samples=8, workers=workers, preprocess=preprocess)
    with pytest.raises(InputError) as error:
        list(build_step_loader(tiny_model, BadTask(tiny_task), settings, 0))
    assert str(error.value).startswith("sample digit_scenes/0/train/3: turn 0") and "\n" not in str(error.value)


@pytest.mark.parametrize("preprocess", ["ahead", "stream"])
def test_workers_where_processes_cannot_be_forked_are_refused(tiny_model, tiny_task, monkeypatch, preprocess):
    monkeypatch.setattr(workers.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(UsageError, match=r"Set train\.workers to 0"):
        build_step_loader(tiny_model, tiny_task, section(max_samples=8, workers=1, preprocess=preprocess), 0)
    list(build_step_loader(tiny_model, tiny_task, section(max_samples=8, preprocess=preprocess), 0))


def test_the_rate_warms_up_and_falls_to_zero_after_the_last_step():
    linear = [learning_rate_factor(section(warmup_steps=4), step, 2) for step in range(4)]
    assert linear[:2] == [0.25, 0.5]
    settings = dataclasses.replace(section(), steps=12, warmup_steps=4)
    values = {
        name: [learning_rate_factor(dataclasses.replace(settings, schedule=name), step, 12) for step in range(13)]
        for name in ("linear", "cosine", "constant")
    }
    for name, rates in values.items():
        assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0]), name
    assert values["linear"][8] == values["cosine"][8] == pytest.approx(0.5)
    assert values["linear"][12] == values["cosine"][12] == pytest.approx(0)
    assert (values["linear"][6], values["cosine"][6]) == pytest.approx((0.75, (2 + 2**0.5) / 4))
    assert set(values["constant"][4:]) == {1.0}
    short = dataclasses.replace(settings, steps=4)
    assert [learning_rate_factor(short, step, 4) for step in (3, 4)] == [1.0, 1.0], "a warm-up of all steps"
