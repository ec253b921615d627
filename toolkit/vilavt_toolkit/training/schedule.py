"""The learning rate over the steps, as a factor of the optimizer's own rate."""

from __future__ import annotations

import math

from vilavt_toolkit.config.schema import StageSection


def learning_rate_factor(section: StageSection, step: int, steps: int) -> float:
    """Return the factor at optimizer step `step` (0-based) of `steps`: linear warm-up, then the recipe's schedule.

    The linear and the cosine schedule start at 1 and would reach 0 at step `steps`, which is never taken.
    """
    # The first step takes 1 / warmup_steps of the rate, not 0: a step of rate 0 would learn nothing.
    if step < section.warmup_steps:
        return (step + 1) / section.warmup_steps
    done = (step - section.warmup_steps) / max(1, steps - section.warmup_steps)
    if section.schedule == "linear":
        return 1.0 - done
    if section.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0
