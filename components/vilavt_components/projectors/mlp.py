"""Projector `mlp`: a multilayer perceptron that merges neighbouring features first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import Grid, Projector
from vilavt_toolkit.packed.tokens import permute_rows, segment_permutation
from vilavt_toolkit.registry import projectors
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class MLPConfig:
    """Settings of the `mlp` projector."""

    layers: int = setting(2, help="linear layers, with GELU between them", minimum=1)
    hidden_dim: int = setting(
        0, help="width between the layers (0 for the language model's)", minimum=0, formerly=("hidden",)
    )
    merge: int = setting(
        1, help="number of features that are merged into one along each axis of a region's grid", minimum=1
    )
    pool: Literal["concat", "mean"] = setting("concat", help="way to merge neighbouring features")
    norm: bool = setting(True, help="apply LayerNorm to the merged features")
    center: bool = setting(
        False,
        help="subtract the mean feature before the last layer (in training the mean of the micro-batch, so set "
        "micro_batch to batch_size, in evaluation a running mean)",
    )


class _MeanRemoval(nn.Module):
    """Subtracts the mean feature: of the batch in training, its running mean in evaluation."""

    _MOMENTUM = 0.2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        """Return features minus their mean; [F, D] -> [F, D]."""
        if not self.training or not len(features):
            return features - self.mean.to(features.dtype)
        # In float32: a bfloat16 sum over thousands of features loses what tells them apart.
        mean = features.float().mean(0)
        self.mean.lerp_(mean.detach().to(self.mean.dtype), self._MOMENTUM)
        return features - mean.to(features.dtype)


@projectors.register("mlp", MLPConfig)
class MLPProjector(Projector):
    """LayerNorm, then linear layers with GELU between them, on cells of m x m neighbouring features (m: `merge`).

    If m does not divide a side of the grid, its last row or column is repeated. In an untrained projector nearly all
    features are nearly equal. Learning to answer first makes their common part grow until little else is left;
    `center` removes it.
    """

    def __init__(self, config: MLPConfig, in_width: int, out_width: int) -> None:
        super().__init__()
        self.config = config
        # Concatenation fixes the number of axes at two, those of images; `pool: mean` works for any number.
        wide = in_width * (config.merge**2 if config.pool == "concat" else 1)
        hidden = config.hidden_dim or out_width
        widths = [wide, *[hidden] * (config.layers - 1), out_width]
        layers: list[nn.Module] = [nn.LayerNorm(wide)] if config.norm else []
        for index, (width, after) in enumerate(itertools.pairwise(widths)):
            layers += [nn.GELU()] if index else []
            layers.append(nn.Linear(width, after))
        if config.center:
            # No bias: it would be a common part again, the same for every feature.
            layers[-1:] = [_MeanRemoval(widths[-2]), nn.Linear(widths[-2], out_width, bias=False)]
        self.net = nn.Sequential(*layers)

    @classmethod
    def tiny(cls) -> MLPConfig:
        """Return settings that merge 2 x 2 features."""
        return MLPConfig(hidden_dim=16, merge=2)

    @classmethod
    def variants(cls) -> Mapping[str, MLPConfig]:
        """Return settings that remove the mean feature."""
        return {"centred": MLPConfig(hidden_dim=16, center=True)}

    def output_grid(self, size: Grid) -> Grid:
        """Return every axis divided by `merge`, rounded up."""
        return tuple(math.ceil(side / self.config.merge) for side in size)

    def forward(self, features: Tensor, sizes: Sequence[Grid]) -> Tensor:
        """Merge and project packed features of regions with grids `sizes`; [F_in, D_in] -> [F, D_out]."""
        projected: Tensor = self.net(features if self.config.merge == 1 else self._merge_packed(features, sizes))
        return projected

    def _merge_packed(self, features: Tensor, sizes: Sequence[Grid]) -> Tensor:
        """Merge packed features of regions with grids `sizes`; [F_in, D_in] -> [F, merged D]."""
        of_size: dict[Grid, list[int]] = {}
        for region, size in enumerate(sizes):
            of_size.setdefault(tuple(size), []).append(region)
        # Regions of one size are merged in one batch: a loop over regions would launch kernels for each of them.
        order = [region for regions in of_size.values() for region in regions]
        if len(of_size) > 1:
            features = permute_rows(
                features, *segment_permutation([math.prod(size) for size in sizes], order, features.device)
            )
        counts = [len(regions) * math.prod(size) for size, regions in of_size.items()]
        parts = zip(features.split_with_sizes(counts), of_size.items(), strict=True)
        merged = [self._merge_same_size(part.view(len(regions), *size, -1)) for part, (size, regions) in parts]
        if len(merged) == 1:
            return merged[0]
        by_size, back = segment_permutation(
            [math.prod(self.output_grid(size)) for size in sizes], order, features.device
        )
        return permute_rows(torch.cat(merged), back, by_size)

    def _merge_same_size(self, x: Tensor) -> Tensor:
        """Merge the cells of n regions of one grid; [n, *grid, D] -> [n * cells, merged D]."""
        merge, axes = self.config.merge, x.dim() - 2
        for axis, side in enumerate(x.shape[1:-1], start=1):
            cells = math.ceil(side / merge)
            if cells * merge != side:
                # Repeated, not padded with zeros: a zero feature does not occur elsewhere.
                last = x.narrow(axis, side - 1, 1)
                x = torch.cat([x, *[last] * (cells * merge - side)], dim=axis)
        for axis in range(axes):
            here = 1 + 2 * axis
            x = x.reshape(*x.shape[:here], -1, merge, *x.shape[here + 1 :])
        # Every axis is now (cells, merge). All cells go first, then all merge axes: n, h, w, mh, mw, D for an image.
        cells_first = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
        x = x.permute(cells_first).flatten(0, axes).flatten(1, axes)
        return x.mean(1) if self.config.pool == "mean" else x.flatten(1)
