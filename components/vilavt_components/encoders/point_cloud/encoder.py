"""Point clouds: neighbourhoods of a cloud as tokens of a plain vision transformer."""

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

from vilavt_components.common.weights import check_safetensors, fill_from_file
from vilavt_components.encoders.point_cloud.pointnet import Place, PointNet, in_own_ball
from vilavt_components.encoders.point_cloud.sampling import boxed, farthest, neighbours, thinned
from vilavt_components.encoders.timm.block_parts import Run
from vilavt_components.encoders.timm.blocks import adapters
from vilavt_toolkit.contracts import At, Attend, Crop, Encoder, EncoderSpec, Grid, View
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.packed.tokens import Layout, Tokens
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.settings import setting

Points = NDArray[np.float32]
"""[N, 3 + F]"""


@dataclass(frozen=True)
class PointCloudConfig:
    """Settings of the `point_cloud` encoder; the defaults are small enough for a CPU."""

    features: int = setting(
        3, help="numbers a point has beside its coordinates: 3 for colours, 6 with normals", minimum=0
    )
    overview_points: int = setting(
        256, help="most points of the whole cloud that are looked at, spread evenly over it", minimum=1
    )
    zoom_points: int = setting(512, help="most points of a region that are looked at", minimum=1)
    overview_tokens: int = setting(16, help="most neighbourhoods, which are the tokens, of the whole cloud", minimum=1)
    zoom_tokens: int = setting(32, help="most neighbourhoods of a region", minimum=1)
    neighbours: int = setting(16, help="points of a neighbourhood, its centre included", minimum=1)
    point_width: int = setting(
        64, help="channels of a point in the PointNet; its last layer has twice as many", minimum=1
    )
    width: int = setting(128, help="channels of a token; a multiple of heads", minimum=1)
    depth: int = setting(3, help="blocks", minimum=1)
    heads: int = setting(4, help="attention heads", minimum=1)
    mlp_ratio: float = setting(2.0, help="hidden width of a block's MLP over its width", minimum=0.01)
    file: str | None = setting(None, help="weights (.safetensors) of an encoder of these settings")

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; change one of them.")
        for view in ("overview", "zoom"):
            points, tokens = getattr(self, f"{view}_points"), getattr(self, f"{view}_tokens")
            if points < tokens:
                raise ValueError(
                    f"{view}_points {points} are too few for {view}_tokens {tokens}: every token has a centre of its "
                    "own; raise the one or lower the other."
                )


@encoders.register("point_cloud", PointCloudConfig)
class PointCloudEncoder(Encoder):
    """A transformer on neighbourhoods of points, each made a token by a small PointNet; for clouds of any size.

    The plan of Point-BERT (Yu et al., 2022) and Point-MAE (Pang et al., 2022): farthest points as centres, the nearest
    points around each, a PointNet, an embedding of where the centre lies, and plain ViT blocks, here timm's.
    """

    def __init__(self, config: PointCloudConfig) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.config = config
        width = config.width
        self.points = PointNet(3 + config.features, config.point_width, width)
        self.place = Place(width)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(config.depth)
        )
        self.norm = norm(width)
        self._adapter = adapters()[Block]
        self.spec = EncoderSpec(
            modality="point_cloud",
            blocks=tuple(self._adapter.spec(block, False) for block in self.blocks),
            out_width=width,
            positions="absolute",
            full_attention=tuple(range(config.depth)),
            channels=3 + config.features,
        )

    @classmethod
    def tiny(cls) -> PointCloudConfig:
        """Return settings of two blocks of width 32, eight tokens at most, on coloured points."""
        return PointCloudConfig(
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
        """Sample neighbourhoods of a crop float32 [N, 3 + F], its box scaled to [-1, 1]; raises InputError.

        `View.data` is [n, 1 + k, 3 + F]: each centre, then the k points nearest to it, relative to it. There are as
        many neighbourhoods as the settings allow or as there are distinct places, if fewer; of fewer than k points
        each comes several times. The order of the points, and where and how large the crop is, change nothing.
        """
        config = self.config
        points = self._checked(crop.data)
        most, count = config.zoom_points, config.zoom_tokens
        if crop.overview:
            most, count = config.overview_points, config.overview_tokens
        unit, low, high = boxed(points)
        kept = points[thinned(points, unit, most, count)]
        half = (high - low).max() / 2
        xyz = (kept[:, :3] - (low + high) / 2) / (half if half > 0 else 1.0)
        centres = farthest(xyz, count)
        near = neighbours(xyz, centres, config.neighbours)
        rows = np.concatenate([xyz, kept[:, 3:]], axis=1)
        data = np.concatenate([rows[centres][:, None], rows[near]], axis=1)
        data[:, 1:, :3] -= data[:, :1, :3]
        return View(torch.from_numpy(data.astype(np.float32)), (len(centres),))

    def tokens(self, size: Grid) -> int:
        """One per neighbourhood; size (n,)."""
        return size[0]

    def embed(self, views: Sequence[View], layout: Layout) -> Tokens:
        """Every neighbourhood, in its own size, through the PointNet, and its centre's place; R views -> x [S, D]."""
        weight = self.points.lift.weight
        # Coordinates stay in 32 bits until they are waves and offsets: in 16 places nearby would be one.
        data = torch.cat([view.data for view in views]).to(weight.device, non_blocking=True)
        near = in_own_ball(data[:, 1:]).to(weight.dtype)
        return Tokens(self.points(near) + self.place(data[:, 0, :3]), layout)

    def block(self, index: int, tokens: Tokens, at: At, attend: Attend) -> Tensor:
        """Run timm's block `index` with its parts in the open; x [S, D] -> [S, D]."""
        return self._adapter.forward(self.blocks[index], tokens.x, Run(at, attend, tokens.layout))

    def readout(self, tokens: Tokens) -> Tensor:
        """Final norm; [S, D] -> [F, D], one feature per neighbourhood."""
        features: Tensor = self.norm(tokens.x)
        return features

    def check_weights(self) -> None:
        """Hold that `file` is there, if it is set; raises InputError."""
        if self.config.file is not None:
            check_safetensors(Path(self.config.file))

    def load_weights(self) -> None:
        """Load `file` where it is set; raises InputError."""
        if self.config.file is not None:
            fill_from_file(self, Path(self.config.file))

    def _checked(self, data: Any) -> Points:
        """The crop's points; raises InputError for another number of features, none, and what is not finite."""
        points = np.asarray(data)
        if points.ndim != 2 or points.dtype.kind not in "fiu":
            raise InputError(
                f"a point cloud must be numbers [N, 3 + features], not {points.dtype} {list(points.shape)}; "
                "give x, y, z and the features of every point."
            )
        wanted, found = self.config.features, points.shape[1] - 3
        if found != wanted:
            raise InputError(
                f"the points have {max(found, 0)} features beside x, y, z ({points.shape[1]} numbers each), but the "
                f"encoder 'point_cloud' takes {wanted}; set its `features` to what the source gives, or the other way."
            )
        if not len(points):
            raise InputError("a region without any points cannot be encoded; choose one that has some.")
        points = points.astype(np.float32, copy=False)
        if not np.isfinite(points).all():
            index = int(np.flatnonzero(~np.isfinite(points).all(1))[0])
            raise InputError(f"point {index} has a value that is no finite number; leave it out of the cloud.")
        return points
