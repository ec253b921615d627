"""Every registered encoder beside `timm`, and what a data worker does beside what the encoder does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from _cases import Place
from _measure import NOT_MEASURED, Row, Spread, compared, interleaved
from _models import RandomInquiries, step

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
# Models of some 90 million weights where the library has one; those that are not named here have their defaults.
REAL: Mapping[str, Mapping[str, Any]] = {
    "open_clip": {"model": "ViT-B-16", **_PIXELS},
    "point_cloud": _POINT_MAE,
    "timm": {"model": "vit_base_patch16_224", **_PIXELS},
    "timm_stages": {"model": "convnext_base", **_PIXELS},
}


def every_encoder(place: Place) -> list[Row]:
    """Each registered encoder: forward and backward of first views and zooms, beside `timm` on as many."""
    large = place.device.type == "cuda"
    peer, peer_views = _ready(PEER, place)
    rows = []
    for name in encoders.names():
        encoder, views = _ready(name, place)
        mine = step(_plain(encoder), views, range(len(views)), words=0)
        prepared = _preparing(encoder, max(3, place.size.repeats))
        tokens = sum(encoder.tokens(view.size) for view in views)
        weights = sum(parameter.numel() for parameter in encoder.parameters())
        title = f"`{name}`, {_size(name, large)}, {weights / 1e6:.1f} M weights, {len(views)} views, {tokens} tokens"
        title += f", forward and backward; to prepare one {prepared.text('.1f')} ms"
        if name == PEER:
            times = interleaved({name: mine}, place.device, place.size.repeats)[name]
            rows.append(Row(place.device.type, title, f"{Spread.of([1e3 * s for s in times]).text('.1f')} ms"))
            continue
        theirs = step(_plain(peer), peer_views, range(len(peer_views)), words=0)
        rows.append(compared(place.device, title, {name: mine, PEER: theirs}, place.size.repeats))
    return rows


def preparing_clouds(place: Place) -> list[Row]:
    """A worker's work on a cloud of 100,000 points beside the encoder's forward of what it made, both on one core."""
    if place.device.type != "cpu" or "point_cloud" not in encoders:
        return []
    rows = []
    for size, settings in (("small default", {}), ("the size of Point-MAE", _POINT_MAE)):
        encoder = _built("point_cloud", place, settings).eval()
        dynamic = _plain(encoder).eval()
        for kind in ("a surface", "a solid block"):
            crop = Crop(cloud(POINTS, solid=kind == "a solid block"), "point_cloud", overview=True)
            view = encoder.prepare(crop)

            def prepare(encoder: Encoder = encoder, crop: Crop = crop) -> None:
                encoder.prepare(crop)

            def forward(dynamic: DynamicEncoder = dynamic, view: View = view) -> None:
                with torch.no_grad():
                    dynamic.encode([view], [0], [[]])

            what = f"preparing {POINTS:,} points of {kind}, beside the forward of `point_cloud`, {size}, one core"
            with _one_core():
                sides = {"prepare": prepare, "forward": forward}
                rows.append(compared(place.device, what, sides, 5 * place.size.repeats, at_most=1.0))
    return rows


def missing(device: str) -> list[Row]:
    """What would be measured on a device that is not here."""
    whats = [f"`{name}`, {_size(name, True)}, forward and backward, beside `{PEER}`" for name in encoders.names()]
    return [Row(device, what, NOT_MEASURED) for what in whats]


def _size(name: str, large: bool) -> str:
    return "real size" if large and name in REAL else "small default"


def cloud(count: int, solid: bool = False, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Coloured points [count, 6] on an ellipsoid, or in a block."""
    rng = np.random.default_rng(seed)
    xyz = rng.random((count, 3)) if solid else rng.normal(size=(count, 3))
    if not solid:
        xyz = xyz / np.linalg.norm(xyz, axis=1, keepdims=True) * [1, 2, 3]
    return np.concatenate([xyz, rng.random((count, 3))], axis=1).astype(np.float32)


def _ready(name: str, place: Place) -> tuple[Encoder, list[View]]:
    encoder = _built(name, place, REAL.get(name, {}) if place.device.type == "cuda" else {})
    views = [encoder.prepare(crop) for crop in _crops(encoder, place.size.regions // 2)]
    return encoder.train(), [View(view.data.to(place.device), view.size) for view in views]


def _built(name: str, place: Place, settings: Mapping[str, Any]) -> Encoder:
    entry = encoders.get(name)
    torch.manual_seed(0)
    made: Encoder = entry.cls(entry.config(**settings))
    return made.to(place.device, place.dtype)


def _plain(encoder: Encoder) -> DynamicEncoder:
    return DynamicEncoder(encoder, [], "all", RandomInquiries(8))


def _crops(encoder: Encoder, count: int) -> list[Crop]:
    """`count` whole sources and as many parts of them: scenes of 256 x 256 pixels, clouds of 20,000 points."""
    modality, crops = encoder.spec.modality, []
    rng = np.random.default_rng(0)
    for seed in range(count):
        if modality == "image":
            pixels = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            crops += [Crop(pixels, modality, True), Crop(pixels[:64, : 64 * (1 + seed % 2)].copy(), modality, False)]
        elif modality == "point_cloud":
            points = cloud(20_000, seed=seed)
            crops += [Crop(points, modality, True), Crop(points[points[:, 2] > 1.5], modality, False)]
        else:
            raise SystemExit(f"There is nothing to measure encoders of '{modality}' with; add it to _encoders._crops.")
    return crops


def _preparing(encoder: Encoder, repeats: int) -> Spread:
    """Milliseconds to make one view ready, half of them first views."""
    crops = _crops(encoder, 4)

    def work() -> None:
        for crop in crops:
            encoder.prepare(crop)

    seconds = interleaved({"prepare": work}, torch.device("cpu"), repeats)["prepare"]
    return Spread.of([1e3 * s / len(crops) for s in seconds])


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
