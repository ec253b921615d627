"""Sampling and neighbours of point clouds against the slow and plain ways to compute them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vilavt_components.encoders.point_cloud import sampling
from vilavt_components.encoders.point_cloud.sampling import (
    farthest_points,
    nearest_points,
    normalise_to_box,
    thin_points,
)


@st.composite
def clouds(draw, axes=3):
    """Clouds of whole numbers, many of them equal, at any size."""
    count, wide, power = draw(st.integers(1, 90)), draw(st.integers(0, 12)), draw(st.integers(-100, 100))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return np.ldexp(rng.integers(-wide, wide + 1, (count, axes)).astype(np.float32), power)


def distances(xyz, others):
    return np.linalg.norm(xyz[:, None].astype(np.float64) - others[None].astype(np.float64), axis=-1)


def thin(points, most, least=1):
    return thin_points(points, normalise_to_box(points)[0], most, least)


def gap(points, chosen):
    """The largest distance of a point to the nearest chosen one."""
    xyz = points[:, :3]
    return max(distances(part, xyz[chosen]).min(1).max() for part in np.array_split(xyz, 1 + len(xyz) // 500))


@given(clouds(), st.integers(1, 70))
def test_every_chosen_point_is_farthest_from_those_before(xyz, count):
    chosen = farthest_points(xyz, count)
    assert len(chosen) == min(count, len(np.unique(xyz, axis=0)))
    xyz = xyz.astype(np.float64)
    from_mean = ((xyz - xyz.mean(0)) ** 2).sum(1)
    assert from_mean[chosen[0]] == pytest.approx(from_mean.max(), abs=0)
    for number in range(1, len(chosen)):
        squares = ((xyz[:, None] - xyz[chosen[:number]]) ** 2).sum(-1).min(1)
        assert squares[chosen[number]] == squares.max() > 0
        assert chosen[number] == squares.argmax(), "of equals the first"


@given(clouds(), st.data())
def test_neighbours_are_the_nearest_points(xyz, data):
    k = data.draw(st.integers(1, 20))
    xyz = xyz.astype(np.float64)
    centres = np.array(data.draw(st.lists(st.integers(0, len(xyz) - 1), min_size=1, max_size=8)))
    found = nearest_points(xyz, centres, k)
    assert found.shape == (len(centres), k)
    for centre, row in zip(centres, found, strict=True):
        squares = ((xyz - xyz[centre]) ** 2).sum(1)
        nearest = min(k, len(xyz))
        assert len(set(row.tolist())) == nearest
        assert sorted(squares[list(set(row.tolist()))]) == sorted(squares)[:nearest]


def test_neighbours_of_many_points_are_found_in_parts(monkeypatch):
    xyz = np.random.default_rng(0).random((500, 3))
    expected = nearest_points(xyz, np.arange(50), 7)
    monkeypatch.setattr(sampling, "_AT_ONCE", 1500)
    assert np.array_equal(nearest_points(xyz, np.arange(50), 7), expected)


@given(clouds(4), st.integers(1, 64), st.floats(0, 1), st.randoms(use_true_random=False))
def test_thinning_keeps_few_distinct_points_in_any_order(points, most, share, random):
    least = max(1, round(share * most))
    kept = thin(points, most, least)
    assert 1 <= len(kept) <= most or len(points) <= most
    assert len(set(kept.tolist())) == len(kept)
    assert len(np.unique(points[kept, :3], axis=0)) >= min(least, len(np.unique(points[:, :3], axis=0)))
    order = list(range(len(points)))
    random.shuffle(order)
    shuffled = points[order]
    assert np.array_equal(shuffled[thin(shuffled, most, least)], points[kept])


SHAPES = {
    "surface": lambda rng, n: (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True))(rng.normal(size=(n, 3))),
    "volume": lambda rng, n: rng.random((n, 3)),
    "line": lambda rng, n: rng.random((n, 1)) * [1, 0.3, 0.2],
    "two clusters": lambda rng, n: rng.normal(size=(n, 3)) + 200 * rng.integers(0, 2, (n, 1)),
    "dense spot": lambda rng, n: rng.normal(size=(n, 3)) * np.where(np.arange(n) < n // 2, 0.01, 1.0)[:, None],
    "outlier": lambda rng, n: np.concatenate([rng.random((n - 1, 3)), [[1e4, 0, 0]]]),
    "plane": lambda rng, n: rng.random((n, 3)) * [3, 1, 0],
    "lattice": lambda rng, n: np.stack(np.unravel_index(np.arange(n), (n, 20, 20))[::-1], axis=1),
}


@pytest.mark.parametrize("most", [64, 500])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_thinning_leaves_is_most_of_the_budget_and_near_every_point(shape, most):
    points = SHAPES[shape](np.random.default_rng(0), 8000).astype(np.float32)
    kept = thin(points, most)
    # A grid over a solid block jumps, from 27 cells to 64.
    assert 0.4 * most < len(kept) <= most
    # Farthest points of the whole cloud, as many, are at most twice as far apart as must be.
    assert gap(points, kept) <= 2.5 * gap(points, farthest_points(points[:, :3], len(kept)))


@pytest.mark.parametrize("shape", SHAPES)
def test_centres_of_a_thinned_cloud_leave_no_larger_gaps_than_is_promised(shape):
    points = SHAPES[shape](np.random.default_rng(1), 8000).astype(np.float32)
    kept = thin(points, 256)
    centres = kept[farthest_points(points[kept], 16)]
    assert gap(points, centres) <= 2 * gap(points, farthest_points(points, 16)) + gap(points, kept)


def test_a_thousand_copies_of_a_few_points_are_thinned_to_these():
    few = np.random.default_rng(0).random((20, 6), dtype=np.float32)
    kept = thin(np.repeat(few, 1000, axis=0), 64)
    assert len(kept) == 20
