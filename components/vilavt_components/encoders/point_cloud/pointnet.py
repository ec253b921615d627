"""A small PointNet that makes a token of the points around a centre, and the embedding of the centre's place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST = 1e-20
"""Squared radius below which a neighbourhood counts as a single place."""


class PointNet(nn.Module):
    """Layers shared by all points and a maximum over them, twice, after Qi et al. (2017, section 4.2).

    As in Point-BERT (Yu et al., 2022, section 3.1), every point sees the first maximum in the second round. There is no
    batch normalisation, since a region must not depend on what it is packed with.
    """

    def __init__(self, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.lift = nn.Linear(channels, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.point = nn.Linear(hidden, 2 * hidden)
        self.whole = nn.Linear(hidden, 2 * hidden, bias=False)
        self.out = nn.Linear(2 * hidden, width)

    def forward(self, points: Tensor) -> Tensor:
        """Encode the points around S centres, relative to them, in any order; [S, k, 3 + C] -> [S, D]."""
        h = self.mix(F.gelu(self.lift(points)))
        # A linear layer on cat(point, maximum), split in two, so that the maximum's part is computed once for k points.
        h = F.gelu(self.point(h) + self.whole(h.amax(1)).unsqueeze(1))
        token: Tensor = self.out(h.amax(1))
        return token


class CentreEmbedding(nn.Module):
    """An MLP on the coordinates of centres, which run from -1 to 1 along the longest side of the region.

    Sines and cosines of wavelengths 4 to 1/2 beside the coordinates (as in Mildenhall et al., 2020, section 5.1) tell
    places apart that lie close together.
    """

    waves = 4

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lift, self.out = nn.Linear(3 + 6 * self.waves, width), nn.Linear(width, width)

    def forward(self, centres: Tensor) -> Tensor:
        """Embed the places of centres; [..., 3] -> [..., D]."""
        # In the type of the coordinates, float32, until here: see `PointCloudEncoder.embed`.
        turns = [centres * (math.pi / 2 * 2**wave) for wave in range(self.waves)]
        waves = [part for turn in turns for part in (turn.sin(), turn.cos())]
        lifted = self.lift(torch.cat([centres, *waves], dim=-1).to(self.lift.weight.dtype))
        placed: Tensor = self.out(F.gelu(lifted))
        return placed


def scale_to_unit_ball(points: Tensor) -> Tensor:
    """Scale the coordinates around each of S centres so that the farthest point is at 1; [S, k, 3 + C] -> the same.

    Unscaled, the coordinates of a small neighbourhood would hardly count beside its colours. A neighbourhood of one
    place is left as it is.
    """
    offsets, features = points[..., :3], points[..., 3:]
    farthest = offsets.square().sum(-1, keepdim=True).amax(1, keepdim=True)
    return torch.cat([offsets * farthest.clamp_min(_LEAST).rsqrt(), features], dim=-1)
