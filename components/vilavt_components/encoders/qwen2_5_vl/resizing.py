"""Resize crops for Qwen2.5-VL: the sizes that the paper's code gives them, and the resampling itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Crop, ShownAs
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, check_sides, max_tokens
from vilavt_toolkit.errors import InputError


class Resampling(NamedTuple):
    """A resampling to a size in pixels, bicubic or Lanczos."""

    width: int
    height: int
    is_lanczos: bool = False


def share_overview_pixels(budget: PixelBudget, total: int | None, crop: Crop) -> PixelBudget:
    """Return the budget of a crop if all first views share `total` pixels; raises InputError if too many share them."""
    if total is None or not crop.overview:
        return budget
    overview_count = 1 if crop.shown is None else crop.shown.overview_count
    # A fraction of a pixel may remain; it is lost when sizes are rounded to whole cells.
    part = total / overview_count
    if part < budget.minimum:
        raise InputError(
            f"{overview_count} first views share the {total:,} pixels of `overview_total`, which leaves {int(part):,} "
            f"to each, and `min_pixels` is {budget.minimum:,}. Set `overview_total` to "
            f"{overview_count * budget.minimum:,} or more."
        )
    return replace(budget, overview=part if budget.overview is None else min(part, budget.overview))


def paper_resamplings(crop: Crop, cell: int, budget: PixelBudget) -> list[Resampling]:
    """Return the resamplings of the paper's code: enlarge a zoom, then fit it to whole cells within the budget.

    Raises InputError for a crop longer than 200 times its breadth, BadConfig for a budget below one cell.
    """
    height, width = crop.data.shape[:2]
    resamplings: list[Resampling] = []
    if not crop.overview:
        # The paper's code resizes a zoom twice, and resampling twice gives other pixels than resampling once.
        enlarged = Resampling(*enlarged_size(crop, budget.max_scale), is_lanczos=True)
        width, height, _ = enlarged
        resamplings.append(enlarged)
    return [*resamplings, Resampling(*smart_size(width, height, cell, budget, crop.overview))]


def enlarged_size(crop: Crop, max_scale: float) -> tuple[int, int]:
    """Return the size (width, height) to which the paper's code enlarges a zoom.

    The factor is `max_scale` times the scale of the view that the region was named in (1 if in none), and at most the
    one that makes a side as long as the whole source's.
    """
    height, width = crop.data.shape[:2]
    shown = crop.shown or ShownAs()
    factor = min([max_scale * (shown.parent_scale or 1.0), *(1 / share for share in shown.share)])
    return max(1, int(width * factor)), max(1, int(height * factor))


def smart_size(width: int, height: int, cell: int, budget: PixelBudget, overview: bool) -> tuple[int, int]:
    """Return the size (width, height) in whole cells nearest to a crop's, within the budget.

    Follows `smart_resize` of Qwen2.5-VL's processing. Both sides have at least one cell, and the longer one no more
    than the budget then leaves.
    """
    check_sides(width, height)
    limit = max_tokens(cell, budget, overview)
    most = (budget.overview if overview else budget.zoom) or math.inf
    sides = [max(cell, round(side / cell) * cell) for side in (width, height)]
    if math.prod(sides) > most:
        # Rounded down after shrinking and up after growing, so that the limits hold after rounding too. Shrinking by
        # the area may leave a thin crop less than one cell high: it gets one, and `limit` bounds its longer side.
        shrink = math.sqrt(height * width / most)
        sides = [min(max(1, math.floor(side / shrink / cell)), int(limit)) * cell for side in (width, height)]
    elif math.prod(sides) < budget.minimum:
        grow = math.sqrt(budget.minimum / (height * width))
        sides = [math.ceil(side * grow / cell) * cell for side in (width, height)]
    return sides[0], sides[1]


def resample_pixels(data: Any, resamplings: Sequence[Resampling]) -> Tensor:
    """Apply the resamplings to pixels uint8 [h, w, 3], one after another."""
    from PIL import Image

    pixels = torch.as_tensor(data)
    if all((each.height, each.width) == pixels.shape[:2] for each in resamplings):
        return pixels
    # Pillow, as transformers' processor and the paper's code use it: its antialiasing decides the pixels.
    image = Image.fromarray(pixels.numpy())
    for width, height, is_lanczos in resamplings:
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.LANCZOS if is_lanczos else Image.Resampling.BICUBIC)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
