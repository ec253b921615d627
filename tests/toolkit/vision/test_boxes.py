"""Boxes nest, survive writing and reading, and are refused in words; view sizes keep to their budget."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vilavt_toolkit.contracts.pixel_budget import PixelBudget, view_size
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.vision.boxes import BoxError, compose_box, pixel_box, read_bbox, relative_box, write_bbox

WHOLE = (0.0, 0.0, 256.0, 256.0)

sides = st.integers(1, 4000)
steps = st.tuples(st.integers(2, 1000), st.integers(2, 1000))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def unit_boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    x1, x2 = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    y1, y2 = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    assume(x2 - x1 > 1e-3 and y2 - y1 > 1e-3)
    return x1, y1, x2, y2


@given(steps, st.data())
def test_a_box_written_by_us_reads_as_the_same_box(units: tuple[int, int], data: st.DataObject) -> None:
    x1 = data.draw(st.integers(0, units[0] - 1))
    y1 = data.draw(st.integers(0, units[1] - 1))
    value = [x1, y1, data.draw(st.integers(x1 + 1, units[0])), data.draw(st.integers(y1 + 1, units[1]))]
    within = (100.0, 50.0, 5100.0, 3050.0)
    assert write_bbox(read_bbox(value, within, units), within, units) == value


@given(unit_boxes(), unit_boxes(), steps)
def test_writing_rounds_outward_so_nothing_wanted_is_lost(
    outer: tuple[float, ...], inner: tuple[float, ...], units: tuple[int, int]
) -> None:
    within = compose_box((0, 0, 1e7, 1e7), outer)
    box = compose_box(within, inner)
    read = read_bbox(write_bbox(box, within, units), within, units)
    slack = 1e-5 * (within[2] - within[0] + within[3] - within[1])
    assert read[0] <= box[0] + slack and read[1] <= box[1] + slack
    assert read[2] >= box[2] - slack and read[3] >= box[3] - slack


@given(st.tuples(unit_boxes(), unit_boxes(), unit_boxes()))
def test_nested_boxes_stay_inside_their_region(parts: tuple[tuple[float, ...], ...]) -> None:
    box = WHOLE
    for part in parts:
        deeper = compose_box(box, part)
        assert box[0] <= deeper[0] < deeper[2] <= box[2] and box[1] <= deeper[1] < deeper[3] <= box[3]
        assert relative_box(box, deeper) == pytest.approx(part, abs=1e-6)
        box = deeper


def test_a_zoom_into_a_zoom_names_pixels_of_the_original() -> None:
    first = read_bbox([4, 4, 8, 8], WHOLE, (8, 8))
    assert first == (128, 128, 256, 256)
    assert read_bbox([0, 4, 2, 8], first, 8) == (128, 192, 160, 256)


def test_the_whole_region_reads_as_exactly_the_region() -> None:
    within = (0.1, 0.2, 100.3, 77.7)
    assert read_bbox([0, 0, 7, 3], within, (7, 3)) == within


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([5, 2, 3, 4], "bbox_2d [5, 2, 3, 4] is inverted: x1 must be less than x2."),
        ([1, 4, 3, 2], "bbox_2d [1, 4, 3, 2] is inverted: y1 must be less than y2."),
        ([1, 2, 1, 4], "bbox_2d [1, 2, 1, 4] is empty: x1 must be less than x2."),
        ([0, 0, 9, 4], "bbox_2d [0, 0, 9, 4] is out of range: x runs from 0 to 8 and y from 0 to 4."),
        ([-1, 0, 2, 2], "bbox_2d [-1, 0, 2, 2] is out of range: x runs from 0 to 8 and y from 0 to 4."),
        ([0, 0, 1], "bbox_2d must be a list of four numbers [x1, y1, x2, y2], not [0, 0, 1]."),
        (None, "bbox_2d must be a list of four numbers [x1, y1, x2, y2], not null."),
        (["0", 0, 1, 1], 'bbox_2d must hold four numbers, but "0" in ["0", 0, 1, 1] is none.'),
        ([True, 0, 1, 1], "bbox_2d must hold four numbers, but true in [true, 0, 1, 1] is none."),
        ([0, 0, math.nan, 1], "bbox_2d must hold four finite numbers, not [0, 0, nan, 1]."),
        ([0, 0, 10**400, 1], "bbox_2d must hold four finite numbers, not [0, 0, a number of 401 digits, 1]."),
        (
            [0, 0, 0.001, 1],
            "bbox_2d [0, 0, 0.001, 1] is smaller than one pixel of the image; choose a larger box.",
        ),
    ],
)
def test_a_bad_box_is_refused_in_words_for_the_model(value: object, words: str) -> None:
    with pytest.raises(BoxError) as error:
        read_bbox(value, WHOLE, (8, 4))
    assert str(error.value) == words


@given(json_values)
@example(json.loads("[[[[0]]]]"))
def test_whatever_a_model_writes_reads_as_a_box_or_a_short_refusal(value: object) -> None:
    try:
        box = read_bbox(value, WHOLE, (8, 8))
    except BoxError as error:
        assert len(str(error)) < 1000
    else:
        assert 0 <= box[0] < box[2] <= 256 and 0 <= box[1] < box[3] <= 256


def test_fractions_of_units_are_refused_and_fractions_of_a_view_s_pixels_are_read() -> None:
    with pytest.raises(BoxError, match=r"must hold whole numbers from 0 to 1000"):
        read_bbox([0, 0, 500.5, 500], (0, 0, 100, 100), 1000)
    assert read_bbox([0, 0, 500.0, 500], (0, 0, 100, 100), 1000) == (0, 0, 50, 50)
    assert read_bbox([0, 0, 50.5, 50], (0, 0, 100, 100), (100, 100)) == (0, 0, 50.5, 50)


def test_writing_a_box_outside_its_region_is_refused() -> None:
    with pytest.raises(BoxError, match="has no part in the region"):
        write_bbox((0, 0, 10, 10), (10, 0, 20, 10), (8, 8))


def test_writing_clips_to_the_region() -> None:
    assert write_bbox((0, 0, 200, 100), (64, 64, 128, 128), (8, 8)) == [0, 0, 8, 5]


@given(st.floats(0, 500), st.floats(0, 500), st.floats(0.001, 500), st.floats(0.001, 500), sides, sides)
def test_a_box_cuts_at_least_one_pixel_and_none_outside(
    x: float, y: float, w: float, h: float, width: int, height: int
) -> None:
    left, upper, right, lower = pixel_box((x, y, x + w, y + h), width, height)
    assert 0 <= left < right <= width and 0 <= upper < lower <= height


@pytest.mark.parametrize(
    ("crop", "overview", "view"),
    [
        ((256, 256), True, (32, 32)),
        ((64, 64), False, (32, 32)),
        ((128, 64), False, (64, 32)),
        ((64, 128), False, (32, 64)),
    ],
)
def test_the_quickstart_sizes(crop: tuple[int, int], overview: bool, view: tuple[int, int]) -> None:
    assert view_size(*crop, 8, PixelBudget(1024, 2048, max_scale=0.5), overview) == view


@given(
    sides,
    sides,
    st.sampled_from([1, 7, 14, 16, 32]),
    st.none() | st.integers(1024, 10**6),
    st.integers(0, 10**5),
    st.floats(0.1, 8),
)
def test_views_are_whole_tokens_within_the_budget(
    width: int, height: int, multiple: int, limit: int | None, minimum: int, max_scale: float
) -> None:
    assume(max(width, height) <= 200 * min(width, height))
    budget = PixelBudget(limit, limit, minimum, max_scale)
    w, h = view_size(width, height, multiple, budget, overview=False)
    assert w % multiple == h % multiple == 0 and w > 0 and h > 0
    assert limit is None or w * h <= limit
    # Rounding to whole tokens is all that may keep a view below its minimum.
    assert w * h >= min(minimum, limit or math.inf) - multiple * (w + h + multiple)


@given(st.integers(200, 3000), st.integers(200, 3000))
def test_views_keep_the_aspect_ratio(width: int, height: int) -> None:
    assume(1 / 4 < width / height < 4)
    w, h = view_size(width, height, 14, PixelBudget(zoom=400_000), overview=False)
    assert w / h == pytest.approx(width / height, rel=0.06)


def test_a_small_crop_is_enlarged_no_further_than_allowed() -> None:
    assert view_size(20, 20, 1, PixelBudget(max_scale=3), overview=False) == (60, 60)
    assert view_size(20, 20, 1, PixelBudget(max_scale=3, minimum=10_000), overview=False) == (100, 100)


@given(sides, sides, st.sampled_from([1, 7, 14, 16, 32]))
def test_an_overview_is_never_larger_than_the_original_but_for_its_last_token(
    width: int, height: int, multiple: int
) -> None:
    assume(max(width, height) <= 200 * min(width, height))
    w, h = view_size(width, height, multiple, PixelBudget(max_scale=4), overview=True)
    assert w < width + multiple and h < height + multiple


def test_a_ribbon_is_refused_by_its_size() -> None:
    with pytest.raises(InputError, match="2010 x 10 pixels"):
        view_size(2010, 10, 8, PixelBudget(), overview=True)


def test_a_sample_s_budget_below_one_token_is_the_sample_s_fault() -> None:
    with pytest.raises(InputError, match="the sample's max_pixels of 100 is less than one token of 28 x 28 pixels"):
        view_size(64, 64, 28, PixelBudget(overview=10_000).with_max_pixels(100), overview=True)


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(BadConfig, match="overview pixel budget of 100 is below one token of 16 x 16"):
        view_size(100, 100, 16, PixelBudget(overview=100), overview=True)
