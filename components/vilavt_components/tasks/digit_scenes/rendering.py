"""Rendering of the scenes of task `digit_scenes`: shapes that carry handwritten digits, on a noisy ground.

All random numbers of a scene are drawn first (`sample_randomness`), then it is rendered by them (`render_scene`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from vilavt_components.tasks.digit_scenes.layout import SceneObject
from vilavt_toolkit.errors import InputError

Pixels = NDArray[np.uint8]

WRITERS = {"train": (0, 1287), "val": (1287, 1415), "test": (1415, 1797)}
"""The range of digits of each split. scikit-learn orders them by writer, and these borders lie between writers."""

_RGB = {"red": (180, 65, 65), "green": (65, 145, 80), "blue": (65, 90, 180), "yellow": (180, 160, 60)}
_STRENGTH = 150
"""Most brightness that ink adds or removes, of 255."""
_PEAK, _TROUGH = 0.4, 0.4
"""Share of it that strokes and their surroundings usually reach."""
_WRITING = (4, 5, 7, 8)
"""The indices of an object's random numbers that decide how its digit is written."""
_PAD = 2
"""Empty pixels around a digit of 8 x 8, so that turning it does not cut it."""
_NOISE_PARTS = 256
_INSET = 0.06
"""Share of its box that a square leaves free on every side, so that it looks as large as the other shapes."""


@dataclass(frozen=True)
class Digits:
    """Handwritten digits."""

    images: Pixels
    """[n, 8, 8], 0 to 255"""
    labels: NDArray[np.int64]

    def select_indices(self, split: str, digit: int) -> NDArray[np.int64]:
        """Return the indices of a split's images of `digit`."""
        start, stop = WRITERS[split]
        return np.flatnonzero(self.labels[start:stop] == digit) + start


@functools.cache
def load_digits() -> Digits:
    """Load scikit-learn's digits; raises InputError if it is not installed."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError(
            "task 'digit_scenes' takes its digits from scikit-learn, which is not installed. "
            "Install it: pip install 'vilavt-toolkit[demo]'."
        ) from error
    data: Any = datasets.load_digits()
    # scikit-learn's grey values go from 0 to 16.
    images = np.pad((data.images * (255 / 16)).astype(np.uint8), ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    return Digits(images, data.target.astype(np.int64))


@functools.cache
def _digit_indices(split: str, digit: int) -> NDArray[np.int64]:
    return load_digits().select_indices(split, digit)


@functools.cache
def _shape_mask(shape: str, side: int) -> NDArray[np.int32]:
    """Return how much of each pixel a shape covers, [side, side, 1], 0 to 256."""
    # Drawn four times larger and averaged, for smooth edges.
    fine = 4 * side
    image = Image.new("L", (fine, fine))
    drawing, end, middle = ImageDraw.Draw(image), fine - 1, (fine - 1) / 2
    if shape == "circle":
        drawing.ellipse((0, 0, end, end), fill=255)
    elif shape == "square":
        inset = fine * _INSET
        drawing.rectangle((inset, inset, end - inset, end - inset), fill=255)
    elif shape == "triangle":
        drawing.polygon(((middle, 0), (end, end), (0, end)), fill=255)
    else:
        drawing.polygon(((middle, 0), (end, middle), (middle, end), (0, middle)), fill=255)
    small = np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.int32)
    # From 0..255 to 0..256, so that `_blend_colour` can divide by a shift and full cover is exact.
    return (small + (small >> 7))[:, :, None]


_STROKES = np.clip((np.arange(256) - 50) * 255 // 130, 0, 255).astype(np.uint8)
"""Contrast curve that makes clear strokes of scikit-learn's soft digits."""


@dataclass(frozen=True)
class Handwriting:
    """The distortion of a digit from the way its writer wrote it."""

    turn: float
    """radians"""
    slant: float
    """pixels sideways per pixel of height"""
    stretch: float
    """width over height, 1 as it was"""


