"""A small PointNet: what lies around each centre of a cloud, as one token."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


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
