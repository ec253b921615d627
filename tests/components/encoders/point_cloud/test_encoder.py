"""The point cloud encoder computes what plain modules compute one region at a time, whatever order points come in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from vilavt_components.encoders.point_cloud.encoder import PointCloudEncoder, PointCloudEncoderConfig
from vilavt_toolkit.contracts import Crop
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

TINY = PointCloudEncoder.tiny()
FEATURES = TINY.features


def encoder_of(config=TINY):
    """The encoder with every parameter drawn anew, norms and biases too."""
    torch.manual_seed(0)
    encoder = PointCloudEncoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def crop_of(points, overview=False):
    return Crop(np.asarray(points, dtype=np.float32), "point_cloud", overview)


def cloud(count, seed=0, features=FEATURES):
    return np.random.default_rng(seed).random((count, 3 + features), dtype=np.float32)


def encode(encoder, *views):
    return DynamicEncoder(encoder).encode(views, range(len(views)), [[]] * len(views))[0]


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


def reference(encoder, data):
    """One region [n, 1 + k, 3 + F] through plain modules, nothing packed and nothing taken apart."""
    net = encoder.points
    both = nn.Linear(2 * net.mix.out_features, net.point.out_features)
    with torch.no_grad():
        both.weight.copy_(torch.cat([net.point.weight, net.whole.weight], dim=1))
        both.bias.copy_(net.point.bias)
    first = nn.Sequential(net.lift, nn.GELU(), net.mix)
    second = nn.Sequential(both, nn.GELU())
    tokens = []
    for centre, points in ((part[0], part[1:]) for part in data):
        radius = points[:, :3].norm(dim=-1).max()
        h = first(torch.cat([points[:, :3] / (radius if radius > 0 else 1), points[:, 3:]], dim=-1))
        h = second(torch.cat([h, h.max(0).values.expand_as(h)], dim=-1))
        tokens.append(net.out(h.max(0).values) + encoder.place(centre[:3]))
    x = torch.stack(tokens).unsqueeze(0)
    for block in encoder.blocks:
        x = block(x)  # timm's own forward
    return encoder.norm(x)[0]


@pytest.mark.parametrize("config", [TINY, replace(TINY, mlp_ratio=4.0, depth=3), replace(TINY, features=0)])
@torch.no_grad()
def test_features_equal_plain_modules_and_timms_own_blocks(config):
    encoder = encoder_of(config)
    views = [encoder.prepare(crop_of(cloud(n, n, config.features), n == 300)) for n in (300, 40, 3, 40, 1)]
    expected = [reference(encoder, view.data) for view in views]
    assert_equal(encode(encoder, *views), torch.cat(expected))
    for view, alone in zip(views, expected, strict=True):
        assert_equal(encode(encoder, view), alone)


# Views of few points, so that small clouds are thinned.
FEW = {"overview_points": 12, "zoom_points": 30, "overview_tokens": 4, "zoom_tokens": 8, "neighbours": 5}


@st.composite
def whole_numbers(draw):
    """Clouds of small whole numbers: many points in one place, and many at equal distances."""
    count, wide = draw(st.integers(1, 100)), draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(-wide, wide + 1, (count, 3 + FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def few():
    return PointCloudEncoder(replace(TINY, **FEW))


@given(whole_numbers(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_points_changes_nothing(few, points, random):
    order = list(range(len(points)))
    random.shuffle(order)
    found, expected = (few.prepare(crop_of(rows)) for rows in (points[order], points))
    assert torch.equal(found.data, expected.data)


@given(whole_numbers(), st.tuples(*[st.integers(-1000, 1000)] * 3), st.integers(-6, 6))
@settings(max_examples=60, deadline=None)
def test_where_a_crop_lies_and_how_large_it_is_changes_nothing(few, points, move, power):
    # Numbers that float32 moves and scales exactly, so that no rounding decides between points.
    moved = points.copy()
    moved[:, :3] = (moved[:, :3] + np.float32(move)) * np.float32(2.0**power)
    found, expected = few.prepare(crop_of(moved)), few.prepare(crop_of(points))
    assert torch.equal(found.data, expected.data)


def test_moved_by_what_rounds_a_cloud_looks_the_same_up_to_rounding():
    points = cloud(60)
    moved = points.copy()
    moved[:, :3] = moved[:, :3] * 3.7 + np.float32([10, -20, 5])
    encoder = PointCloudEncoder(TINY)
    found, expected = encoder.prepare(crop_of(moved)), encoder.prepare(crop_of(points))
    assert torch.allclose(found.data, expected.data, atol=1e-5)


@given(whole_numbers(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_view_holds_centres_and_their_nearest_points_in_the_crops_own_box(few, points, overview):
    view = few.prepare(crop_of(points, overview))
    centres, offsets = view.data[:, 0, :3], view.data[:, 1:, :3]
    assert view.data.dtype == torch.float32 and view.data.isfinite().all()
    assert view.size == (len(view.data),) and view.data.shape[1:] == (1 + few.config.neighbours, 3 + FEATURES)
    places = {tuple(point) for point in points[:, :3].tolist()}
    assert len(view.data) == min(len(places), 4 if overview else 8)
    assert len({tuple(centre) for centre in centres.tolist()}) == len(centres)
    low, high = points[:, :3].min(0), points[:, :3].max(0)
    half = max((high - low).max() / 2, 1e-9)
    box = torch.from_numpy((points[:, :3] - (low + high) / 2) / half)
    seen = (centres.unsqueeze(1) + offsets).flatten(0, 1)
    assert torch.cdist(seen, box, compute_mode="donot_use_mm_for_euclid_dist").amin(1).max() < 1e-5, (
        "points of the cloud"
    )
    assert seen.abs().max() <= 1 + 1e-6
    # A centre is its own nearest point, unless as many others lie where it does.
    assert (offsets.norm(dim=-1).amin(1) == 0).all()


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30, 3e38])
def test_coordinates_of_any_size_are_scaled_to_the_box(scale):
    points = np.concatenate([np.random.default_rng(0).uniform(-1, 1, (5000, 3)) * scale, np.zeros((5000, 3))], axis=1)
    view = PointCloudEncoder(TINY).prepare(crop_of(points))
    assert view.data.isfinite().all()
    assert len(view.data) == TINY.zoom_tokens
    assert 0.8 < view.data[:, 0, :3].abs().max() <= 1


@pytest.mark.parametrize("points", [cloud(1), np.repeat(cloud(1), 50, axis=0), np.repeat(cloud(1), 5000, axis=0)])
def test_one_point_or_one_place_is_one_token_with_gradients(points):
    encoder = encoder_of()
    view = encoder.prepare(crop_of(points))
    assert view.size == (1,) and encoder.feature_count(view.size) == 1
    assert (view.data[..., :3] == 0).all(), "in the middle of its own box"
    assert torch.equal(view.data[0, :, 3:], torch.from_numpy(points[:1, 3:]).expand(1 + TINY.neighbours, -1))
    features = encode(encoder, view)
    features.square().sum().backward()
    assert features.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_colours_at_one_place_are_all_seen_however_they_are_ordered():
    points = np.repeat(cloud(1), 4, axis=0)
    points[:, 3:] = np.eye(4, FEATURES)
    view = PointCloudEncoder(TINY).prepare(crop_of(points))
    assert {tuple(row) for row in view.data[0, 1:, 3:].tolist()} == {tuple(row) for row in points[:, 3:].tolist()}


@torch.no_grad()
def test_repeated_points_of_a_neighbourhood_change_nothing():
    encoder = encoder_of(replace(TINY, neighbours=7))
    view = encoder.prepare(crop_of(cloud(3)))
    assert view.data.shape == (3, 8, 3 + FEATURES)
    assert_equal(encode(encoder, view), reference(encoder, view.data[:, :4]))


def test_a_zoom_shows_more_points_of_its_part_than_the_overview_did():
    config = replace(TINY, overview_points=64, zoom_points=64, neighbours=16)
    encoder = PointCloudEncoder(config)
    points = cloud(20_000)
    part = points[(points[:, :3] < 0.25).all(1)]
    overview, zoom = encoder.prepare(crop_of(points, True)), encoder.prepare(crop_of(part))

    def seen(view):
        shown = {tuple(row) for row in view.data[:, 1:, 3:].flatten(0, 1).tolist()}
        return sum(tuple(row) in shown for row in part[:, 3:].tolist())

    assert seen(zoom) > 10 * seen(overview)


def test_preparing_leaves_the_crop_as_it_was():
    for count in (1, 40, 400):
        points = cloud(count)
        PointCloudEncoder(TINY).prepare(Crop(points, "point_cloud", True))
        assert np.array_equal(points, cloud(count))


def test_the_default_fits_a_small_task():
    encoder = PointCloudEncoder(PointCloudEncoderConfig())
    points = cloud(2000)
    assert encoder.prepare(crop_of(points, True)).size == (16,)
    assert encoder.prepare(crop_of(points)).size == (32,)
    assert sum(parameter.numel() for parameter in encoder.parameters()) < 1_000_000


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (cloud(5, features=0), "0 features beside x, y, z .3 numbers each.*takes 3"),
        (cloud(5, features=6), "6 features beside x, y, z .9 numbers each.*takes 3"),
        (cloud(5)[:, :2], "2 numbers each"),
        (cloud(5)[0], r"not float32 \[6\]"),
        (np.zeros((5, 6), dtype=bool), r"not bool \[5, 6\]"),
        (cloud(5)[:0], "without any points"),
    ],
)
def test_what_is_no_cloud_of_these_settings_is_refused(points, words):
    with pytest.raises(InputError, match=words):
        PointCloudEncoder(TINY).prepare(Crop(points, "point_cloud", False))


@pytest.mark.parametrize("column", [0, 2, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_named_by_its_point(column, value):
    points = cloud(50)
    points[17, column] = value
    with pytest.raises(InputError, match="point 17 has a value that is NaN or infinite"):
        PointCloudEncoder(TINY).prepare(crop_of(points))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"width": 30, "heads": 4}, "width 30 is no multiple of heads 4"),
        ({"overview_points": 5}, "overview_points 5 are too few for overview_tokens 6"),
        ({"zoom_tokens": 100}, "zoom_points 64 are too few for zoom_tokens 100"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **changed)


@torch.no_grad()
def test_weights_come_from_a_file_when_they_are_loaded(tmp_path):
    path, trained = tmp_path / "weights.safetensors", encoder_of()
    save_file(trained.state_dict(), path)
    encoder = PointCloudEncoder(replace(TINY, path=str(path))).eval()
    view = encoder.prepare(crop_of(cloud(40)))
    assert not torch.equal(encode(encoder, view), encode(trained, view))
    encoder.load_weights()
    assert torch.equal(encode(encoder, view), encode(trained, view))


def test_weights_of_another_architecture_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(encoder_of(replace(TINY, depth=3, width=16, features=0)).state_dict(), path)
    with pytest.raises(InputError, match=r"weights\.safetensors' .*blocks\.2\..*\[16\] for \[32\]") as caught:
        PointCloudEncoder(replace(TINY, path=str(path))).load_weights()
    assert "\n" not in str(caught.value)
    save_file({"cls_token": torch.zeros(1, 1, 32)}, path)
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        PointCloudEncoder(replace(TINY, path=str(path))).load_weights()


@pytest.mark.parametrize(("file", "words"), [("w.pt", "Convert once"), ("gone.safetensors", "do not exist")])
def test_pickles_and_missing_files_are_refused_with_the_way_out(file, words):
    with pytest.raises(InputError, match=words):
        PointCloudEncoder(replace(TINY, path=file)).load_weights()
