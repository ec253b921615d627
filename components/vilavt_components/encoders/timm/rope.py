"""Rotary positions of timm's EVA models, at the coordinates of any grid."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Grid
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Layout, spread

Kind = Literal["cat", "mixed", "dinov3", "mrope"]


class Rope:
    """What timm's rotary module does, from coordinates instead of grids; nothing turns at coordinate 0.

    `half`: a channel turns with the one half a head further on, instead of with its neighbour.
    """

    def __init__(self, module: Any, half: bool) -> None:
        self.module = module
        self.kind = _kind(module)
        self.half = half
        self.integers = self.kind in ("mixed", "mrope") or (
            self.kind == "cat" and module.ref_feat_shape is None and module.grid_offset == 0
        )

    def coordinates(self, size: Grid) -> Tensor:
        """Coordinates of a grid's tokens, row after row; [h w, 2], on the CPU."""
        axes = [self._axis(axis, size) for axis in range(2)]
        grid = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, 1)
        return grid.flip(-1) if self.module.grid_indexing == "xy" else grid

    def room(self, size: Grid) -> int:
        """Coordinates a region takes where they count tokens; 0 where they are relative to its size."""
        return max(size) if self.integers else 0

    def augmented(self, positions: Tensor, layout: Layout) -> Tensor:
        """Shift, stretch and scale coordinates [S, 2] at random, region by region, as DINOv3 is trained."""
        module, shape = self.module, (len(layout.sizes), positions.shape[1])
        region_of = layout.region_of(positions.device)
        if module.shift_coords is not None:
            shift = module.shift_coords * (2 * torch.rand(shape, device=positions.device) - 1)
            positions = positions + spread(shift, region_of)
        for most, axes in ((module.jitter_coords, shape[1]), (module.rescale_coords, 1)):
            if most is not None:
                power = 2 * torch.rand(shape[0], axes, device=positions.device) - 1
                positions = positions * spread((math.log(most) * power).exp(), region_of)
        return positions

    def rotation(self, index: int, positions: Tensor) -> Tensor:
        """Cosines and sines in block `index` at coordinates [N, 2]; [2, N, 1 or H, d]."""
        angles = self._angles(index, positions)
        both = torch.stack([angles.cos(), angles.sin()])
        return torch.cat([both, both], dim=-1) if self.half else torch.stack([both, both], dim=-1).flatten(-2)

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotate [N, H, d] by what `rotation` made."""
        cos, sin = rotation.unbind(0)
        if self.half:
            first, second = x.chunk(2, dim=-1)
            turned = torch.cat([-second, first], dim=-1)
        else:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return (x * cos + turned * sin).to(x.dtype)

    def _axis(self, axis: int, size: Grid) -> Tensor:
        module, steps = self.module, size[axis]
        places = torch.arange(steps, dtype=torch.float32, device="cpu")
        if self.kind == "dinov3":
            whole = {"separate": steps, "min": min(size), "max": max(size)}[module.normalize_coords]
            centred: Tensor = 2.0 * ((places + 0.5 + module.grid_offset) / whole) - 1.0
            return centred
        if self.kind == "cat":
            places = places + module.grid_offset
            if module.ref_feat_shape is not None:
                places = places / steps * module.ref_feat_shape[axis]
        return places

    def _angles(self, index: int, positions: Tensor) -> Tensor:
        """[N, 2] -> [N, 1 or H, half of d]"""
        module = self.module
        if self.kind == "mixed":
            along, across = module.freqs[:, index].float()
            mixed: Tensor = positions[:, :1, None] * along + positions[:, 1:, None] * across
            return mixed
        if self.kind == "mrope":
            # The first axis is time, which stands still in an image.
            timed = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=-1)
            angles: Tensor = timed.index_select(-1, module.axis) * module.inv_freq
        elif self.kind == "dinov3":
            angles = 2 * math.pi * positions.unsqueeze(-1) / module.periods
        else:
            angles = positions.unsqueeze(-1) * module.bands
        return angles.flatten(1).unsqueeze(1)


def _kind(module: Any) -> Kind:
    import timm.layers
    from timm.layers import pos_embed_sincos

    sincos = cast(Any, pos_embed_sincos)
    kinds: dict[type, Kind] = {
        cast(Any, timm.layers).RotaryEmbeddingCat: "cat",
        sincos.RotaryEmbeddingMixed: "mixed",
        sincos.RotaryEmbeddingDinoV3: "dinov3",
        sincos.RotaryEmbeddingMRope: "mrope",
    }
    kind = kinds.get(type(module))
    if kind is None or (kind == "cat" and module.grid_type != "index"):
        raise BadConfig(
            f"Encoder 'timm' was not written for the rotary positions {type(module).__name__}; "
            "choose a model with rope_type cat, mixed, dinov3 or mrope."
        )
    return kind
