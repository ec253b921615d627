"""The keys of section `rl` that say how the policy is held to others: the one it started from, the one that sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vilavt_toolkit.settings import setting


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Settings by which the policy of an update is compared with others."""

    kl: float = setting(0.0, help="weight of the divergence from the initial weights (0: none)", minimum=0)
    kl_in: Literal["loss", "reward"] = setting(
        "loss", help="where the divergence counts: in the loss of every token, or in the reward of a rollout"
    )
    kl_estimator: Literal["k1", "k2", "k3"] | None = setting(
        None, help="estimate of the divergence: k2 or k3 in the loss, k1 in the reward (null: k3, or k1 in the reward)"
    )
    kl_limit: float | None = setting(
        None, help="largest divergence of a token, 10 in the paper's code (null: no limit)", minimum=0
    )
    kl_reference: Literal["auto", "copy", "cpu"] = setting(
        "auto",
        help="initial weights: a frozen copy on the device, or on the CPU between its uses; auto takes none where "
        "adapters alone are trained, which are switched off instead, and else the copy",
    )
    dynamic_sampling: bool = setting(
        False,
        help="ask other prompts in place of those whose rollouts all have equal rewards, at most max_resamples times, "
        "so that a step learns from prompts_per_step prompts (DAPO)",
    )
    mismatch: Literal["none", "truncate", "mask"] = setting(
        "none",
        help="weigh the loss by the ratio of probabilities between update and sampling, and where it exceeds "
        "mismatch_limit take the limit, or 0",
    )
    mismatch_level: Literal["token", "sequence"] = setting(
        "token", help="ratio of mismatch: of each token, or of a rollout's tokens together"
    )
    mismatch_limit: float = setting(2.0, help="largest ratio of mismatch, C in the literature", minimum=1)

    def __post_init__(self) -> None:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator k1 has no expected gradient in the loss. Write k2, k3, or kl_in: reward.")
        if self.kl_in == "reward" and self.kl_estimator in ("k2", "k3"):
            raise ValueError(
                f"kl_estimator {self.kl_estimator} in the reward does not pull towards the initial weights, since its "
                "gradient is not that of the divergence. Write k1, or kl_in: loss."
            )
