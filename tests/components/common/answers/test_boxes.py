"""Boxes as answers: exact readings, exact overlaps."""

import pytest

from vilavt_components.common.answers.boxes import box_iou, read_box, region_box_iou


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[1, 2, 5, 6]", (0, (1.0, 2.0, 5.0, 6.0))),
        ('{"index": 3, "bbox_2d": [1, 2, 5, 6]}', (3, (1.0, 2.0, 5.0, 6.0))),
        ('{"any": [1, 2, 5, 6]}', (0, (1.0, 2.0, 5.0, 6.0))),
        ("[0, 0, 0, 1.5, 2, 3]", (0, (0.0, 0.0, 0.0, 1.5, 2.0, 3.0))),
        ("[-999999999, 0, 999999999, 1]", (0, (-999999999.0, 0.0, 999999999.0, 1.0))),
    ],
)
def test_a_box_is_read_with_its_region(text, box):
    assert read_box(text) == box


@pytest.mark.parametrize(
    "text",
    [
        "[0, 1]",
        "[0, 0, 1]",
        "[0, 0, 1, 1, 2]",
        "[0, 0, 0, 1]",
        "[0, 0, 1, 0]",
        "[0, 0, 1e9, 1]",
        "[-1e9, 0, 1, 1]",
        "[0, 0, 1, false]",
        '[0, 0, 1, "1"]',
        '{"index": 1.0, "bbox_2d": [0, 0, 1, 1]}',
        '{"index": false, "bbox_2d": [0, 0, 1, 1]}',
        '{"index": 0}',
        '{"a": [0, 0, 1, 1], "b": 2}',
        '{"bbox_2d": {"a": 1}}',
        '{"bbox_2d": [0, 0, 1, 1], "bbox_2d": [0, 0, 2, 2]}',
        '"text"',
        "7",
        "[0, 0, 1, 1",
    ],
)
def test_what_is_no_box_is_none(text):
    assert read_box(text) is None


def test_a_text_of_a_thousand_characters_is_read_and_a_longer_one_is_not():
    assert read_box("[0, 0, 1, 1]".rjust(1000)) == (0, (0.0, 0.0, 1.0, 1.0))
    assert read_box("[0, 0, 1, 1]".rjust(1001)) is None


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        ((0, 0, 4, 4), (2, 2, 6, 6), 4 / 28),
        ((0, 0, 4, 4), (1, 1, 2, 2), 1 / 16),
        ((0, 0, 2, 3), (1, 0, 3, 3), 3 / 9),
        ((0, 0, 1, 1), (2, 2, 3, 3), 0),
        ((0, 0, 1, 1), (0, 2, 1, 3), 0),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0),
        ((0, 0, 0, 2, 2, 2), (1, 1, 1, 3, 3, 3), 1 / 15),
        ((0, 0, 2, 2), (0, 0, 0, 2, 2, 2), 0),
    ],
)
def test_the_overlap_is_intersection_over_union(first, second, iou):
    assert box_iou(first, second) == box_iou(second, first) == pytest.approx(iou)


def test_boxes_in_different_regions_do_not_overlap():
    box = (0.0, 0.0, 2.0, 2.0)
    assert region_box_iou((1, box), (1, box)) == 1
    assert region_box_iou((0, box), (1, box)) == 0