def _draw_ink(image: Pixels, height: float, hand: Handwriting, halo: float, camouflage: float) -> NDArray[np.float32]:
    """Draw a digit `height` pixels high as a change of brightness, [side, side, 1].

    Strokes are bright, at most 1. Their surroundings, `halo` heights wide, are darker by `camouflage` times the
    brightness that the strokes add. At `camouflage` 1 a digit averages out if it is seen too small, like the vanishing
    optotypes of eye tests. Plain strokes do not: a network trained for it reads most of them at a height of 4 pixels.
    """
    padded = image.shape[0]
    step = (padded - 2 * _PAD) / height
    # With room for the slant of the digit and its dark surroundings.
    side = math.ceil(height * 1.4)
    cos, sin = step * math.cos(hand.turn), step * math.sin(hand.turn)
    # Pillow wants the map from the result back to the digit: stretched, slanted, then turned.
    a, b = cos / hand.stretch, cos * hand.slant - sin
    c, d = sin / hand.stretch, sin * hand.slant + cos
    turned = Image.fromarray(image).transform(
        (side, side),
        Image.Transform.AFFINE,
        (a, b, padded / 2 - (a + b) * side / 2, c, d, padded / 2 - (c + d) * side / 2),
        Image.Resampling.BICUBIC,
    )
    strokes = Image.fromarray(_STROKES[np.asarray(turned)])
    around = np.asarray(strokes.filter(ImageFilter.GaussianBlur(height * halo)), dtype=np.float32)
    ink = ((np.asarray(strokes, dtype=np.float32) - camouflage * around) / 255).astype(np.float32)
    return ink[:, :, None]


