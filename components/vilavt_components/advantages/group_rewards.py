"""What all group advantages share: the rewards of a prompt group about their mean."""

from __future__ import annotations

from torch import Tensor

from vilavt_toolkit.errors import UsageError


def centred(rewards: Tensor) -> Tensor:
    """Rewards minus their group's mean; [P, G] -> [P, G]. Raises UsageError for groups of one."""
    if rewards.shape[1] < 2:
        raise UsageError("a prompt group of one rollout has nothing to be better than; set rl.group to 2 or more.")
    return rewards - rewards.mean(1, keepdim=True)
