"""Stopping policy `converged`: stop looking once another look changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch.nn import functional as F

from vilavt_toolkit.contracts import GO_ON, Decision, LoopState, StoppingPolicy
from vilavt_toolkit.registry import stopping_policies
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class ConvergedConfig:
    """Settings of stopping policy `converged`."""

    signal: Literal["features", "answer"] = setting(
        "features",
        help="signal that must stop changing, the mean feature of each look or the probed answer",
        formerly=("what",),
    )
    threshold: float = setting(
        0.95, help="least cosine between the mean features of one look and the next", minimum=-1, maximum=1
    )
    patience: int = setting(1, help="number of looks in a row without a change", minimum=1)


@stopping_policies.register("converged", ConvergedConfig)
class Converged(StoppingPolicy):
    """Demands the answer when the features of each look, or the probed answers, stop changing from look to look."""

    def __init__(self, config: ConvergedConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.needs = frozenset({"features"}) if config.signal == "features" else frozenset({"probe"})

    @classmethod
    def tiny(cls) -> ConvergedConfig:
        """Return the default settings, which compare features."""
        return ConvergedConfig()

    @classmethod
    def variants(cls) -> dict[str, ConvergedConfig]:
        """Return settings that compare answers."""
        return {"answer": ConvergedConfig(signal="answer", patience=2)}

    def decide(self, state: LoopState) -> Decision:
        """Demand the answer if the last looks were alike."""
        if not state.before_turn:
            return GO_ON
        return self._compare_features(state) if self.config.signal == "features" else self._compare_answers(state)

    def _compare_features(self, state: LoopState) -> Decision:
        # One more than `patience`: n looks make n - 1 comparisons.
        last = state.features[-self.config.patience - 1 :]
        if len(last) <= self.config.patience:
            return GO_ON
        cosines = [F.cosine_similarity(a.float(), b.float(), dim=0).item() for a, b in pairwise(last)]
        # Not `any(cosine < threshold)`: that is False for NaN, so features of NaN would count as converged.
        if not all(cosine >= self.config.threshold for cosine in cosines):
            return GO_ON
        least, wanted = min(cosines), self.config.threshold
        return Decision("answer", f"the features stopped changing: their cosine is {least:.3f}, at least {wanted:g}")

    def _compare_answers(self, state: LoopState) -> Decision:
        # n looks make n - 1 comparisons.
        looks = self.config.patience + 1
        answers = [probe.answer for probe in state.probes[-looks:]]
        if len(answers) < looks or answers[-1] is None or any(answer != answers[-1] for answer in answers):
            return GO_ON
        return Decision("answer", f"the probed answer was the same at {looks} looks in a row")
