"""Boxes of a cloud nest and are refused in words, crops hold the original's points, pictures show both."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vilavt_components.encoders.point_cloud.encoder import PointCloudEncoder
from vilavt_components.sources.point_cloud.source import PointCloudSource, PointCloudSourceConfig
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.vision.boxes import BoxError

PLAIN = PointCloudSourceConfig(features=[])
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def source(points: np.ndarray, config: PointCloudSourceConfig = PLAIN) -> PointCloudSource:
    return PointCloudSource.open(points, config)


def spread(count: int = 2000) -> PointCloudSource:
    return source(np.random.default_rng(0).random((count, 3)) * (4, 2, 1))


def whole(cloud: PointCloudSource) -> dict[str, list[int]]:
    return cloud.write_box(cloud.extent, cloud.extent, 8)


clouds = hnp.arrays(
    np.float32, st.tuples(st.integers(2, 30), st.just(3)), elements=st.floats(-100, 100, width=32)
).filter(lambda xyz: np.ptp(xyz, axis=0).max() > 0.1)


@given(clouds, st.data())
def test_a_zoom_holds_all_original_points_of_its_box_and_no_others(xyz: np.ndarray, data: st.DataObject) -> None:
    cloud = source(xyz)
    low, high = np.array(cloud.extent[:3]), np.array(cloud.extent[3:])
    ends = np.array([sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1)))) for _ in range(3)]).T
    box = (*(low + ends[0] * (high - low)).tolist(), *(low + ends[1] * (high - low)).tolist())
    exact = xyz.astype(np.float64)
    expected = xyz[((exact >= box[:3]) & (exact <= box[3:])).all(axis=1)]
    if len(expected):
        assert np.array_equal(cloud.crop(box).data, expected)
    else:
        with pytest.raises(BoxError, match="holds no points"):
            cloud.crop(box)


@given(clouds)
def test_the_extent_holds_every_point_and_has_volume(xyz: np.ndarray) -> None:
    cloud = source(xyz)
    low, high = np.array(cloud.extent[:3]), np.array(cloud.extent[3:])
    assert (xyz.astype(np.float64) >= low).all() and (xyz.astype(np.float64) <= high).all() and (high > low).all()
    assert len(cloud.crop(cloud.extent).data) == len(xyz)
    assert (high - low).max() == pytest.approx(np.ptp(xyz.astype(np.float64), axis=0).max())


def test_a_flat_cloud_and_one_on_a_line_can_be_zoomed_into() -> None:
    for axes in ((0, 1), (2,)):
        xyz = np.zeros((50, 3))
        xyz[:, axes] = np.random.default_rng(0).random((50, len(axes)))
        cloud = source(xyz)
        box = cloud.read_box({"bbox_3d": [0, 0, 0, 4, 8, 8] if len(axes) == 2 else [0, 0, 0, 8, 8, 4]}, cloud.extent, 8)
        assert 0 < len(cloud.crop(box).data) < 50


def test_boxes_are_relative_to_the_region_and_crops_come_from_the_original() -> None:
    cloud = spread()
    half = cloud.read_box({"bbox_3d": [4, 0, 0, 8, 8, 8]}, cloud.extent, 8)
    inner = cloud.read_box({"bbox_3d": [0, 4, 0, 4, 8, 8]}, half, 8)
    low, high = np.array(cloud.extent[:3]), np.array(cloud.extent[3:])
    assert inner == pytest.approx([*(low + (high - low) * (0.5, 0.5, 0)), *(low + (high - low) * (0.75, 1, 1))])
    crop = cloud.crop(inner)
    assert crop.modality == "point_cloud" and not crop.overview
    assert 150 < len(crop.data) < 350, "an eighth of all, none left out"
    assert cloud.write_box(inner, half, 8) == {"bbox_3d": [0, 4, 0, 4, 8, 8]}


def test_a_box_may_have_fractions() -> None:
    cloud = spread()
    half = cloud.read_box({"bbox_3d": [2.5, 0, 0, 7.5, 10, 10]}, cloud.extent, (10, 10, 10))
    assert half == cloud.read_box({"bbox_3d": [25, 0, 0, 75, 100, 100]}, cloud.extent, 100)


def test_units_may_differ_from_axis_to_axis() -> None:
    cloud = spread()
    assert cloud.read_box({"bbox_3d": [0, 0, 0, 2, 4, 6]}, cloud.extent, (2, 4, 6)) == cloud.extent


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([0, 0, 0, 8, 8], r"six numbers \[x1, y1, z1, x2, y2, z2\], not \[0, 0, 0, 8, 8\]"),
        ([0, 0, 8, 8], "list of six numbers"),
        ("all", "list of six numbers"),
        ([0, 0, 0, 8, 8, "8"], "must hold six numbers, but"),
        ([0, 0, 0, 8, 8, True], "must hold six numbers, but true"),
        ([0, 0, 0, 8, 8, float("nan")], "six finite numbers"),
        ([4, 0, 0, 3, 8, 8], "inverted: x1 must be less than x2"),
        ([0, 0, 5, 8, 8, 5], "empty: z1 must be less than z2"),
        ([0, 0, 0, 8, 9, 8], "out of range: x runs from 0 to 8, y from 0 to 8 and z from 0 to 8"),
        ([-1, 0, 0, 8, 8, 8], "out of range"),
        ([3, 3, 3, 5, 5, 5], r"\[3, 3, 3, 5, 5, 5\] holds no points; choose a box that holds some"),
    ],
)
def test_a_box_that_cannot_be_used_is_told_to_the_model(value: object, words: str) -> None:
    corners = source(np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float))
    with pytest.raises(BoxError, match=words):
        corners.read_box({"bbox_3d": value}, corners.extent, 8)


def test_a_box_under_another_key_is_told_to_the_model() -> None:
    cloud = spread(10)
    with pytest.raises(BoxError, match=r'"bbox_3d": .* is missing'):
        cloud.read_box({"bbox_2d": [0, 0, 8, 8]}, cloud.extent, 8)
    with pytest.raises(BoxError, match='"frame" does not belong'):
        cloud.read_box({**whole(cloud), "frame": 1}, cloud.extent, 8)


def test_features_come_behind_coordinates_in_the_order_asked_for() -> None:
    table = np.array([[0, 0, 0, 255, 0, 0, 0, 0, 1], [1, 2, 3, 0, 255, 0, 1, 0, 0]], dtype=float)
    for features, expected in (
        (["colour"], [1, 2, 3, 0, 1, 0]),
        (["normal", "colour"], [1, 2, 3, 1, 0, 0, 0, 1, 0]),
        ([], [1, 2, 3]),
    ):
        crop = source(table, PointCloudSourceConfig(features=features)).crop((0, 0, 0, 1, 2, 3), overview=True)
        assert crop.data[1].tolist() == expected and crop.overview
        assert crop.data.dtype == np.float32 and crop.data.flags.c_contiguous


def test_a_feature_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="features names colour twice"):
        PointCloudSourceConfig(features=["colour", "colour"])
    with pytest.raises(ValueError, match="columns names normal twice"):
        PointCloudSourceConfig(columns=["normal", "ignored", "normal"])


def test_clouds_that_lost_too_much_in_32_bits_are_refused() -> None:
    near = np.array([[4e6, 0, 0], [4e6, 1, 0]])
    with pytest.raises(InputError, match=r"lies 4e\+06 from the origin and is 1 long, so that its 32-bit numbers"):
        source(near.astype(np.float32))
    source(near)
    source(np.array([[4e6, 0, 0], [4e6, 1000, 0]], dtype=np.float32))


def test_too_little_memory_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savetxt(tmp_path / "a.xyz", np.eye(3))

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "loadtxt", fail)
    with pytest.raises(InputError, match=r"a\.xyz needs more memory than is free\. Thin it out"):
        PointCloudSource.open(tmp_path / "a.xyz", PLAIN)


# A scan of 50 m and a tile of 1 km in UTM, heights above the sea; and a small object far away.
PLACES = {"scan": (50.0, 5e5, 5.4e6), "tile": (1000.0, 3.3e5, 5.8e6), "pebble": (0.05, 7e5, 9.9e6), "near": (3.0, 0, 0)}


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_zooms_in_map_coordinates_are_exact_to_a_millionth_of_their_side(place: str, data: st.DataObject) -> None:
    side, east, north = PLACES[place]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    xyz = np.array((east, north, 312.0)) + side * rng.random((400, 3)) * (1, 1, 0.3)
    cloud, box = source(xyz), None
    for _ in range(data.draw(st.integers(0, 4))):
        within = cloud.extent if box is None else box
        start = [data.draw(st.integers(0, 499)) for _ in range(3)]
        value = {"bbox_3d": [*start, *(number + 500 for number in start)]}
        try:
            box = cloud.read_box(value, within, 1000)
        except BoxError:
            break
        # Of the file's own coordinates, and written as it was read.
        assert np.all(np.array(box[:3]) >= within[:3]) and np.all(np.array(box[3:]) <= within[3:])
        assert cloud.write_box(box, within, 1000) == value
    box = cloud.extent if box is None else box
    inside = xyz[((xyz >= box[:3]) & (xyz <= box[3:])).all(axis=1)]
    crop = cloud.crop(box).data
    assert crop.dtype == np.float32 and len(crop) == len(inside)
    error = np.abs(np.diff(crop.astype(np.float64), axis=0) - np.diff(inside, axis=0))
    assert not len(error) or error.max() <= 1e-6 * max(np.array(box[3:]) - box[:3])
    assert np.abs(crop).max() <= max(np.array(box[3:]) - box[:3]), "the encoder sees numbers of the zoom's size"


def test_the_schema_of_a_far_cloud_bounds_what_can_be_read() -> None:
    xyz = np.array((5e5, 5.4e6, 300.0)) + np.random.default_rng(0).random((30, 3)) * 50
    cloud = source(xyz)
    begun: list[int] = []
    for _ in range(6):
        schema = cloud.box_schema(cloud.extent, 8, tuple(begun))
        bounds = schema["properties"]["bbox_3d"]["prefixItems"][len(begun)]
        begun.append(bounds["minimum"])
    crop = cloud.crop(cloud.read_box({"bbox_3d": begun}, cloud.extent, 8))
    assert 0 < len(crop.data) <= 30


def test_a_far_cloud_is_drawn_and_saved_as_a_near_one(tmp_path: Path) -> None:
    xyz = np.random.default_rng(0).random((2000, 3)) * 64
    far = np.array((2.0**19, 2.0**22, 2.0**8))
    near, moved = source(xyz.astype(np.float32)), source(xyz.astype(np.float32) + far)
    box = (10.0, 10.0, 10.0, 40.0, 40.0, 40.0)
    shifted = tuple(np.add(box, np.tile(far, 2)).tolist())
    pictures = [np.asarray(near.draw([box], 200)).astype(int), np.asarray(moved.draw([shifted], 200)).astype(int)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 1
    encoder = PointCloudEncoder(replace(PointCloudEncoder.tiny(), features=0))
    zooms = [encoder.prepare(near.crop(box)).data, encoder.prepare(moved.crop(shifted)).data]
    assert np.allclose(*zooms, atol=1e-6), "the encoder sees the same"
    moved.save(tmp_path / "a.ply")
    again = PointCloudSource.open(tmp_path / "a.ply", PLAIN)
    assert again.extent == moved.extent
    assert np.array_equal(again.crop(shifted).data, moved.crop(shifted).data)


def test_a_cloud_of_100_000_points_is_cropped_in_milliseconds() -> None:
    cloud = spread(100_000)
    cloud.crop((1, 0, 0, 2, 1, 1))
    begun = time.process_time()
    for _ in range(10):
        cloud.crop((1, 0, 0, 2, 1, 1))
    assert time.process_time() - begun < 0.3


# --- Pictures ---------------------------------------------------------------------------------------


def balls() -> PointCloudSource:
    """A red ball on the left in front, a blue one on the right behind."""
    ball = np.random.default_rng(0).normal(size=(3000, 3))
    ball /= 2 * np.linalg.norm(ball, axis=1, keepdims=True)
    left = np.concatenate([ball, np.tile(RED, (3000, 1))], axis=1)
    right = np.concatenate([ball + np.array((6, 6, 0)), np.tile(BLUE, (3000, 1))], axis=1)
    return source(np.concatenate([left, right]), PointCloudSourceConfig())


def where(picture: np.ndarray, channel: int) -> np.ndarray:
    """Rows and columns of pixels that are red, or blue."""
    wide = picture.astype(int)
    return np.argwhere(wide[..., channel] > wide[..., 2 - channel] + 90)


def test_a_picture_shows_every_object_in_its_colour_and_place() -> None:
    picture = np.asarray(balls().draw([], 400))
    red, blue = where(picture, 0), where(picture, 2)
    assert len(red) > 300 and len(blue) > 300
    assert red[:, 1].mean() < blue[:, 1].mean() and red[:, 0].mean() > blue[:, 0].mean(), "y goes away from the eye"


@pytest.mark.parametrize("stretch", [(1, 1, 1), (50, 1, 1), (1, 1, 50)])
def test_a_picture_has_the_asked_size_whatever_the_cloud_is_like(stretch: tuple[int, int, int]) -> None:
    cloud = source(np.random.default_rng(0).random((300, 3)) * stretch)
    for size in (64, 201, 640):
        assert max(cloud.draw([cloud.extent], size).size) == size
        assert max(cloud.draw_crop(cloud.points[:20], size).size) == size
    assert max(cloud.draw([]).size) == 640


def test_a_box_is_drawn_around_what_it_holds_with_its_number() -> None:
    cloud = balls()
    plain = np.asarray(cloud.draw([], 400)).astype(int)
    changed = np.abs(np.asarray(cloud.draw([(5, 5, -0.5, 6.5, 6.5, 0.5)], 400)) - plain).sum(axis=2) > 60
    rows, columns = np.nonzero(changed)
    blue = where(plain.astype(np.uint8), 2)
    assert rows.min() <= blue[:, 0].min() and rows.max() >= blue[:, 0].max()
    assert columns.min() <= blue[:, 1].min() and columns.max() >= blue[:, 1].max()
    assert columns.min() > where(plain.astype(np.uint8), 0)[:, 1].max(), "nothing is drawn on the other one"


def test_a_crops_picture_is_filled_by_what_it_holds() -> None:
    cloud = balls()
    picture = np.asarray(cloud.draw_crop(cloud.crop((5, 5, -1, 7, 7, 1)).data, 288))
    assert len(where(picture, 2)) > 0.3 * 288 * 200 and len(where(picture, 0)) == 0


def test_what_is_in_front_hides_what_is_behind() -> None:
    rng = np.random.default_rng(0)
    wall = np.stack([rng.random(4000) * 2, np.zeros(4000), rng.random(4000)], axis=1)
    front = np.concatenate([wall, np.tile(RED, (4000, 1))], axis=1)
    behind = np.concatenate([wall * (0.2, 1, 0.2) + (1.2, 0.3, 0.3), np.tile(BLUE, (4000, 1))], axis=1)
    for order in ((front, behind), (behind, front)):
        picture = np.asarray(source(np.concatenate(order), PointCloudSourceConfig()).draw([], 300))
        assert len(where(picture, 2)) < 0.02 * len(where(picture, 0))


def test_points_without_colours_are_coloured_by_height() -> None:
    xyz = np.random.default_rng(0).random((3000, 3))
    picture = np.asarray(source(xyz * (1, 1, 3)).draw([], 300)).astype(int)
    top, bottom = picture[:100].reshape(-1, 3), picture[-100:].reshape(-1, 3)
    assert (top[:, 1] > top[:, 2] + 60).sum() > 10 * (bottom[:, 1] > bottom[:, 2] + 60).sum()


def test_a_single_point_can_be_zoomed_into_and_drawn() -> None:
    cloud = source(np.array([[0, 0, 0], [1, 1, 1.0]]))
    crop = cloud.crop((0.5, 0.5, 0.5, 1, 1, 1))
    assert len(crop.data) == 1 and max(cloud.draw_crop(crop.data, 64).size) == 64
