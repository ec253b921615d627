"""Modulator `adaln_zero`: the inquiry scales and shifts a block's norms, and gates its two branches."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_toolkit.contracts import BlockSpec, Inquiry, Modulator
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.settings import NoSettings

_NORMS, _BRANCHES = ("norm1", "norm2"), ("attention", "mlp")


@modulators.register("adaln_zero")
class AdaLNZero(Modulator):
    """Adaptive layer norm with gates, adaLN-Zero (Peebles & Xie, 2023, arXiv 2212.09748, section 3.2).

    After a norm y' = y + scale * y + shift, and before a branch is added to the residual stream y' = y + gate * y. All
    six [D] vectors come from one linear layer on SiLU(pooled inquiry), which is zero at the start. In the paper a gate
    of zero closes its branch. The branches here are pretrained, so a gate is added to 1.
    """

    sites = frozenset(_NORMS + _BRANCHES)

    def __init__(self, config: NoSettings, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()
        self.widths = [block.sites[site] * (2 if site in _NORMS else 1) for site in _NORMS + _BRANCHES]
        self.net = nn.Linear(inquiry_width, sum(self.widths))
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return the empty settings."""
        return NoSettings()

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """Scale and shift the output of a norm, or gate that of a branch; y [S, D] -> [S, D]."""
        place = (_NORMS + _BRANCHES).index(site)
        rows = slice(sum(self.widths[:place]), sum(self.widths[: place + 1]))
        # On G groups, not on S tokens, and only the rows of this site.
        vectors = F.linear(F.silu(inquiry.pooled), self.net.weight[rows], self.net.bias[rows])
        if site in _BRANCHES:
            return y + inquiry.to_tokens(vectors) * y
        scale, shift = (inquiry.to_tokens(part) for part in vectors.chunk(2, dim=-1))
        return y + scale * y + shift
