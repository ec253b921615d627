"""Rows that dialogues share: within their budget, few and even, and they teach what the dialogues alone teach."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vilavt_toolkit.config.recipe import load_recipe
from vilavt_toolkit.config.schema import Part, TrainSection
from vilavt_toolkit.contracts import InquiryTokens, ShownRegion, Trajectory, View
from vilavt_toolkit.data.lengths import LengthMeter
from vilavt_toolkit.data.row_budget import RowBudget, RowSize, build_row_budget, build_sample_budget
from vilavt_toolkit.errors import BadConfig, InputError, RecipeErrors
from vilavt_toolkit.training.losses import target_logprobs
from vilavt_toolkit.training.supervised.data import StepCollator, TraceDataset, build_step_loader
from vilavt_toolkit.training.supervised.packing import fill_rows
from vilavt_toolkit.training.supervised.run import run_supervised

sizes = st.lists(st.builds(RowSize, st.integers(1, 40), st.integers(0, 60)), max_size=40)


def budget_of(tokens: int, patches: int | None = None, long_samples="alone", count=lambda view: 4) -> RowBudget:
    return RowBudget(tokens, patches, long_samples, count)


@given(sizes, st.integers(20, 100), st.none() | st.integers(20, 100))
def test_every_sample_is_in_one_row_and_no_shared_row_is_larger_than_its_budget(sizes, tokens, patches):
    budget = budget_of(tokens, patches)
    rows = fill_rows(sizes, budget)
    assert sorted(itertools.chain(*rows)) == list(range(len(sizes)))
    for row in rows:
        assert row
        if len(row) > 1:
            assert sum(sizes[number].tokens for number in row) <= tokens
            assert patches is None or sum(sizes[number].patches for number in row) <= patches


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(40, 100))
def test_rows_are_nearly_as_few_as_there_can_be(lengths, tokens):
    rows = fill_rows([RowSize(length, 0) for length in lengths], budget_of(tokens))
    # The bound of first fit by falling size.
    assert len(rows) <= 11 / 9 * fewest_rows(lengths, tokens) + 6 / 9


def fewest_rows(lengths: list[int], tokens: int, rows: tuple[int, ...] = ()) -> int:
    """The fewest rows there can be, by trying every way of filling them."""
    if not lengths:
        return len(rows)
    (length, *rest), found = lengths, []
    for number, filled in enumerate(rows):
        if filled + length <= tokens:
            found.append(fewest_rows(rest, tokens, (*rows[:number], filled + length, *rows[number + 1 :])))
    return min([*found, fewest_rows(rest, tokens, (*rows, length))])


def test_rows_are_as_even_as_they_can_be_and_the_largest_comes_first():
    rows = fill_rows([RowSize(10, 0)] * 7, budget_of(40))
    assert [len(row) for row in rows] == [4, 3]
    rows = fill_rows([RowSize(30, 0), RowSize(10, 0), RowSize(10, 0), RowSize(10, 0)], budget_of(50))
    assert rows == [[0], [1, 2, 3]]
    rows = fill_rows([RowSize(10, 90), RowSize(90, 10), RowSize(10, 90), RowSize(90, 10)], budget_of(100, 100))
    assert sorted(len(row) for row in rows) == [2, 2], "a row is filled by tokens and by patches"


def section(**settings) -> TrainSection:
    return TrainSection(**{"steps": 3, "batch_size": 6, "optimizer": Part("adamw", None, None), **settings})


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model)
    model.zero_grad()
    for micro in batch.micro_batches:
        (
            -target_logprobs(model.language_model, model.run_layers(micro), micro).sum() / batch.produced_tokens
        ).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_a_packed_step_has_every_gradient_of_the_padded_step(tiny_model, tiny_task):
    samples = [TraceDataset(tiny_model, tiny_task, 8)[index] for index in range(8)]
    expected = gradients(tiny_model, StepCollator(1, tiny_model.language_model)(samples))
    assert any(name.startswith("vision.modulators") for name in expected)
    longest = max(len(trajectory.ids) for trajectory, _ in samples)
    for tokens in (longest, 3 * longest, 100 * longest):
        batch = StepCollator(1, tiny_model.language_model, budget_of(tokens))(samples)
        assert all(bool(micro.mask.all()) for micro in batch.micro_batches), "no column is padding"
        assert sorted(batch.order) == list(range(8)) and batch.produced_tokens == sum(
            sum(trajectory.produced) for trajectory, _ in samples
        )
        found = gradients(tiny_model, batch)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), (tokens, name)


def test_no_column_of_a_mixed_set_is_padding(tiny_model):
    """One to six images, 60 to 2,000 tokens: padded to the longest of four, half of all columns would be empty."""
    generator, placeholder = random.Random(0), tiny_model.language_model.placeholder
    samples = []
    for _ in range(48):
        count = int(60 * (2_000 / 60) ** generator.random())
        trajectory = Trajectory(groups=[InquiryTokens()])
        trajectory.add_given([5] * (count // 4))
        for _ in range(images := generator.randint(1, 6)):
            trajectory.add_region(ShownRegion(0, None, 0, 0, 4, (4, 4), grid=(2, 2)), placeholder)
        trajectory.add_produced([6] * (count - len(trajectory.ids)))
        samples.append((trajectory, [View(torch.zeros(1), (4, 4))] * images))
    budget = budget_of(4_096, 4_096, count=lambda view: 16)
    collator = StepCollator(4, tiny_model.language_model, budget)
    packed, padded = collator(samples), dataclasses.replace(collator, budget=None)(samples)
    columns = [sum(micro.mask.numel() for micro in batch.micro_batches) for batch in (packed, padded)]
    tokens = sum(len(trajectory.ids) for trajectory, _ in samples)
    assert columns[0] == tokens < 0.97 * columns[1]
    assert max(micro.ids.shape[1] for micro in packed.micro_batches) <= 4_096
    assert len(packed.micro_batches) == -(-tokens // 4_096), "as few rows as there can be"


def token_rows(loader) -> list[list[list[int]]]:
    return [[micro.ids[0].tolist() for micro in batch.micro_batches] for batch in loader]


@pytest.mark.parametrize("preprocess", ["stream", "ahead"])
def test_rows_are_the_same_with_workers_and_after_resuming(tiny_model, tiny_task, preprocess):
    settings = section(pack_tokens=400, pack_patches=900, max_samples=10)
    rows = token_rows(build_step_loader(tiny_model, tiny_task, settings, 5))
    assert any(len(step) < 6 for step in rows), "dialogues share rows"
    other = dataclasses.replace(settings, workers=2, preprocess=preprocess)
    assert token_rows(build_step_loader(tiny_model, tiny_task, other, 5)) == rows
    assert token_rows(build_step_loader(tiny_model, tiny_task, settings, 5, start=2)) == rows[2:]


def test_a_sample_that_is_longer_than_a_row_is_refused_by_name_cut_at_a_turn_or_alone(tiny_model, tiny_task):
    whole, views = TraceDataset(tiny_model, tiny_task, 4)[3]
    assert len(whole.turns) > 1
    settings = section(pack_tokens=len(whole.ids) - 1, max_samples=4)
    refusing = TraceDataset(tiny_model, tiny_task, 4, build_row_budget(settings, tiny_model))
    with pytest.raises(InputError, match=r"sample digit_scenes/0/train/3: .* Raise that, or set train\.long_samples"):
        refusing[3]
    alone = dataclasses.replace(settings, long_samples="alone")
    assert TraceDataset(tiny_model, tiny_task, 4, build_row_budget(alone, tiny_model))[3][0] == whole
    cutting = dataclasses.replace(settings, long_samples="cut")
    cut, kept = TraceDataset(tiny_model, tiny_task, 4, build_row_budget(cutting, tiny_model))[3]
    assert cut.ids == whole.ids[: len(cut.ids)] and cut.produced[-1] and not whole.produced[len(cut.ids)]
    assert len(cut.turns) == len(cut.starts) == len(whole.turns) - 1
    assert len(kept) == len(cut.regions) < len(views)
    assert all(region.group < len(cut.groups) and region.start < len(cut.ids) for region in cut.regions)
    small = dataclasses.replace(cutting, pack_tokens=3)
    with pytest.raises(InputError, match="and so is its first turn alone"):
        TraceDataset(tiny_model, tiny_task, 4, build_row_budget(small, tiny_model))[3]


@pytest.mark.parametrize("rows", [{}, {"pack_tokens": 5_000}])
def test_a_sample_that_is_longer_than_the_context_is_cut_at_a_turn_if_samples_are_cut(
    tiny_model, tiny_task, monkeypatch, rows
):
    whole, views = TraceDataset(tiny_model, tiny_task, 4)[3]
    settings = section(max_samples=4, long_samples="cut", **rows)
    monkeypatch.setattr(tiny_model.language_model, "context_length", len(whole.ids))
    fitting = TraceDataset(tiny_model, tiny_task, 4, build_sample_budget(settings, tiny_model))[3]
    assert fitting[0] == whole and len(fitting[1]) == len(views), "what fits is not cut"
    monkeypatch.setattr(tiny_model.language_model, "context_length", len(whole.ids) - 1)
    budget = build_sample_budget(settings, tiny_model)
    cut, kept = TraceDataset(tiny_model, tiny_task, 4, budget)[3]
    assert cut.ids == whole.ids[: len(cut.ids)] and cut.produced[-1] and not whole.produced[len(cut.ids)]
    assert len(cut.turns) == len(whole.turns) - 1 and len(kept) == len(cut.regions) < len(views)
    meter = LengthMeter(tiny_model, budget=budget)
    meter.measure(3, tiny_task.sample("train", 3))
    assert list(meter.lengths.tokens) == [len(cut.ids)] and not meter.lengths.list_problems()
    for other in ("refuse", "alone"):
        limits = build_sample_budget(dataclasses.replace(settings, long_samples=other), tiny_model)
        with pytest.raises(InputError, match=r"train/3: turn 1 of the trace: .* Or set train\.long_samples=cut"):
            TraceDataset(tiny_model, tiny_task, 4, limits)[3]
    monkeypatch.setattr(tiny_model.language_model, "context_length", 3)
    with pytest.raises(InputError, match=r"context of 3 tokens, and so is its first turn alone\. Shorten the sample"):
        TraceDataset(tiny_model, tiny_task, 4, build_sample_budget(settings, tiny_model))[3]


def test_patches_make_a_sample_too_long_too(tiny_model, tiny_task):
    settings = section(pack_tokens=10_000, pack_patches=1, max_samples=4)
    with pytest.raises(InputError, match=r"patches are more than a row of .*train\.pack_patches=1 takes"):
        TraceDataset(tiny_model, tiny_task, 4, build_row_budget(settings, tiny_model))[0]


def test_training_on_packed_rows_gives_the_weights_of_padded_ones(tiny_recipe, tmp_path):
    from safetensors.torch import load_file

    found = []
    for name, settings in {"packed": ["train.pack_tokens=500"], "padded": ["train.micro_batch=1"]}.items():
        recipe = load_recipe(tiny_recipe, [f"run={tmp_path / name}", "train.steps=2", *settings])
        run = run_supervised(recipe)
        found.append(load_file(next((run / "checkpoints").glob("step-*2")) / "model.safetensors"))
    packed, padded = found
    for name, weight in padded.items():
        assert (packed[name] - weight).abs().max() <= 1e-4 * max(1.0, float(weight.abs().max())), name


def test_a_language_model_that_reads_one_dialogue_a_row_is_refused(tiny_recipe, tmp_path):
    from vilavt_toolkit.cli.recipe_check import check_recipe

    settings = ["train.pack_tokens=500", "model.language_model.config.model_type=stablelm"]
    recipe = load_recipe(tiny_recipe, [f"run={tmp_path / 'run'}", *settings])
    with pytest.raises(RecipeErrors, match=r"train\.pack_tokens.*no row of several dialogues.*train\.micro_batch"):
        check_recipe(recipe)
    with pytest.raises(BadConfig, match="no row of several dialogues"):
        run_supervised(recipe)


def test_check_refuses_a_row_that_a_sample_does_not_fit_in(tiny_recipe, tmp_path):
    from vilavt_toolkit.cli.recipe_check import check_recipe

    recipe = load_recipe(tiny_recipe, [f"run={tmp_path / 'run'}", "train.pack_tokens=20"])
    with pytest.raises(RecipeErrors, match=r"sample digit_scenes.*are more than a row of train\.pack_tokens=20 takes"):
        check_recipe(recipe)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["train.pack_tokens=500", "train.micro_batch=2"], "alternatives"),
        (["train.pack_patches=500"], "pack_patches limits rows of pack_tokens"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tiny_recipe, settings, reason):
    with pytest.raises(RecipeErrors, match=reason):
        load_recipe(tiny_recipe, settings)
