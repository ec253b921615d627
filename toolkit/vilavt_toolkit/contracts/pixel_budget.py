"""Pixel budgets: how large the view of a crop is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vilavt_toolkit.errors import BadConfig, InputError

MAX_ASPECT = 200
"""Longest side over shortest side of a region that can still be made a view."""


@dataclass(frozen=True)
class PixelBudget:
    """How many pixels a view may have."""

    overview: float | None = None
    """Most pixels of the view of a whole source; None: no limit."""
    zoom: float | None = None
    """Most pixels of the view of a region; None: no limit."""
    minimum: int = 0
    """Fewest pixels of a view; a small crop is enlarged to have them."""
    max_scale: float = 2.0
    """Most view pixels along one original pixel of a zoom; an overview has one at most.

    Only `minimum` and rounding to whole tokens go beyond.
    """
    own: int | None = None
    """What the sample itself allows, where it says so."""

    def within(self, most: int | None) -> PixelBudget:
        """The budget where no view may have more than `most` pixels, as a sample may say; None: this one."""
        if most is None:
            return self
        overview = most if self.overview is None else min(most, self.overview)
        zoom = most if self.zoom is None else min(most, self.zoom)
        return replace(self, overview=overview, zoom=zoom, minimum=min(most, self.minimum), own=most)


def view_size(width: int, height: int, multiple: int, budget: PixelBudget, overview: bool) -> tuple[int, int]:
    """Return the size (width, height) in pixels at which a crop of `width` x `height` becomes a view.

    As large as the budget allows, sides multiples of `multiple`, the aspect ratio kept as nearly as can be.
    Raises InputError for a crop longer than 200 times its breadth, BadConfig for a budget below one token.
    """
    check_sides(width, height)
    most = most_tokens(multiple, budget, overview)
    least = min(math.ceil(budget.minimum / multiple**2), most)
    area = width * height / multiple**2
    # Enlarging a zoom gives its few pixels more tokens; of a whole source the budget would fill with nothing new.
    largest = 1.0 if overview else budget.max_scale
    scale = min(max(largest, math.sqrt(least / area)), math.sqrt(most / area))
    columns, rows = _grid(width * scale / multiple, height * scale / multiple, least, most)
    return columns * multiple, rows * multiple


def check_sides(width: int, height: int) -> None:
    """Raise InputError for a crop that cannot be made a view: empty, or longer than 200 times its breadth."""
    if width < 1 or height < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"a region of {width} x {height} pixels cannot be used: its sides may differ by a factor of "
            f"{MAX_ASPECT} at most; crop it to a squarer part."
        )


def most_tokens(multiple: int, budget: PixelBudget, overview: bool) -> float:
    """Return how many tokens of `multiple` x `multiple` pixels a view may have.

    Where that is none, raises InputError if the sample says so, else BadConfig.
    """
    if budget.own is not None and budget.own < multiple**2:
        raise InputError(
            f"the sample's max_pixels of {budget.own} are less than one token of {multiple} x {multiple} pixels; "
            f"set it to {multiple**2} or more."
        )
    limit = budget.overview if overview else budget.zoom
    most = math.inf if limit is None else limit // multiple**2
    if most < 1:
        key = "overview" if overview else "zoom"
        raise BadConfig(
            f"the {key} pixel budget of {limit} is below one token of {multiple} x {multiple} pixels; "
            f"set it to {multiple**2} or more."
        )
    return most


def _grid(columns: float, rows: float, least: float, most: float) -> tuple[int, int]:
    """Whole (columns, rows) nearest to the wanted ones, with `least` to `most` tokens together."""

    def choices(wanted: float, other: float) -> list[int]:
        # A side that had to grow to one token leaves the other fewer than the area alone would.
        top = most if math.isinf(most) else most // max(1, math.floor(other))
        return sorted({max(1, int(min(side, top))) for side in (math.floor(wanted), math.ceil(wanted))})

    pairs = [(c, r) for c in choices(columns, rows) for r in choices(rows, columns) if c * r <= most]

    def distance(pair: tuple[int, int]) -> tuple[bool, float]:
        along, down = math.log(pair[0] / columns), math.log(pair[1] / rows)
        return pair[0] * pair[1] < least, abs(along) + abs(down) + abs(along - down)

    return min(pairs, key=distance)
