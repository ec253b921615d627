"""A small PointNet and where it looks: what lies around each centre of a cloud, as one token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST = 1e-20
"""Squared radius below which a neighbourhood is one place."""


class PointNet(nn.Module):
    """Layers shared by all points and a maximum over them, twice, after Qi et al. (2017, section 4.2).

    As in the neighbourhoods of Point-BERT (Yu et al., 2022, section 3.1), every point sees the first maximum in the
    second round. There is no batch normalisation: a region must not depend on what it is packed with.
    """

    def __init__(self, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.lift = nn.Linear(channels, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.point = nn.Linear(hidden, 2 * hidden)
        self.whole = nn.Linear(hidden, 2 * hidden, bias=False)
        self.out = nn.Linear(2 * hidden, width)

    def forward(self, points: Tensor) -> Tensor:
        """Points around S centres [S, k, 3 + F], relative to them, to tokens [S, D]; the order of points is nothing."""
        h = self.mix(F.gelu(self.lift(points)))
        # A layer on every point beside the maximum, taken apart: what the maximum adds is computed once.
        h = F.gelu(self.point(h) + self.whole(h.amax(1)).unsqueeze(1))
        token: Tensor = self.out(h.amax(1))
        return token


class Place(nn.Module):
    """Where centres lie, from -1 to 1 along the longest side of their region: coordinates and waves, through an MLP.

    The waves, of 4 to 1/2 in length (as in Mildenhall et al., 2020, section 5.1), tell places apart that lie near.
    """

    waves = 4

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lift, self.out = nn.Linear(3 + 6 * self.waves, width), nn.Linear(width, width)

    def forward(self, centres: Tensor) -> Tensor:
        """Centres [..., 3] to [..., D]."""
        turns = [centres * (math.pi / 2 * 2**wave) for wave in range(self.waves)]
        waves = [part for turn in turns for part in (turn.sin(), turn.cos())]
        lifted = self.lift(torch.cat([centres, *waves], dim=-1).to(self.lift.weight.dtype))
        placed: Tensor = self.out(F.gelu(lifted))
        return placed


def in_own_ball(points: Tensor) -> Tensor:
    """Points around S centres [S, k, 3 + F], relative to them, with coordinates scaled so that the farthest is at 1.

    Beside colours the coordinates of small neighbourhoods would hardly count. A neighbourhood of one place stays.
    """
    offsets, features = points[..., :3], points[..., 3:]
    farthest = offsets.square().sum(-1, keepdim=True).amax(1, keepdim=True)
    return torch.cat([offsets * farthest.clamp_min(_LEAST).rsqrt(), features], dim=-1)
