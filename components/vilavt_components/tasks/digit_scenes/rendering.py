"""Draws the scenes of task `digit_scenes`: shapes that carry handwritten digits, on a noisy ground."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from vilavt_components.tasks.digit_scenes.layout import Thing
from vilavt_toolkit.errors import InputError

Pixels = NDArray[np.uint8]

WRITERS = {"train": (0, 1287), "val": (1287, 1415), "test": (1415, 1797)}
"""The digits each split draws on. scikit-learn's are in the order of their writers, who change at these borders."""

_RGB = {"red": (180, 65, 65), "green": (65, 145, 80), "blue": (65, 90, 180), "yellow": (180, 160, 60)}
_STRENGTH = 150
"""Most brightness that ink adds or takes, of 255, where a stroke is as bright as can be."""
_PEAK, _TROUGH = 0.4, 0.4
"""What brightness strokes and their surroundings usually reach, of that."""
_WRITING = (4, 5, 7, 8)
"""Which of an object's random numbers say how its digit is written."""
_PAD = 2
"""Empty pixels around a digit of 8 x 8, so that turning it does not cut it."""
_NOISE_PARTS = 256
_INSET = 0.06
"""What a square leaves free on every side, as a share of it: as large as the others look, not as the box allows."""


@dataclass(frozen=True)
class Digits:
    """Handwritten digits."""

    images: Pixels
    """[n, 8, 8], 0 to 255"""
    labels: NDArray[np.int64]

    def of(self, split: str, digit: int) -> NDArray[np.int64]:
        """Indices of a split's images of `digit`."""
        start, stop = WRITERS[split]
        return np.flatnonzero(self.labels[start:stop] == digit) + start


@functools.cache
def load_digits() -> Digits:
    """Load scikit-learn's digits; raises InputError where it is not installed."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError(
            "task 'digit_scenes' takes its digits from scikit-learn, which is not installed; "
            "run: pip install 'vilavt-toolkit[demo]'."
        ) from error
    data: Any = datasets.load_digits()
    images = np.pad((data.images * (255 / 16)).astype(np.uint8), ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    return Digits(images, data.target.astype(np.int64))


@functools.cache
def _choices(split: str, digit: int) -> NDArray[np.int64]:
    return load_digits().of(split, digit)


@functools.cache
def _shape(shape: str, side: int) -> NDArray[np.int32]:
    """Cover of a shape, [side, side, 1], 0 to 256."""
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
    return (small + (small >> 7))[:, :, None]


# scikit-learn's digits are soft; this makes strokes of them.
_STROKES = np.clip((np.arange(256) - 50) * 255 // 130, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Hand:
    """How a digit departs from the way its writer put it down."""

    turn: float
    """radians"""
    slant: float
    """pixels sideways per pixel of height"""
    stretch: float
    """width over height, 1 as it was"""


def _ink(image: Pixels, height: float, hand: Hand, halo: float, camouflage: float) -> NDArray[np.float32]:
    """A digit `height` pixels high as a change of brightness, [side, side, 1].

    Strokes are bright (1 at most) and their surroundings, `halo` heights wide, dark by `camouflage` times as much on
    the whole. At 1 a digit averages out where it is seen too small: a vanishing optotype, as tests of eyesight use.
    Plain strokes do not: even 4 pixels high, a network trained on nothing else, told where to look, reads most of them.
    """
    padded = image.shape[0]
    step = (padded - 2 * _PAD) / height
    side = math.ceil(height * 1.4)
    cos, sin = step * math.cos(hand.turn), step * math.sin(hand.turn)
    # From a pixel of the result to one of the digit: narrowed, slanted, turned.
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
def _noise(size: int, most: int, grain: int) -> Pixels:
    """Noise of 0 to `most`, of which every scene takes another part: making it anew would cost the most time.

    Half of it is per pixel, half in grains of some `grain` pixels, which hide what a small view shows of digits.
    """
    rng, side = np.random.default_rng(0), size + _NOISE_PARTS
    fine = rng.integers(most // 2 + 1, size=(side, side, 3), dtype=np.uint8)
    few = math.ceil(side / grain)
    grains = Image.fromarray(rng.integers(256, size=(few, few), dtype=np.uint8))
    coarse = np.asarray(grains.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int32) * (most - most // 2)
    return fine + (coarse // 255).astype(np.uint8)[:, :, None]


@dataclass(frozen=True)
class Style:
    """How scenes are drawn, all alike."""

    split: str
    """Whose writers' digits are taken."""
    size: int
    """pixels along each side"""
    cells: int
    difficulty: float
    camouflage: float
    hands: float

    @property
    def cell(self) -> int:
        """Pixels along each side of a cell."""
        return self.size // self.cells

    @property
    def noise(self) -> int:
        """Most brightness that noise adds; drawn values stay as far below 255, so that adding it cannot run over."""
        return round(20 + 60 * self.difficulty)


@dataclass(frozen=True)
class Draft:
    """The random numbers that scenes are drawn by: with the same ones, an object looks alike in all of them."""

    ground: Sequence[float]
    clutter: NDArray[np.float64]
    """[n, 5]"""
    things: Mapping[str, Sequence[float]]
    """Nine for every object, by its name."""


def draft(rng: np.random.Generator, names: Sequence[str], style: Style) -> Draft:
    """Draw the random numbers of scenes with objects of these names."""
    ground = rng.random(3).tolist()
    clutter = rng.random((round(50 * style.difficulty), 5))
    return Draft(ground, clutter, dict(zip(names, rng.random((len(names), 9)).tolist(), strict=True)))


