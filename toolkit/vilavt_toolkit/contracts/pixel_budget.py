"""Pixel budgets: how large the view of a crop is, and the four settings with which encoders of images begin."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.settings import setting

MAX_ASPECT = 200
"""Longest side over shortest side of a region that can still become a view."""


@dataclass(frozen=True)
class PixelBudget:
    """Holds the limits on the number of pixels of a view."""

    overview: float | None = None
    """Most pixels of an overview, the view of a whole source; None: no limit."""
    zoom: float | None = None
    """Most pixels of the view of a region; None: no limit."""
    minimum: int = 0
    """Fewest pixels of a view; a smaller crop is enlarged to have them."""
    max_scale: float = 2.0
    """Most view pixels along one original pixel of a zoom; an overview is never enlarged.

    Only `minimum` and rounding to whole tokens go beyond.
    """
    sample_limit: int | None = None
    """Most pixels that the sample allows; None: the sample sets no limit."""

    def with_max_pixels(self, max_pixels: int | None) -> PixelBudget:
        """Return the budget under the limit of a sample, which `Crop.max_pixels` carries; None: this budget."""
        if max_pixels is None:
            return self
        overview = max_pixels if self.overview is None else min(max_pixels, self.overview)
        zoom = max_pixels if self.zoom is None else min(max_pixels, self.zoom)
        minimum = min(max_pixels, self.minimum)
        # The limit is kept as well, so that an error can say whose it is: the sample's or the recipe's.
        return replace(self, overview=overview, zoom=zoom, minimum=minimum, sample_limit=max_pixels)


# Keywords only, or these defaults would forbid required settings in the config of an encoder.
@dataclass(frozen=True, kw_only=True)
class PixelBudgetConfig:
    """Holds the settings of a pixel budget; the config of an encoder of images inherits from it."""

    overview_pixels: int | None = setting(
        None, help="most pixels of the first view of an image; null: the encoder's usual size", minimum=1
    )
    zoom_pixels: int | None = setting(
        None, help="most pixels of the view of a region; null: the encoder's usual size", minimum=1
    )
    min_pixels: int | None = setting(
        0,
        help="fewest pixels of a view, to which small regions are enlarged; null: the encoder's usual minimum",
        minimum=0,
    )
    max_scale: float | None = setting(
        None,
        help="most view pixels along one original pixel of a region (a first view is never enlarged); "
        "null: 2, and 0.5 for the small model that is built if none is named",
        minimum=0.01,
    )

    def pixel_budget(self, usual: PixelBudget) -> PixelBudget:
        """Return the budget of these settings; a setting that is null takes its value from `usual`."""
        values: dict[str, float | None] = {
            "overview": self.overview_pixels,
            "zoom": self.zoom_pixels,
            "minimum": self.min_pixels,
            "max_scale": self.max_scale,
        }
        given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        return replace(usual, **given)


def view_size(width: int, height: int, multiple: int, budget: PixelBudget, overview: bool) -> tuple[int, int]:
    """Return the size (width, height) in pixels at which a crop of `width` x `height` becomes a view.

    The view is as large as the budget allows. Its sides are multiples of `multiple`, and its aspect ratio is as near
    to that of the crop as whole tokens allow. Raises InputError for a crop longer than 200 times its breadth, and
    BadConfig for a budget below one token.
    """
    check_sides(width, height)
    most = max_tokens(multiple, budget, overview)
    # All in tokens from here on, since sides must be whole numbers of them.
    least = min(math.ceil(budget.minimum / multiple**2), most)
    area = width * height / multiple**2
    # Enlarging a zoom gives its few pixels more tokens; an enlarged overview would fill the budget with nothing new.
    largest = 1.0 if overview else budget.max_scale
    scale = min(max(largest, math.sqrt(least / area)), math.sqrt(most / area))
    columns, rows = _choose_grid(width * scale / multiple, height * scale / multiple, least, most)
    return columns * multiple, rows * multiple


def check_sides(width: int, height: int) -> None:
    """Raise InputError if a crop cannot become a view: it is empty, or longer than 200 times its breadth."""
    if width < 1 or height < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"a region of {width} x {height} pixels cannot be used: its sides may differ by a factor of "
            f"{MAX_ASPECT} at most. Crop it to a squarer part."
        )


def max_tokens(multiple: int, budget: PixelBudget, overview: bool) -> float:
    """Return the most tokens of `multiple` x `multiple` pixels that a view may have.

    If not even one fits, raises InputError for a limit of the sample, BadConfig for one of the recipe.
    """
    # Asked first: this error concerns one row of data, the other one concerns every sample.
    if budget.sample_limit is not None and budget.sample_limit < multiple**2:
        raise InputError(
            f"the sample's max_pixels of {budget.sample_limit} is less than one token of {multiple} x {multiple} "
            f"pixels. Set it to {multiple**2} or more."
        )
    limit = budget.overview if overview else budget.zoom
    most = math.inf if limit is None else limit // multiple**2
    if most < 1:
        key = "overview" if overview else "zoom"
        raise BadConfig(
            f"the {key} pixel budget of {limit} is below one token of {multiple} x {multiple} pixels. "
            f"Set `{key}_pixels` to {multiple**2} or more."
        )
    return most


def _choose_grid(columns: float, rows: float, least: float, most: float) -> tuple[int, int]:
    """Return the whole numbers (columns, rows) nearest to the wanted ones, with `least` to `most` tokens in all."""

    def whole_sides(wanted: float, other: float) -> list[int]:
        # A side that had to grow to one token leaves the other fewer than the area alone would.
        top = most if math.isinf(most) else most // max(1, math.floor(other))
        return sorted({max(1, int(min(side, top))) for side in (math.floor(wanted), math.ceil(wanted))})

    # Each side is rounded down and up; among these four grids the nearest within the budget wins.
    pairs = [(c, r) for c in whole_sides(columns, rows) for r in whole_sides(rows, columns) if c * r <= most]

    def rank_pair(pair: tuple[int, int]) -> tuple[bool, float]:
        # Enough tokens first. Then sizes and aspect ratio count alike, as logarithms, so that half is as far as double.
        along, down = math.log(pair[0] / columns), math.log(pair[1] / rows)
        return pair[0] * pair[1] < least, abs(along) + abs(down) + abs(along - down)

    return min(pairs, key=rank_pair)
