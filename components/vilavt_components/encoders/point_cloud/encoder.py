"""Encoder `point_cloud`: neighbourhoods of a cloud as tokens of a plain vision transformer.

Read this file first. `prepare` samples neighbourhoods in a data worker, `embed` makes a token of each, and the blocks
are timm's, run by encoder `timm`'s own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vilavt_components.common.weights import check_safetensors, load_file_into
from vilavt_components.encoders.point_cloud.pointnet import CentreEmbedding, PointNet, scale_to_unit_ball
from vilavt_components.encoders.point_cloud.sampling import (
    farthest_points,
    nearest_points,
    normalise_to_box,
    thin_points,
)
from vilavt_components.encoders.timm.blocks import block_adapters
from vilavt_components.encoders.timm.branches import BlockHooks
from vilavt_toolkit.contracts import Attend, Crop, Encoder, EncoderSpec, Grid, SiteHook, View
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.packed.tokens import Layout, Tokens
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.settings import setting

Points = NDArray[np.float32]
"""Points [N, 3 + C]: x, y, z, then C features."""


@dataclass(frozen=True)
class PointCloudEncoderConfig:
    """Settings of the `point_cloud` encoder; the defaults are small enough for a CPU."""

    features: int = setting(
        3, help="numbers of a point beside its coordinates: 3 for colours, 6 with normals", minimum=0
    )
    overview_points: int = setting(
        256, help="most points of the whole cloud that are read, spread evenly over it", minimum=1
    )
    zoom_points: int = setting(512, help="most points of a region that are read", minimum=1)
    overview_tokens: int = setting(16, help="most neighbourhoods, which are the tokens, of the whole cloud", minimum=1)
    zoom_tokens: int = setting(32, help="most neighbourhoods of a region", minimum=1)
    neighbours: int = setting(16, help="points of a neighbourhood, its centre included", minimum=1)
    point_width: int = setting(
        64, help="channels of a point in the PointNet (its last layer has twice as many)", minimum=1
    )
    width: int = setting(128, help="channels of a token, a multiple of `heads`", minimum=1)
    depth: int = setting(3, help="number of blocks", minimum=1)
    heads: int = setting(4, help="attention heads", minimum=1)
    mlp_ratio: float = setting(2.0, help="hidden width of a block's MLP divided by its width", minimum=0.01)
    path: str | None = setting(
        None, help="weights (.safetensors) of an encoder of these settings", formerly=("file",), is_path=True
    )

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is no multiple of heads {self.heads}. Set width to a multiple of {self.heads}."
            )
        for view in ("overview", "zoom"):
            points, tokens = getattr(self, f"{view}_points"), getattr(self, f"{view}_tokens")
            if points < tokens:
                raise ValueError(
                    f"{view}_points {points} are too few for {view}_tokens {tokens}, since every token has a centre of "
                    f"its own. Set {view}_points to {tokens} or more."
                )


@encoders.register("point_cloud", PointCloudEncoderConfig)
class PointCloudEncoder(Encoder):
    """A transformer on neighbourhoods of points, each made a token by a small PointNet; for clouds of any size.

    It follows Point-BERT (Yu et al., 2022) and Point-MAE (Pang et al., 2022): farthest points as centres, the nearest
    points around each, a PointNet, an embedding of the centre's place, and plain ViT blocks, here timm's.
    """

    def __init__(self, config: PointCloudEncoderConfig) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.config = config
        width = config.width
        self.points = PointNet(3 + config.features, config.point_width, width)
        self.place = CentreEmbedding(width)
        # timm's own default epsilon of its vision transformers.
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(config.depth)
        )
        self.norm = norm(width)
        self._adapter = block_adapters()[Block]
        self.spec = EncoderSpec(
            modality="point_cloud",
            blocks=tuple(self._adapter.block_spec(block, has_relative_bias=False) for block in self.blocks),
            out_width=width,
            positions="absolute",
            full_attention=tuple(range(config.depth)),
            channels=3 + config.features,
        )

    @classmethod
    def tiny(cls) -> PointCloudEncoderConfig:
        """Return settings of two blocks of width 32, eight tokens at most, on coloured points."""
        return PointCloudEncoderConfig(
            overview_points=64,
            zoom_points=64,
            overview_tokens=6,
            zoom_tokens=8,
            neighbours=5,
            point_width=16,
            width=32,
            depth=2,
            heads=2,
        )

    def prepare(self, crop: Crop) -> View:
        """Sample neighbourhoods of a crop float32 [N, 3 + C], its box scaled to [-1, 1]; raises InputError.

        `View.data` is [n, 1 + k, 3 + C]: each centre, then the k points nearest to it, relative to it. There are as
        many neighbourhoods n as the settings allow, or as there are distinct places if those are fewer. A crop of fewer
        than k points repeats them. The order of the points and the place and size of the crop do not matter.
        """
        config = self.config
        points = self._check_points(crop.data)
        most, count = config.zoom_points, config.zoom_tokens
        if crop.overview:
            most, count = config.overview_points, config.overview_tokens
        unit, low, high = normalise_to_box(points)
        kept = points[thin_points(points, unit, most, count)]
        # The corners are float64, so that a cloud far from the origin keeps its digits; `unit` serves the choice of
        # points alone. A crop of one place has no size to scale by.
        half = (high - low).max() / 2
        xyz = (kept[:, :3] - (low + high) / 2) / (half if half > 0 else 1.0)
        centres = farthest_points(xyz, count)
        near = nearest_points(xyz, centres, config.neighbours)
        rows = np.concatenate([xyz, kept[:, 3:]], axis=1)
        data = np.concatenate([rows[centres][:, None], rows[near]], axis=1)
        data[:, 1:, :3] -= data[:, :1, :3]
        return View(torch.from_numpy(data.astype(np.float32)), (len(centres),))

    def token_count(self, size: Grid) -> int:
        """Count one token per neighbourhood; the grid is (n,)."""
        return size[0]

    def embed(self, views: Sequence[View], layout: Layout) -> Tokens:
        """Make a token of each neighbourhood, from its scaled points and its centre's place; R views -> x [S, D]."""
        weight = self.points.lift.weight
        # Coordinates stay float32 until they are waves and scaled offsets: bfloat16 would merge places close by.
        data = torch.cat([view.data for view in views]).to(weight.device, non_blocking=True)
        near = scale_to_unit_ball(data[:, 1:]).to(weight.dtype)
        return Tokens(self.points(near) + self.place(data[:, 0, :3]), layout)

    def block(self, index: int, tokens: Tokens, site: SiteHook, attend: Attend) -> Tensor:
        """Run timm's block `index` with a hook at every site; x [S, D] -> [S, D]."""
        return self._adapter.forward(self.blocks[index], tokens.x, BlockHooks(site, attend, tokens.layout))

    def readout(self, tokens: Tokens) -> Tensor:
        """Apply the final norm; [S, D] -> [F, D], one feature per neighbourhood."""
        features: Tensor = self.norm(tokens.x)
        return features

    def check_weights(self) -> None:
        """Check that the file `path` exists, if it is set; raises InputError."""
        if self.config.path is not None:
            check_safetensors(Path(self.config.path))

    def load_weights(self) -> None:
        """Load the file `path`, if it is set; raises InputError."""
        if self.config.path is not None:
            load_file_into(self, Path(self.config.path))

    def _check_points(self, data: Any) -> Points:
        """Return the crop's points in float32; raises InputError for other features, no points, NaN or infinity."""
        points = np.asarray(data)
        if points.ndim != 2 or points.dtype.kind not in "fiu":
            raise InputError(
                f"a point cloud must be numbers [N, 3 + features], not {points.dtype} {list(points.shape)}. "
                "Give x, y, z and the features of every point."
            )
        wanted, found = self.config.features, points.shape[1] - 3
        if found != wanted:
            raise InputError(
                f"the points have {max(found, 0)} features beside x, y, z ({points.shape[1]} numbers each), but the "
                f"encoder 'point_cloud' takes {wanted}. Set the encoder's `features` to {max(found, 0)}."
            )
        if not len(points):
            raise InputError("a region without any points cannot be encoded. Choose a region with points.")
        # After the cast, since a large float64 may become infinite by it.
        points = points.astype(np.float32, copy=False)
        if not np.isfinite(points).all():
            index = int(np.flatnonzero(~np.isfinite(points).all(1))[0])
            raise InputError(f"point {index} has a value that is NaN or infinite. Remove the point from the cloud.")
        return points
