"""The encoder 'my_part': a small vision transformer whose blocks open every site to modulators.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    model:
      encoder: {name: my_part, width: 128, depth: 3}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_toolkit import contracts
from vilavt_toolkit.registry import encoders, setting


@dataclass(frozen=True)
class MyPartConfig(contracts.PixelBudgetConfig):
    """The keys that a recipe may set, after the four of a pixel budget; each with its type, default and help."""

    width: int = setting(128, help="channels of a token, a multiple of heads", minimum=1)
    depth: int = setting(3, help="blocks", minimum=1)
    heads: int = setting(4, help="attention heads", minimum=1)
    patch: int = setting(8, help="side of a token in pixels", minimum=1)


class _Block(nn.Module):
    """The layers of one block. `MyPart.block` runs them, because modulators step in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


@encoders.register("my_part", MyPartConfig)
class MyPart(contracts.Encoder):
    """Encode images of any size with a small vision transformer."""

    def __init__(self, config: MyPartConfig) -> None:
        super().__init__()
        width, self.heads, self.patch = config.width, config.heads, config.patch
        self.budget = config.pixel_budget(contracts.PixelBudget(overview=1024, zoom=2048))
        self.stem, self.place = nn.Linear(3 * self.patch**2, width), nn.Linear(2, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        # The width of every output that modulators may change. docs/contracts.md lists the names of the sites.
        sites = dict.fromkeys(("norm1", "proj", "attention", "norm2", "fc2", "mlp", "block"), width)
        sites |= {"qkv": 3 * width, "fc1": 4 * width}
        spec = contracts.BlockSpec(width, sites, {"fc2": 4 * width}, heads=self.heads, head_dim=width // self.heads)
        full = tuple(range(config.depth))
        self.spec = contracts.EncoderSpec("image", (spec,) * config.depth, width, "absolute", full_attention=full)

    def prepare(self, crop: contracts.Crop) -> contracts.View:
        """Resize a crop, uint8 [h, w, 3], to whole patches within the budget; runs in data workers."""
        from PIL import Image

        budget, (height, width) = self.budget.with_max_pixels(crop.max_pixels), crop.data.shape[:2]
        columns, rows = contracts.view_size(width, height, self.patch, budget, crop.overview)
        pixels = np.array(Image.fromarray(np.asarray(crop.data)).resize((columns, rows)))
        return contracts.View(torch.from_numpy(pixels).permute(2, 0, 1), (rows // self.patch, columns // self.patch))

    def extent(self, view: contracts.View) -> contracts.Grid:
        """Return width and height of a view, for dialogues that write boxes in its pixels."""
        return view.data.shape[2], view.data.shape[1]

    def token_count(self, size: contracts.Grid) -> int:
        """Return the number of tokens of a grid (h, w)."""
        return math.prod(size)

    def embed(self, views: Sequence[contracts.View], layout: contracts.Layout) -> contracts.Tokens:
        """Embed the patches of all views, one view after the other on one axis; x [S, D]. Nothing is padded."""
        weight = self.stem.weight
        patches = torch.cat([self._cut_patches(view.data) for view in views]).to(weight.device, non_blocking=True)
        places = torch.cat([_patch_centres(size) for size in layout.sizes]).to(weight, non_blocking=True)
        return contracts.Tokens(self.stem((patches.float() / 127.5 - 1).to(weight.dtype)) + self.place(places), layout)

    def block(self, index: int, tokens: contracts.Tokens, site: contracts.SiteHook, attend: contracts.Attend) -> Tensor:
        """Run block `index`; [S, D] -> [S, D]. `site` follows every part, `attend` keeps regions apart."""
        block: Any = self.blocks[index]
        x = tokens.x
        h = site("norm1", x, block.norm1(x))
        q, k, v = site("qkv", h, block.qkv(h)).view(len(h), 3, self.heads, -1).unbind(1)
        a = attend(q, k, v).flatten(1)
        middle = x + site("attention", h, site("proj", a, block.proj(a)))
        h = site("norm2", middle, block.norm2(middle))
        inner = F.gelu(site("fc1", h, block.fc1(h)))
        return site("block", x, middle + site("mlp", h, site("fc2", inner, block.fc2(inner))))

    def readout(self, tokens: contracts.Tokens) -> Tensor:
        """Return one feature per patch; [S, D] -> [F, D]."""
        features: Tensor = self.norm(tokens.x)
        return features

    def _cut_patches(self, pixels: Tensor) -> Tensor:
        rows, columns = pixels.shape[1] // self.patch, pixels.shape[2] // self.patch
        cells = pixels.reshape(3, rows, self.patch, columns, self.patch)
        return cells.permute(1, 3, 0, 2, 4).reshape(rows * columns, -1)

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig(width=16, depth=2, heads=2)


def _patch_centres(size: contracts.Grid) -> Tensor:
    # From -1 to 1 along each side, so that a grid of any size has positions.
    return torch.cartesian_prod(*((2 * torch.arange(side, device="cpu") + 1) / side - 1 for side in size))
