"""Steps that advantages share: subtracting the mean reward of a prompt group, and scaling over a step."""

from __future__ import annotations

from torch import Tensor

from vilavt_toolkit.errors import UsageError


def subtract_group_mean(rewards: Tensor) -> Tensor:
    """Subtract the mean of each prompt group; [P, G] -> [P, G]. Raises UsageError for groups of one rollout."""
    # A group of one would silently have advantage 0 here, and NaN from the standard deviation that `grpo` divides by.
    if rewards.shape[1] < 2:
        raise UsageError("a prompt group of one rollout has no others to compare with. Set rl.group_size to 2 or more.")
    return rewards - rewards.mean(1, keepdim=True)


def normalise_step(values: Tensor, eps: float) -> Tensor:
    """Subtract the mean of a step and divide by its standard deviation plus `eps`; [P, G] -> [P, G]."""
    # As in `grpo`, torch's std divides by the number of values less one.
    return (values - values.mean()) / (values.std() + eps)
