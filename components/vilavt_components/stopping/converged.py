"""Stopping policy `converged`: looking again changes nothing any more."""

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

    what: Literal["features", "answer"] = setting(
        "features", help="what no longer changes: the mean feature of what was encoded, or the probed answer"
    )
    threshold: float = setting(
        0.95, help="least cosine between the mean features of one look and the next", minimum=-1, maximum=1
    )
    patience: int = setting(1, help="how many times in a row it has not changed", minimum=1)


@stopping_policies.register("converged", ConvergedConfig)
class Converged(StoppingPolicy):
    """The answer is demanded when the re-encoded features, or the probed answers, stop changing from look to look."""

    def __init__(self, config: ConvergedConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.needs = frozenset({"features"}) if config.what == "features" else frozenset({"probe"})

    @classmethod
    def tiny(cls) -> ConvergedConfig:
        """Return the defaults, of features."""
        return ConvergedConfig()

    @classmethod
    def variants(cls) -> dict[str, ConvergedConfig]:
        """Return settings that compare answers."""
        return {"answer": ConvergedConfig(what="answer", patience=2)}

    def decide(self, state: LoopState) -> Decision:
        """Demand the answer where the last looks were alike."""
        if not state.look:
            return GO_ON
        return self._features(state) if self.config.what == "features" else self._answer(state)

    def _features(self, state: LoopState) -> Decision:
        last = state.features[-self.config.patience - 1 :]
        if len(last) <= self.config.patience:
            return GO_ON
        cosines = [F.cosine_similarity(a.float(), b.float(), dim=0).item() for a, b in pairwise(last)]
        # No number is at least anything, so features that are none never converge.
        if not all(cosine >= self.config.threshold for cosine in cosines):
            return GO_ON
        least, wanted = min(cosines), self.config.threshold
        return Decision("answer", f"the features stopped changing: their cosine is {least:.3f}, at least {wanted:g}")

    def _answer(self, state: LoopState) -> Decision:
        looks = self.config.patience + 1
        answers = [probe.answer for probe in state.probes[-looks:]]
        if len(answers) < looks or answers[-1] is None or any(answer != answers[-1] for answer in answers):
            return GO_ON
        return Decision("answer", f"the probed answer was the same at {looks} looks in a row")
