"""How crops become views of Qwen2.5-VL: the sizes that the paper's code gives them, and the resampling itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Crop
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, check_sides, most_tokens
from vilavt_toolkit.errors import InputError


class Step(NamedTuple):
    """A resampling to a size in pixels: bicubic, or Lanczos where it is `smooth`."""

    width: int
    height: int
    smooth: bool = False


def shared(budget: PixelBudget, total: int | None, crop: Crop) -> PixelBudget:
    """The budget of a crop where all first views have `total` pixels together; raises InputError for too many."""
    if total is None or not crop.overview:
        return budget
    part = total / crop.among
    if part < budget.minimum:
        raise InputError(
            f"{crop.among} first views share the {total:,} pixels of `overview_total`, which leaves {int(part):,} to "
            f"each, and `min_pixels` is {budget.minimum:,}; show fewer, or change either."
        )
    return replace(budget, overview=part if budget.overview is None else min(part, budget.overview))


def paper_steps(crop: Crop, cell: int, budget: PixelBudget) -> list[Step]:
    """What the paper's code does to a crop: a zoom is enlarged, then all is brought to whole cells within the budget.

    Raises InputError for a crop longer than 200 times its breadth, BadConfig for a budget below one cell.
    """
    height, width = crop.data.shape[:2]
    steps = [] if crop.overview else [Step(*enlarged_size(crop, budget.max_scale), smooth=True)]
    if steps:
        width, height, _ = steps[0]
    return [*steps, Step(*smart_size(width, height, cell, budget, crop.overview))]


def enlarged_size(crop: Crop, max_scale: float) -> tuple[int, int]:
    """The size (width, height) to which a zoom is enlarged: that of its whole source at most. (The paper's code.)

    `max_scale` times the scale of the view that it was named in; of one that was named in none, its own.
    """
    height, width = crop.data.shape[:2]
    factor = min([max_scale * (crop.scale or 1.0), *(1 / share for share in crop.share)])
    return max(1, int(width * factor)), max(1, int(height * factor))


def smart_size(width: int, height: int, cell: int, budget: PixelBudget, overview: bool) -> tuple[int, int]:
    """The size (width, height) in whole cells nearest to a crop's, within the budget. (Qwen2.5-VL's smart resize.)

    Both sides have a cell at least, and the longer one no more than the budget leaves then.
    """
    check_sides(width, height)
    limit = most_tokens(cell, budget, overview)
    most = (budget.overview if overview else budget.zoom) or math.inf
    sides = [max(cell, round(side / cell) * cell) for side in (width, height)]
    if math.prod(sides) > most:
        shrink = math.sqrt(height * width / most)
        sides = [min(max(1, math.floor(side / shrink / cell)), int(limit)) * cell for side in (width, height)]
    elif math.prod(sides) < budget.minimum:
        grow = math.sqrt(budget.minimum / (height * width))
        sides = [math.ceil(side * grow / cell) * cell for side in (width, height)]
    return sides[0], sides[1]


def resized(data: Any, steps: Sequence[Step]) -> Tensor:
    """Pixels uint8 [h, w, 3] after the steps, one after the other."""
    from PIL import Image

    pixels = torch.as_tensor(data)
    if all((step.height, step.width) == pixels.shape[:2] for step in steps):
        return pixels
    image = Image.fromarray(pixels.numpy())
    for width, height, smooth in steps:
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.LANCZOS if smooth else Image.Resampling.BICUBIC)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
