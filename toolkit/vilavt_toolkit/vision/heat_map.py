"""Heat maps over a crop: where the encoder attended to which word of the inquiry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.pictures import GAP, add_border, add_caption, arrange_in_grid, enlarge_view, save_picture

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class WordWeights(Protocol):
    """Holds attention to words, for drawing. `Explanation` is one; naming it here would make a circle of imports."""

    @property
    def words(self) -> tuple[str, ...]:
        """Text of each of the T inquiry tokens."""

    @property
    def weights(self) -> Tensor:
        """[T, h, w] how much each place attends to each word."""

    @property
    def crop(self) -> Any:
        """Crop uint8 [h, w, 3] that the weights lie over, or None."""


PANEL = 220
"""Pixels of the longer side of a panel."""
_COLOURS = ((0.0, (24, 16, 84)), (0.4, (158, 30, 110)), (0.75, (240, 110, 40)), (1.0, (255, 245, 120)))
_OPACITY = 0.65


def draw_heat_map(explanation: WordWeights, path: str | os.PathLike[str]) -> None:
    """Write the heat maps of one explained region into a file; raises InputError. A failure leaves no half file."""
    if explanation.crop is None:
        raise InputError("There is no crop to draw heat maps over. Explain regions, or give the explanation a `crop`.")
    _check_grid(explanation)
    save_picture(add_border(draw_heat_panels(explanation, enlarge_view(explanation.crop, PANEL))), path)


def draw_heat_panels(explanation: WordWeights, shown: Image, width: int = 960) -> Image:
    """Draw the crop, the mean over all words, then a panel per word, in rows of about `width` pixels.

    Words share one colour scale, from the least to the most that any place attends to any word. The mean has its own
    scale. Each caption says the range of its panel. Raises InputError if weights have no grid of rows and columns.
    """
    _check_grid(explanation)
    weights = explanation.weights.numpy()
    # The mean is flatter than single words, so on their scale it would be one colour.
    mean, scale = weights.mean(0), (float(weights.min()), float(weights.max()))
    panels = [add_caption(shown, "what was encoded")]
    panels.append(_draw_panel(shown, "mean", mean, (float(mean.min()), float(mean.max()))))
    for word, weight in zip(explanation.words, weights, strict=True):
        panels.append(_draw_panel(shown, _label_word(word), weight, scale))
    columns = max(1, (width + GAP) // (max(panel.width for panel in panels) + GAP))
    whole = arrange_in_grid(panels, columns)
    assert whole is not None
    return whole


def _check_grid(explanation: WordWeights) -> None:
    axes = explanation.weights.ndim - 1
    if axes != 2:
        raise InputError(
            f"A heat map needs a grid of rows and columns, not {axes} axes. Leave the heat map out, "
            "or read the weights of `explain`."
        )


def _draw_panel(shown: Image, name: str, weight: Any, scale: tuple[float, float]) -> Image:
    caption = f"{name}: {_format_percent(weight.min())} to {_format_percent(weight.max())}%"
    return add_caption(_overlay_heat(shown, weight, scale), caption)


def _overlay_heat(shown: Image, weight: Any, scale: tuple[float, float]) -> Image:
    """Lay a heat map of one cell per token over a picture, its colours from scale[0] to scale[1]."""
    from PIL import Image

    low, high = scale
    # Equal weights all over have no range to divide by, and get the lowest colour.
    level = (weight - low) / (high - low) if high - low > 1e-6 * max(abs(high), 1e-6) else np.zeros_like(weight)
    at = [place for place, _ in _COLOURS]
    colours = np.stack([np.interp(level, at, [rgb[channel] for _, rgb in _COLOURS]) for channel in range(3)], axis=-1)
    heat = Image.fromarray(colours.round().astype(np.uint8)).resize(shown.size, Image.Resampling.NEAREST)
    return Image.blend(shown.convert("L").convert("RGB"), heat, _OPACITY)


def _label_word(word: str) -> str:
    """Return a label for a token, which may be a word, a piece of one, a space, or no text at all."""
    text = "".join(letter for letter in word.strip() if letter.isprintable())
    return f"“{text[:12]}”" if text else "(space)"


def _format_percent(value: float) -> str:
    return f"{100 * float(value):.3g}"


def draw_heat_rows(explained: Sequence[tuple[str, WordWeights, Image]], width: int) -> Image | None:
    """Draw the panels of regions, (name, explanation, picture) each, below each other; None for no region."""
    named = [
        add_caption(
            draw_heat_panels(explanation, shown, width), f"{name}: attention of its places to the inquiry's words"
        )
        for name, explanation, shown in explained
    ]
    return arrange_in_grid(named, columns=1)
