"""Stopping policy `learned_halt`: a small head on the hidden state predicts when to answer."""

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
    hidden_dim: int = setting(
        0, help="width of a hidden layer of the head (0 for a linear head)", minimum=0, formerly=("hidden",)
    )
    weight: float = setting(1.0, help="weight of its loss in the training loss", minimum=0)


@stopping_policies.register("learned_halt", LearnedHaltConfig)
class LearnedHalt(StoppingPolicy):
    """A head that learns from traces if the next turn answers, and demands the answer once that is probable enough.

    It reads the hidden state [D] that the turn's first token is predicted from. Its loss does not train the language
    model. A sigmoidal halting unit as in adaptive computation time (Graves, 2016, arXiv 1603.08983), but supervised.
    """

    needs = frozenset({"hidden"})

    def __init__(self, config: LearnedHaltConfig, width: int) -> None:
        super().__init__()
        self.config = config
        inner = config.hidden_dim
        layers = [nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, 1)] if inner else [nn.Linear(width, 1)]
        # LayerNorm first: the scale of hidden states differs between language models by orders of magnitude.
        self.head = nn.Sequential(nn.LayerNorm(width), *layers)

    @classmethod
    def tiny(cls) -> LearnedHaltConfig:
        """Return settings of a linear head."""
        return LearnedHaltConfig()

    @classmethod
    def variants(cls) -> dict[str, LearnedHaltConfig]:
        """Return settings of a head with a hidden layer."""
        return {"two_layers": LearnedHaltConfig(hidden_dim=8, weight=0.5)}

    @torch.no_grad()
    def decide(self, state: LoopState) -> Decision:
        """Demand the answer if the head gives it enough probability."""
        if not state.before_turn or state.hidden is None:
            return GO_ON
        found = self._halt_logits(state.hidden).sigmoid().item()
        # Not `found < threshold`: that is False for NaN, which would then halt.
        if not found >= self.config.threshold:
            return GO_ON
        wanted = self.config.threshold
        return Decision("answer", f"learned to halt here: probability {found:.3f}, at least {wanted:g}")

    def loss(self, hidden: Tensor, answered: Tensor) -> Tensor:
        """Return the binary cross-entropy in nats, summed over turns and weighted; see the contract."""
        # Detached: halting is read off the model's states, it must not bend them.
        logits = self._halt_logits(hidden.detach())
        return self.config.weight * F.binary_cross_entropy_with_logits(logits, answered.to(logits), reduction="sum")

    def _halt_logits(self, hidden: Tensor) -> Tensor:
        """Return the logit of answering next, in float32 whatever the head computes in; [..., D] -> [...]."""
        # In float32 from here: the threshold is compared with a probability that bfloat16 rounds to 1/256.
        weight = next(self.head.parameters())
        logits: Tensor = self.head(hidden.to(weight)).squeeze(-1).float()
        return logits
