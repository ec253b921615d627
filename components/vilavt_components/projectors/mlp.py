"""A multilayer perceptron from encoder width to language width, merging neighbouring features first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import Grid, Projector
from vilavt_toolkit.packed.tokens import permutation, permute
from vilavt_toolkit.registry import projectors
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class MLPConfig:
    """Settings of the `mlp` projector."""

    layers: int = setting(2, help="linear layers, with GELU between them", minimum=1)
    hidden: int = setting(0, help="width between the layers; 0: the language model's", minimum=0)
    merge: int = setting(1, help="features merged into one along each axis of a region's grid", minimum=1)
    pool: Literal["concat", "mean"] = setting("concat", help="how neighbouring features are merged")
    norm: bool = setting(True, help="LayerNorm of the merged features")
    center: bool = setting(
        False,
        help="take what all features have in common away before the last layer: in training the mean of what is "
        "encoded together, so set micro_batch to batch_size; elsewhere its running mean",
    )


class _Centre(nn.Module):
    """Features without their mean: in training that of the batch, elsewhere its running mean."""

    _MOMENTUM = 0.2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        """[F, D] -> [F, D]."""
        if not self.training or not len(features):
            return features - self.mean.to(features.dtype)
        mean = features.float().mean(0)
        self.mean.lerp_(mean.detach().to(self.mean.dtype), self._MOMENTUM)
        return features - mean.to(features.dtype)


@projectors.register("mlp", MLPConfig)
class MLPProjector(Projector):
    """LayerNorm and linear layers, over m x m neighbouring features at a time.

    A grid that m does not divide has its last row and column repeated. Untrained, nearly all of a feature is what all
    have in common, and learning what to say first makes that grow until little else is left; `center` prevents it.
    """

    def __init__(self, config: MLPConfig, in_width: int, out_width: int) -> None:
        super().__init__()
        self.config = config
        # The images of this toolkit have two axes; a merge along fewer or more is averaged.
        wide = in_width * (config.merge**2 if config.pool == "concat" else 1)
        hidden = config.hidden or out_width
        widths = [wide, *[hidden] * (config.layers - 1), out_width]
        layers: list[nn.Module] = [nn.LayerNorm(wide)] if config.norm else []
        for index, (width, after) in enumerate(itertools.pairwise(widths)):
            layers += [nn.GELU()] if index else []
            layers.append(nn.Linear(width, after))
        if config.center:
            # A bias would bring back what is taken away.
            layers[-1:] = [_Centre(widths[-2]), nn.Linear(widths[-2], out_width, bias=False)]
        self.net = nn.Sequential(*layers)

    @classmethod
    def tiny(cls) -> MLPConfig:
        """Return settings that merge 2 x 2 features."""
        return MLPConfig(hidden=16, merge=2)

    @classmethod
    def variants(cls) -> Mapping[str, MLPConfig]:
        """Return settings with features centred."""
        return {"centred": MLPConfig(hidden=16, center=True)}

    def grid(self, size: Grid) -> Grid:
        """Every axis divided by `merge`, rounded up."""
        return tuple(math.ceil(side / self.config.merge) for side in size)

    def forward(self, features: Tensor, sizes: Sequence[Grid]) -> Tensor:
        """Merge and project packed features of regions with grids `sizes`; [F_in, D_in] -> [F, D_out]."""
        projected: Tensor = self.net(features if self.config.merge == 1 else self._merged(features, sizes))
        return projected

    def _merged(self, features: Tensor, sizes: Sequence[Grid]) -> Tensor:
        of_size: dict[Grid, list[int]] = {}
        for region, size in enumerate(sizes):
            of_size.setdefault(tuple(size), []).append(region)
        order = [region for regions in of_size.values() for region in regions]
        if len(of_size) > 1:
            features = permute(features, *permutation([math.prod(size) for size in sizes], order, features.device))
        counts = [len(regions) * math.prod(size) for size, regions in of_size.items()]
        parts = zip(features.split_with_sizes(counts), of_size.items(), strict=True)
        merged = [self._merge(part.view(len(regions), *size, -1)) for part, (size, regions) in parts]
        if len(merged) == 1:
            return merged[0]
        by_size, back = permutation([math.prod(self.grid(size)) for size in sizes], order, features.device)
        return permute(torch.cat(merged), back, by_size)

    def _merge(self, x: Tensor) -> Tensor:
        """[n, *grid, D] -> [n * cells, merged D]."""
        merge, axes = self.config.merge, x.dim() - 2
        for axis, side in enumerate(x.shape[1:-1], start=1):
            cells = math.ceil(side / merge)
            if cells * merge != side:
                last = x.narrow(axis, side - 1, 1)
                x = torch.cat([x, *[last] * (cells * merge - side)], dim=axis)
        for axis in range(axes):
            here = 1 + 2 * axis
            x = x.reshape(*x.shape[:here], -1, merge, *x.shape[here + 1 :])
        cells_first = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
        x = x.permute(cells_first).flatten(0, axes).flatten(1, axes)
        return x.mean(1) if self.config.pool == "mean" else x.flatten(1)
