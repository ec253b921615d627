"""The encoder's benchmark: every registered encoder beside `timm`, and a data worker beside the encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from _encoder_cases import EncoderBench
from _encoder_models import RandomInquiries, make_step
from _measure import NOT_MEASURED, Row, Spread, compare_sides, time_interleaved

from vilavt_toolkit.contracts import Crop, Encoder, View
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

PEER = "timm"
POINTS = 100_000
_POINT_MAE: Mapping[str, Any] = {
    "overview_points": 1024,
    "zoom_points": 2048,
    "overview_tokens": 64,
    "zoom_tokens": 128,
    "neighbours": 32,
    "point_width": 128,
    "width": 384,
    "depth": 12,
    "heads": 6,
    "mlp_ratio": 4.0,
}
_PIXELS: Mapping[str, Any] = {"overview_pixels": 224 * 224, "zoom_pixels": 224 * 224}
# Models of some 90 million weights, if the library has one. Encoders that are not named here have their defaults.
REAL: Mapping[str, Mapping[str, Any]] = {
    "open_clip": {"model": "ViT-B-16", **_PIXELS},
    "point_cloud": _POINT_MAE,
    "timm": {"model": "vit_base_patch16_224", **_PIXELS},
    "timm_stages": {"model": "convnext_base", **_PIXELS},
}


def measure_every_encoder(bench: EncoderBench) -> list[Row]:
    """Measure forward and backward of each registered encoder on overviews and zooms, beside `timm` on as many."""
    large = bench.device.type == "cuda"
    peer, peer_views = _encoder_with_views(PEER, bench)
    rows = []
    for name in encoders.names():
        encoder, views = _encoder_with_views(name, bench)
        mine = make_step(_without_modulation(encoder), views, range(len(views)), words=0)
        prepared = _time_preparing(encoder, max(3, bench.size.repeats))
        tokens = sum(encoder.token_count(view.size) for view in views)
        weights = sum(parameter.numel() for parameter in encoder.parameters())
        title = (
            f"`{name}`, {_size_words(name, large)}, {weights / 1e6:.1f} M weights, {len(views)} views, {tokens} tokens"
        )
        title += f", forward and backward; to prepare one {prepared.to_text('.1f')} ms"
        if name == PEER:
            times = time_interleaved({name: mine}, bench.device, bench.size.repeats)[name]
            rows.append(
                Row(bench.device.type, title, f"{Spread.from_values([1e3 * s for s in times]).to_text('.1f')} ms")
            )
            continue
        theirs = make_step(_without_modulation(peer), peer_views, range(len(peer_views)), words=0)
        rows.append(compare_sides(bench.device, title, {name: mine, PEER: theirs}, bench.size.repeats))
    return rows


def measure_preparing(bench: EncoderBench) -> list[Row]:
    """Compare preparing a cloud of 100,000 points with the encoder's forward on the result, both on one core."""
    if bench.device.type != "cpu" or "point_cloud" not in encoders:
        return []
    rows = []
    for size, settings in (("small default", {}), ("the size of Point-MAE", _POINT_MAE)):
        encoder = _build_encoder("point_cloud", bench, settings).eval()
        dynamic = _without_modulation(encoder).eval()
        for kind in ("a surface", "a solid block"):
            crop = Crop(random_cloud(POINTS, solid=kind == "a solid block"), "point_cloud", overview=True)
            view = encoder.prepare(crop)

            def prepare(encoder: Encoder = encoder, crop: Crop = crop) -> None:
                encoder.prepare(crop)

            def forward(dynamic: DynamicEncoder = dynamic, view: View = view) -> None:
                with torch.no_grad():
                    dynamic.encode([view], [0], [[]])

            what = f"preparing {POINTS:,} points of {kind}, beside the forward of `point_cloud`, {size}, one core"
            with _single_threaded():
                sides = {"prepare": prepare, "forward": forward}
                rows.append(compare_sides(bench.device, what, sides, 5 * bench.size.repeats, at_most=1.0))
    return rows


def missing_registry_rows(device: str) -> list[Row]:
    """Return the rows of a device that is not available."""
    whats = [f"`{name}`, {_size_words(name, True)}, forward and backward, beside `{PEER}`" for name in encoders.names()]
    return [Row(device, what, NOT_MEASURED) for what in whats]


def _size_words(name: str, large: bool) -> str:
    return "real size" if large and name in REAL else "small default"


def random_cloud(count: int, solid: bool = False, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Make coloured points [count, 6] on an ellipsoid, or in a block."""
    rng = np.random.default_rng(seed)
    xyz = rng.random((count, 3)) if solid else rng.normal(size=(count, 3))
    if not solid:
        xyz = xyz / np.linalg.norm(xyz, axis=1, keepdims=True) * [1, 2, 3]
    return np.concatenate([xyz, rng.random((count, 3))], axis=1).astype(np.float32)


def _encoder_with_views(name: str, bench: EncoderBench) -> tuple[Encoder, list[View]]:
    encoder = _build_encoder(name, bench, REAL.get(name, {}) if bench.device.type == "cuda" else {})
    views = [encoder.prepare(crop) for crop in _make_crops(encoder, bench.size.regions // 2)]
    return encoder.train(), [View(view.data.to(bench.device), view.size) for view in views]


def _build_encoder(name: str, bench: EncoderBench, settings: Mapping[str, Any]) -> Encoder:
    entry = encoders.get(name)
    torch.manual_seed(0)
    encoder: Encoder = entry.cls(entry.config(**settings))
    return encoder.to(bench.device, bench.dtype)


def _without_modulation(encoder: Encoder) -> DynamicEncoder:
    return DynamicEncoder(encoder, [], "all", RandomInquiries(8))


def _make_crops(encoder: Encoder, count: int) -> list[Crop]:
    """Make `count` overviews and as many zooms: of scenes of 256 x 256 pixels, or of clouds of 20,000 points."""
    modality, crops = encoder.spec.modality, []
    rng = np.random.default_rng(0)
    for seed in range(count):
        if modality == "image":
            pixels = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            crops += [Crop(pixels, modality, True), Crop(pixels[:64, : 64 * (1 + seed % 2)].copy(), modality, False)]
        elif modality == "point_cloud":
            points = random_cloud(20_000, seed=seed)
            crops += [Crop(points, modality, True), Crop(points[points[:, 2] > 1.5], modality, False)]
        else:
            raise SystemExit(
                f"There are no inputs for encoders of '{modality}'. Add them in benchmarks/_encoder_registry.py."
            )
    return crops


def _time_preparing(encoder: Encoder, repeats: int) -> Spread:
    """Measure the milliseconds to prepare one view, as many overviews as zooms."""
    crops = _make_crops(encoder, 4)

    def work() -> None:
        for crop in crops:
            encoder.prepare(crop)

    seconds = time_interleaved({"prepare": work}, torch.device("cpu"), repeats)["prepare"]
    return Spread.from_values([1e3 * s / len(crops) for s in seconds])


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
