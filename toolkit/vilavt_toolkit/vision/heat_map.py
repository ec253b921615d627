"""Heat maps over a crop: where the encoder attended to which word of the inquiry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.pictures import GAP, beside, captioned, enlarged, framed, save

if TYPE_CHECKING:
    from PIL.Image import Image

    from vilavt_toolkit.vision.explain import Explanation

PANEL = 220
"""Pixels of a panel's longer side."""
_COLOURS = ((0.0, (24, 16, 84)), (0.4, (158, 30, 110)), (0.75, (240, 110, 40)), (1.0, (255, 245, 120)))
_OPACITY = 0.65


def draw_heat(explanation: Explanation, path: str | os.PathLike[str]) -> None:
    """Write the heat maps of one explained region, whole or not at all; raises InputError."""
    if explanation.crop is None:
        raise InputError("There is no crop to draw heat maps over; explain regions, or give the explanation a `crop`.")
    _check_grid(explanation)
    save(framed(heat_panels(explanation, enlarged(explanation.crop, PANEL))), path)


def heat_panels(explanation: Explanation, shown: Image, width: int = 960) -> Image:
    """The picture of a crop, the mean over all words, then a panel per word; rows of about `width` pixels.

    Words share one scale, from the least to the most that any place attends to any word; the mean has its own, and
    each caption says how far its panel reaches. Raises InputError where weights have no grid of rows and columns.
    """
    _check_grid(explanation)
    weights = explanation.weights.numpy()
    mean, scale = weights.mean(0), (float(weights.min()), float(weights.max()))
    panels = [captioned(shown, "what was encoded")]
    panels.append(_panel(shown, "mean", mean, (float(mean.min()), float(mean.max()))))
    for word, weight in zip(explanation.words, weights, strict=True):
        panels.append(_panel(shown, _shown(word), weight, scale))
    columns = max(1, (width + GAP) // (max(panel.width for panel in panels) + GAP))
    whole = beside(panels, columns)
    assert whole is not None
    return whole


def _check_grid(explanation: Explanation) -> None:
    axes = explanation.weights.ndim - 1
    if axes != 2:
        raise InputError(
            f"A heat map needs a grid of rows and columns, not {axes} axes; ask for none, "
            "or read the weights of `explain`."
        )


def _panel(shown: Image, name: str, weight: Any, scale: tuple[float, float]) -> Image:
    caption = f"{name}: {_percent(weight.min())} to {_percent(weight.max())}%"
    return captioned(_heated(shown, weight, scale), caption)


def _heated(shown: Image, weight: Any, scale: tuple[float, float]) -> Image:
    """A picture under a heat map of one cell per token, its colours from scale[0] to scale[1]."""
    from PIL import Image

    low, high = scale
    level = (weight - low) / (high - low) if high - low > 1e-6 * max(abs(high), 1e-6) else np.zeros_like(weight)
    at = [place for place, _ in _COLOURS]
    colours = np.stack([np.interp(level, at, [rgb[channel] for _, rgb in _COLOURS]) for channel in range(3)], axis=-1)
    heat = Image.fromarray(colours.round().astype(np.uint8)).resize(shown.size, Image.Resampling.NEAREST)
    return Image.blend(shown.convert("L").convert("RGB"), heat, _OPACITY)


def _shown(word: str) -> str:
    """A word that may be a piece of one, a space, or no text at all."""
    text = "".join(letter for letter in word.strip() if letter.isprintable())
    return f"“{text[:12]}”" if text else "(space)"


def _percent(value: float) -> str:
    return f"{100 * float(value):.3g}"


def heat_rows(explained: Sequence[tuple[str, Explanation, Image]], width: int) -> Image | None:
    """The panels of several regions, (name, explanation, picture) each, one below the other; None for no region."""
    named = [
        captioned(heat_panels(explanation, shown, width), f"{name}: attention of its places to the inquiry's words")
        for name, explanation, shown in explained
    ]
    return beside(named, columns=1)