@functools.cache
def _noise_field(size: int, most: int, grain: int) -> Pixels:
    """Return a field of noise from 0 to `most`, of which every scene takes another part.

    Half of the noise is per pixel, half in grains of `grain` pixels, which hide digits in a small view.
    """
    # One field for all scenes: fresh noise for each would take more time than the rest of its rendering.
    # A seed of its own: the field belongs to the task, not to a scene.
    rng, side = np.random.default_rng(0), size + _NOISE_PARTS
    fine = rng.integers(most // 2 + 1, size=(side, side, 3), dtype=np.uint8)
    few = math.ceil(side / grain)
    grains = Image.fromarray(rng.integers(256, size=(few, few), dtype=np.uint8))
    coarse = np.asarray(grains.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int32) * (most - most // 2)
    return fine + (coarse // 255).astype(np.uint8)[:, :, None]


@dataclass(frozen=True)
class SceneStyle:
    """The settings that scenes are rendered by."""

    split: str
    """The split whose writers' digits are used."""
    size: int
    """pixels along each side"""
    cells: int
    difficulty: float
    camouflage: float
    hands: float

    @property
    def cell_pixels(self) -> int:
        """Pixels along each side of a cell."""
        return self.size // self.cells

    @property
    def max_noise(self) -> int:
        """Most brightness that noise adds; everything rendered stays so far below 255 that uint8 cannot overflow."""
        return round(20 + 60 * self.difficulty)


@dataclass(frozen=True)
class SceneRandomness:
    """The random numbers that a scene is rendered by; with the same numbers, objects look alike in several scenes."""

    ground: Sequence[float]
    clutter: NDArray[np.float64]
    """[n, 5]"""
    objects: Mapping[str, Sequence[float]]
    """Nine numbers for every object, by its name."""


def sample_randomness(rng: np.random.Generator, names: Sequence[str], style: SceneStyle) -> SceneRandomness:
    """Draw the random numbers of a scene with objects of these names."""
    ground = rng.random(3).tolist()
    clutter = rng.random((round(50 * style.difficulty), 5))
    return SceneRandomness(ground, clutter, dict(zip(names, rng.random((len(names), 9)).tolist(), strict=True)))


def rewrite_digits(rng: np.random.Generator, randomness: SceneRandomness) -> SceneRandomness:
    """Return the same randomness, except that every digit is written by another hand."""
    objects = {}
    for name, draws in randomness.objects.items():
        new = dict(zip(_WRITING, rng.random(len(_WRITING)).tolist(), strict=True))
        objects[name] = [new.get(place, old) for place, old in enumerate(draws)]
    return replace(randomness, objects=objects)


def render_scene(
    rng: np.random.Generator, randomness: SceneRandomness, objects: Sequence[SceneObject], style: SceneStyle
) -> Pixels:
    """Render a scene, with noise of its own; uint8 [size, size, 3]."""
    canvas = _render_ground(randomness, style)
    for item in objects:
        _render_object(canvas, item, randomness.objects[item.name], style)
    x, y = rng.integers(_NOISE_PARTS, size=2).tolist()
    size = style.size
    canvas += _noise_field(size, style.max_noise, max(1, style.cell_pixels // 8))[y : y + size, x : x + size]
    return canvas


def object_box(randomness: SceneRandomness, item: SceneObject, style: SceneStyle) -> tuple[float, float, float, float]:
    """Return the box around an object's shape, (x1, y1, x2, y2) in pixels."""
    x, y, side = _object_position(item, randomness.objects[item.name], style)
    inset = side * _INSET if item.shape == "square" else 0.0
    return x + inset, y + inset, x + side - inset, y + side - inset


def _render_ground(randomness: SceneRandomness, style: SceneStyle) -> Pixels:
    """Render a light or dark ground with a gradient of light and small rectangles of clutter."""
    size, difficulty, top = style.size, style.difficulty, 255 - style.max_noise
    light, slope_x, slope_y = randomness.ground
    # Dark, from 40 to 80, or light, from 155 to 200: no ground has a middle brightness.
    base = 40 + 80 * light if light < 0.5 else 110 + 90 * light
    ramp = np.linspace(-20 * difficulty, 20 * difficulty, size, dtype=np.float32)
    ground = base + ramp * (2 * slope_x - 1) + ramp[:, None] * (2 * slope_y - 1)
    clutter = randomness.clutter
    places = (clutter[:, :2] * size).astype(int).tolist()
    # The cube makes most pieces of clutter small and a few large.
    extents = (2 + clutter[:, 2:4] ** 3 * size / 12).astype(int).tolist()
    for (x, y), (width, height), change in zip(places, extents, (clutter[:, 4] - 0.5).tolist(), strict=True):
        ground[y : y + height, x : x + width] += 100 * change
    grey = np.clip(ground * (top / 255), 0, top).astype(np.uint8)
    canvas = np.empty((size, size, 3), np.uint8)
    # A loop, since it is several times faster than np.repeat.
    for channel in range(3):
        canvas[:, :, channel] = grey
    return canvas


def _object_position(item: SceneObject, draws: Sequence[float], style: SceneStyle) -> tuple[int, int, int]:
    """Return the left and upper edge of an object and its side, in pixels."""
    cell, difficulty = style.cell_pixels, style.difficulty
    side = round(cell * (0.95 - 0.12 * difficulty * draws[0]))
    free = cell - side
    x = item.cell[0] * cell + round(free * (0.5 + difficulty * (draws[1] - 0.5)))
    y = item.cell[1] * cell + round(free * (0.5 + difficulty * (draws[2] - 0.5)))
    return x, y, side


def _render_object(canvas: Pixels, item: SceneObject, draws: Sequence[float], style: SceneStyle) -> None:
    """Render an object in its cell; `draws` are uniform in [0, 1)."""
    difficulty, cell, top = style.difficulty, style.cell_pixels, 255 - style.max_noise
    x, y, side = _object_position(item, draws, style)
    bright = (1 - 0.25 * difficulty * draws[3]) * top / 255
    dull = 0.35 * difficulty
    colour = [((1 - dull) * part + dull * 120) * bright for part in _RGB[item.colour]]
    _blend_colour(canvas[y : y + side, x : x + side], colour, _shape_mask(item.shape, side))

    ink = _render_digit(item, draws, style)
    # A triangle is widest below its middle.
    middle = side * 0.68 if item.shape == "triangle" else side * 0.5
    reach = ink.shape[0]
    left = x + round(side / 2 - reach / 2 + cell / 12 * difficulty * (draws[6] - 0.5))
    # In a low triangle the digit would else reach into the cell below.
    upper = min(y + round(middle - reach / 2), (item.cell[1] + 1) * cell - reach)
    part = canvas[upper : upper + reach, left : left + reach]
    # Only as strong as the colour leaves room for: ink that is clipped at black or white would not average out.
    strength = [min(_STRENGTH, (top - value) / _PEAK, value / _TROUGH) for value in colour]
    part[:] = np.clip(part + ink * np.array(strength, dtype=np.float32), 0, top)


def _render_digit(item: SceneObject, draws: Sequence[float], style: SceneStyle) -> NDArray[np.float32]:
    """Render an object's digit as a change of brightness, [side, side, 1]."""
    difficulty, hands = style.difficulty, style.hands
    hand = Handwriting(
        turn=(0.5 * difficulty + 0.4 * hands) * (draws[5] - 0.5),
        slant=0.6 * hands * (draws[7] - 0.5),
        stretch=1.3 ** (hands * (2 * draws[8] - 1)),
    )
    choices = _digit_indices(style.split, item.digit)
    image = load_digits().images[choices[int(draws[4] * len(choices))]]
    height = style.cell_pixels / 2 * (1 - 0.12 * difficulty * draws[0])
    return _draw_ink(image, height, hand, 0.06 - 0.03 * difficulty, style.camouflage)


def _blend_colour(part: Pixels, colour: list[float], cover: NDArray[np.int32]) -> None:
    """Blend a colour over a part of the canvas, in place."""
    under = part.astype(np.int32)
    part[:] = under + ((np.array(colour, dtype=np.int32) - under) * cover >> 8)
