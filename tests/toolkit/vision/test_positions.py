"""Positions of regions that are attended over together, and of their inquiry's words, computed by hand."""

from __future__ import annotations

import torch

from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.vision.positions import group_positions, inquiry_positions

# Three regions of group 0, two of group 1; the second region's first token is a prefix token, the last one's first two.
COUNTS, GROUPS, PREFIX = [2, 3, 1, 2, 3], [0, 0, 0, 1, 1], [0, 1, 0, 0, 2]
STRIDES = [10, 20, 5, 7, 9]


def layout() -> Layout:
    return Layout.build([(1, count) for count in COUNTS], COUNTS, GROUPS)


def on_grid(dtype: torch.dtype = torch.int64) -> torch.Tensor:
    columns = torch.cat([torch.arange(count) for count in COUNTS])
    return torch.stack([torch.zeros_like(columns), columns], 1).to(dtype)


def test_each_region_is_shifted_by_the_strides_of_those_before_it_in_its_group_and_prefix_tokens_stay():
    shifted = group_positions(on_grid(), layout(), STRIDES, PREFIX)
    by_region = [[0, 0], [0, 10, 10], [30], [0, 0], [0, 0, 7]]
    by_hand = [shift for region in by_region for shift in region]
    assert torch.equal(shifted - on_grid(), torch.tensor(by_hand).unsqueeze(1).expand(-1, 2))


def test_shifts_keep_the_type_of_positions():
    assert group_positions(on_grid(torch.float32), layout(), STRIDES, PREFIX).dtype == torch.float32
    assert inquiry_positions(on_grid(torch.float32), layout(), STRIDES, [1, 1]).dtype == torch.float32


def test_strides_of_zero_shift_nothing_and_words_stand_at_zero():
    positions = on_grid()
    assert group_positions(positions, layout(), [0] * 5, PREFIX) is positions
    assert torch.equal(inquiry_positions(positions, layout(), [0] * 5, [2, 3]), torch.zeros(5, 2, dtype=torch.int64))


def test_one_stride_is_enough_to_shift():
    shifted = group_positions(on_grid(), layout(), [0, 0, 0, 0, 1], [0] * 5)
    assert torch.equal(shifted, on_grid())  # nothing of its group comes after the last region
    assert inquiry_positions(on_grid(), layout(), [0, 0, 0, 0, 1], [1, 2])[:, 0].tolist() == [0, 1, 2]


def test_words_follow_the_last_region_of_their_group_one_step_after_another_on_every_axis():
    words = inquiry_positions(on_grid(), layout(), STRIDES, [2, 3])
    assert words.tolist() == [[35, 35], [36, 36], [16, 16], [17, 17], [18, 18]]


def test_a_group_without_words_takes_none_of_anothers():
    assert inquiry_positions(on_grid(), layout(), STRIDES, [0, 1]).tolist() == [[16, 16]]
