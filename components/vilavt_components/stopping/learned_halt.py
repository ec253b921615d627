"""Stopping policy `learned_halt`: a small head on the hidden state says when enough has been seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, StoppingPolicy
from vilavt_toolkit.registry import stopping_policies
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class LearnedHaltConfig:
    """Settings of stopping policy `learned_halt`."""

    threshold: float = setting(
        0.5, help="least probability that the next turn of a trace would answer", minimum=0, maximum=1
    )
    hidden: int = setting(0, help="width of a hidden layer of the head; 0: it is linear", minimum=0)
    weight: float = setting(1.0, help="weight of its loss beside that of the tokens", minimum=0)


@stopping_policies.register("learned_halt", LearnedHaltConfig)
class LearnedHalt(StoppingPolicy):
    """A head learns from traces whether the next turn answers; where that is probable enough, the answer is demanded.

    It reads the hidden state that the turn's first token is predicted from, and does not change it. As in adaptive
    computation (Graves 2016, section 2), a sigmoidal unit halts; here it is supervised.
    """

    needs = frozenset({"hidden"})

    def __init__(self, config: LearnedHaltConfig, width: int) -> None:
        super().__init__()
        self.config = config
        inner = config.hidden
        layers = [nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, 1)] if inner else [nn.Linear(width, 1)]
        self.head = nn.Sequential(nn.LayerNorm(width), *layers)

    @classmethod
    def tiny(cls) -> LearnedHaltConfig:
        """Return settings of a linear head."""
        return LearnedHaltConfig()

    @classmethod
    def variants(cls) -> dict[str, LearnedHaltConfig]:
        """Return settings of a head with a hidden layer."""
        return {"two_layers": LearnedHaltConfig(hidden=8, weight=0.5)}

    @torch.no_grad()
    def decide(self, state: LoopState) -> Decision:
        """Demand the answer where the head gives it enough probability."""
        if not state.look or state.hidden is None:
            return GO_ON
        found = self._logits(state.hidden).sigmoid().item()
        if not found >= self.config.threshold:
            return GO_ON
        wanted = self.config.threshold
        return Decision("answer", f"learned to halt here: probability {found:.3f}, at least {wanted:g}")

    def loss(self, hidden: Tensor, answered: Tensor) -> Tensor:
        """The binary cross-entropy in nats, summed over turns and weighted; see the contract."""
        logits = self._logits(hidden.detach())
        return self.config.weight * F.binary_cross_entropy_with_logits(logits, answered.to(logits), reduction="sum")

    def _logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [...], in float32 whatever the head computes in."""
        weight = next(self.head.parameters())
        logits: Tensor = self.head(hidden.to(weight)).squeeze(-1).float()
        return logits
