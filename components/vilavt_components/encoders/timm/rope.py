"""RoPE of timm's EVA models, at any coordinates instead of at those of one grid.

timm computes a table for all tokens of an image. Here every token carries its coordinates, so that tokens of many
regions, and context keys at coordinate 0, go through one attention call.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Grid
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Layout, gather_rows

RopeKind = Literal["cat", "mixed", "dinov3", "mrope"]


class Rope:
    """The rotation of timm's rotary module, computed from coordinates; coordinate 0 turns nothing.

    With `rotates_halves` a channel turns with the one half a head further on, else with its neighbour.
    """

    def __init__(self, module: Any, rotates_halves: bool) -> None:
        self.module = module
        self.kind = _rope_kind(module)
        self.rotates_halves = rotates_halves
        # True if coordinates count tokens. A "cat" module with a reference shape stretches every grid to that shape.
        self.counts_tokens = self.kind in ("mixed", "mrope") or (
            self.kind == "cat" and module.ref_feat_shape is None and module.grid_offset == 0
        )

    def grid_coordinates(self, size: Grid) -> Tensor:
        """Return the coordinates of a grid's tokens, row after row; [h w, 2], on the CPU."""
        axes = [self._axis_coordinates(axis, size) for axis in range(2)]
        grid = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).flatten(0, 1)
        return grid.flip(-1) if self.module.grid_indexing == "xy" else grid

    def position_stride(self, size: Grid) -> int:
        """Return how far the next region of a group is shifted; 0 if coordinates are relative to a region's size."""
        return max(size) if self.counts_tokens else 0

    def augment_positions(self, positions: Tensor, layout: Layout) -> Tensor:
        """Shift, stretch and scale coordinates [S, 2] at random, region by region, as DINOv3 was trained."""
        module, shape = self.module, (len(layout.sizes), positions.shape[1])
        # timm draws once per batch; regions are images of their own here, so each gets its own draw.
        region_of = layout.token_regions(positions.device)
        if module.shift_coords is not None:
            shift = module.shift_coords * (2 * torch.rand(shape, device=positions.device) - 1)
            positions = positions + gather_rows(shift, region_of)
        # Factors are uniform on a logarithmic scale from 1 / most to most; jitter is per axis, rescaling for both.
        for most, axes in ((module.jitter_coords, shape[1]), (module.rescale_coords, 1)):
            if most is not None:
                power = 2 * torch.rand(shape[0], axes, device=positions.device) - 1
                positions = positions * gather_rows((math.log(most) * power).exp(), region_of)
        return positions

    def rotation(self, index: int, positions: Tensor) -> Tensor:
        """Return cosines and sines in block `index` at coordinates [N, 2]; [2, N, 1 or H, d]."""
        angles = self._rotation_angles(index, positions)
        both = torch.stack([angles.cos(), angles.sin()])
        return torch.cat([both, both], dim=-1) if self.rotates_halves else torch.stack([both, both], dim=-1).flatten(-2)

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotate queries or keys [N, H, d] by the cosines and sines of `rotation`; timm's `apply_rot_embed_cat`."""
        cos, sin = rotation.unbind(0)
        # The pair of a channel, turned by a quarter: (x1, x2) -> (-x2, x1).
        if self.rotates_halves:
            first, second = x.chunk(2, dim=-1)
            turned = torch.cat([-second, first], dim=-1)
        else:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return (x * cos + turned * sin).to(x.dtype)

    def _axis_coordinates(self, axis: int, size: Grid) -> Tensor:
        """Return the coordinates of a grid's rows (axis 0) or columns (axis 1); [h] or [w]."""
        module, steps = self.module, size[axis]
        places = torch.arange(steps, dtype=torch.float32, device="cpu")
        if self.kind == "dinov3":
            # Centres of the tokens, from -1 to 1 over the side that the model normalises by.
            whole = {"separate": steps, "min": min(size), "max": max(size)}[module.normalize_coords]
            centred: Tensor = 2.0 * ((places + 0.5 + module.grid_offset) / whole) - 1.0
            return centred
        if self.kind == "cat":
            places = places + module.grid_offset
            if module.ref_feat_shape is not None:
                places = places / steps * module.ref_feat_shape[axis]
        return places

    def _rotation_angles(self, index: int, positions: Tensor) -> Tensor:
        """Return the angles in block `index` at coordinates [N, 2]; [N, 1 or H, d / 2]."""
        module = self.module
        if self.kind == "mixed":
            # Every head of every block has learned frequencies along both axes, [2, depth, H, d / 2].
            along, across = module.freqs[:, index].float()
            mixed: Tensor = positions[:, :1, None] * along + positions[:, 1:, None] * across
            return mixed
        if self.kind == "mrope":
            # timm's axes are time, row and column, and an image has one time.
            timed = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=-1)
            angles: Tensor = timed.index_select(-1, module.axis) * module.inv_freq
        elif self.kind == "dinov3":
            angles = 2 * math.pi * positions.unsqueeze(-1) / module.periods
        else:
            angles = positions.unsqueeze(-1) * module.bands
        return angles.flatten(1).unsqueeze(1)


def _rope_kind(module: Any) -> RopeKind:
    import timm.layers
    from timm.layers import pos_embed_sincos

    sincos = cast(Any, pos_embed_sincos)
    kinds: dict[type, RopeKind] = {
        cast(Any, timm.layers).RotaryEmbeddingCat: "cat",
        sincos.RotaryEmbeddingMixed: "mixed",
        sincos.RotaryEmbeddingDinoV3: "dinov3",
        sincos.RotaryEmbeddingMRope: "mrope",
    }
    # By exact type. Of the "cat" modules those with another `grid_type` place coordinates differently.
    kind = kinds.get(type(module))
    if kind is None or (kind == "cat" and module.grid_type != "index"):
        raise BadConfig(
            f"Encoder 'timm' was not written for the RoPE {type(module).__name__}. "
            "Choose a model with rope_type cat, mixed, dinov3 or mrope."
        )
    return kind