def written_anew(rng: np.random.Generator, drafted: Draft) -> Draft:
    """The same objects in the same places, every digit written anew: another look is not yet another digit."""
    things = {}
    for name, draws in drafted.things.items():
        anew = dict(zip(_WRITING, rng.random(len(_WRITING)).tolist(), strict=True))
        things[name] = [anew.get(number, drawn) for number, drawn in enumerate(draws)]
    return replace(drafted, things=things)


def draw(rng: np.random.Generator, drafted: Draft, things: Sequence[Thing], style: Style) -> Pixels:
    """Draw a scene with digits of the split's writers, and its own noise; uint8 [size, size, 3]."""
    canvas = _ground(drafted, style)
    for thing in things:
        _draw_thing(canvas, thing, drafted.things[thing.name], style)
    x, y = rng.integers(_NOISE_PARTS, size=2).tolist()
    size = style.size
    canvas += _noise(size, style.noise, max(1, style.cell // 8))[y : y + size, x : x + size]
    return canvas


def outline(drafted: Draft, thing: Thing, style: Style) -> tuple[float, float, float, float]:
    """The box around an object's shape, (x1, y1, x2, y2) in pixels."""
    x, y, side = _place(thing, drafted.things[thing.name], style)
    inset = side * _INSET if thing.shape == "square" else 0.0
    return x + inset, y + inset, x + side - inset, y + side - inset


def _ground(drafted: Draft, style: Style) -> Pixels:
    """A light or dark ground with a slope of light and bits of clutter."""
    size, difficulty, top = style.size, style.difficulty, 255 - style.noise
    light, slope_x, slope_y = drafted.ground
    base = 40 + 80 * light if light < 0.5 else 110 + 90 * light
    ramp = np.linspace(-20 * difficulty, 20 * difficulty, size, dtype=np.float32)
    ground = base + ramp * (2 * slope_x - 1) + ramp[:, None] * (2 * slope_y - 1)
    clutter = drafted.clutter
    places = (clutter[:, :2] * size).astype(int).tolist()
    extents = (2 + clutter[:, 2:4] ** 3 * size / 12).astype(int).tolist()
    for (x, y), (width, height), change in zip(places, extents, (clutter[:, 4] - 0.5).tolist(), strict=True):
        ground[y : y + height, x : x + width] += 100 * change
    grey = np.clip(ground * (top / 255), 0, top).astype(np.uint8)
    canvas = np.empty((size, size, 3), np.uint8)
    for channel in range(3):  # several times faster than np.repeat
        canvas[:, :, channel] = grey
    return canvas


def _place(thing: Thing, draws: Sequence[float], style: Style) -> tuple[int, int, int]:
    """Left and upper edge of an object in its cell, and its side, in pixels."""
    cell, difficulty = style.cell, style.difficulty
    side = round(cell * (0.95 - 0.12 * difficulty * draws[0]))
    free = cell - side
    x = thing.cell[0] * cell + round(free * (0.5 + difficulty * (draws[1] - 0.5)))
    y = thing.cell[1] * cell + round(free * (0.5 + difficulty * (draws[2] - 0.5)))
    return x, y, side


def _draw_thing(canvas: Pixels, thing: Thing, draws: Sequence[float], style: Style) -> None:
    """Draw an object in its cell; `draws` are uniform in [0, 1)."""
    difficulty, cell, top = style.difficulty, style.cell, 255 - style.noise
    x, y, side = _place(thing, draws, style)
    bright = (1 - 0.25 * difficulty * draws[3]) * top / 255
    dull = 0.35 * difficulty
    colour = [((1 - dull) * part + dull * 120) * bright for part in _RGB[thing.colour]]
    _blend(canvas[y : y + side, x : x + side], colour, _shape(thing.shape, side))

    ink = _digit(thing, draws, style)
    # A triangle is widest below its middle.
    middle = side * 0.68 if thing.shape == "triangle" else side * 0.5
    reach = ink.shape[0]
    left = x + round(side / 2 - reach / 2 + cell / 12 * difficulty * (draws[6] - 0.5))
    upper = min(y + round(middle - reach / 2), (thing.cell[1] + 1) * cell - reach)
    part = canvas[upper : upper + reach, left : left + reach]
    # As strong as the colour has room for: what is cut off at black or white does not average out.
    strength = [min(_STRENGTH, (top - value) / _PEAK, value / _TROUGH) for value in colour]
    part[:] = np.clip(part + ink * np.array(strength, dtype=np.float32), 0, top)


def _digit(thing: Thing, draws: Sequence[float], style: Style) -> NDArray[np.float32]:
    """An object's digit as a change of brightness, [side, side, 1]."""
    difficulty, hands = style.difficulty, style.hands
    hand = Hand(
        turn=(0.5 * difficulty + 0.4 * hands) * (draws[5] - 0.5),
        slant=0.6 * hands * (draws[7] - 0.5),
        stretch=1.3 ** (hands * (2 * draws[8] - 1)),
    )
    choices = _choices(style.split, thing.digit)
    image = load_digits().images[choices[int(draws[4] * len(choices))]]
    height = style.cell / 2 * (1 - 0.12 * difficulty * draws[0])
    return _ink(image, height, hand, 0.06 - 0.03 * difficulty, style.camouflage)


def _blend(part: Pixels, colour: list[float], cover: NDArray[np.int32]) -> None:
    """Lay a colour over a part of the canvas, in place."""
    under = part.astype(np.int32)
    part[:] = under + ((np.array(colour, dtype=np.int32) - under) * cover >> 8)
