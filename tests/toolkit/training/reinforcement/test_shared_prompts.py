"""Rollouts share what they begin with, and no more, and rows hold it once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vilavt_toolkit.contracts import ShownRegion, Trajectory, View
from vilavt_toolkit.data.row_budget import RowBudget, RowSize
from vilavt_toolkit.training.reinforcement.shared_prompts import count_shared_columns, fill_shared_rows

PLACEHOLDER = 0


def view(value: float = 1.0) -> View:
    return View(torch.full((4, 3), value), (2, 2))


def rollout(written, *, prompt=(5, 6, 7, 8), pixels=1.0, group=0, later=()):
    """A prompt with one picture of four features in its middle, then a turn, then pictures that the turn asked for."""
    trajectory = Trajectory()
    trajectory.add_given(prompt[:2])
    trajectory.add_region(ShownRegion(0, None, 0, 0, 4, (2, 2)), PLACEHOLDER)
    trajectory.add_given(prompt[2:])
    trajectory.add_produced(written)
    for _ in later:
        trajectory.add_region(ShownRegion(0, (0, 0, 1, 1), group, 0, 4, (2, 2)), PLACEHOLDER)
    return trajectory, [view(pixels), *(view() for _ in later)]


def test_all_but_the_last_given_token_is_shared():
    assert count_shared_columns([rollout([9, 9]), rollout([9, 4, 3])]) == 2 + 4 + 2 - 1


def test_other_words_end_what_is_shared():
    assert count_shared_columns([rollout([9]), rollout([9], prompt=(5, 6, 7, 1))]) == 7
    assert count_shared_columns([rollout([9]), rollout([9], prompt=(5, 6, 1, 8))]) == 6
    assert count_shared_columns([rollout([9]), rollout([9], prompt=(1, 6, 7, 8))]) == 0


def test_a_picture_of_other_pixels_is_not_shared_nor_what_follows_it():
    assert count_shared_columns([rollout([9]), rollout([9], pixels=2.0)]) == 2


def test_a_picture_is_shared_whole_or_not_at_all():
    one, other = rollout([9], prompt=(5, 6)), rollout([9], prompt=(5, 6))
    # The last feature predicts what was written, so that it stays with each.
    assert count_shared_columns([one, other]) == 2


def test_a_picture_that_stands_elsewhere_is_another_one():
    trajectory, views = rollout([9])
    moved = dataclasses.replace(trajectory.regions[0], box=(0, 0, 1, 1))
    other = dataclasses.replace(trajectory, regions=[moved])
    assert count_shared_columns([(trajectory, views), (other, views)]) == 2


def test_nothing_is_shared_if_pictures_of_the_prompt_are_encoded_together_with_later_ones():
    assert count_shared_columns([rollout([9], later=(1,), group=1), rollout([9])]) == 7
    assert count_shared_columns([rollout([9], later=(1,), group=0), rollout([9])]) == 0


PROMPTS = st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(1, 30), min_size=1, max_size=6)), min_size=1)


@given(PROMPTS, st.integers(20, 200), st.one_of(st.none(), st.integers(1, 50)))
def test_rows_hold_every_rollout_once_and_their_limits(drawn, tokens, patches):
    sizes, stems, prompts = [], [], []
    for prompt, (shared, branches) in enumerate(drawn):
        stems.append(RowSize(shared, shared // 2))
        for branch in branches:
            sizes.append(RowSize(shared + branch, shared // 2 + branch // 3))
            prompts.append(prompt)
    budget = RowBudget(tokens, patches, "alone", lambda view: 0)
    rows = fill_shared_rows(sizes, stems, prompts, budget)
    assert sorted(number for row in rows for number in row) == list(range(len(sizes)))
    for row in rows:
        asked = {prompts[number] for number in row}
        total = [
            sum(getattr(stems[prompt], name) for prompt in asked)
            + sum(getattr(sizes[number], name) - getattr(stems[prompts[number]], name) for number in row)
            for name in ("tokens", "patches")
        ]
        assert len(row) == 1 or budget.fill(RowSize(*total)) <= 1
        assert [prompts[number] for number in row] == sorted(prompts[number] for number in row)


def test_rollouts_of_a_prompt_stand_together_as_far_as_they_fit():
    sizes, prompts = [RowSize(100, 0)] * 8, [0, 1] * 4
    stems = [RowSize(90, 0)] * 2
    rows = fill_shared_rows(sizes, stems, prompts, RowBudget(130, None, "alone", lambda view: 0))
    assert rows == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize("shared", [0, 1])
def test_a_single_rollout_is_a_row(shared):
    rows = fill_shared_rows([RowSize(9, 9)], [RowSize(shared, 0)], [0], RowBudget(1, 1, "alone", lambda view: 0))
    assert rows == [[0]]
