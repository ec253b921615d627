"""The learning rate over the steps, as a factor of the optimizer's own."""

from __future__ import annotations

import math

from vilavt_toolkit.config.schema import StageSection


def rate_factor(section: StageSection, step: int, steps: int) -> float:
    """Factor at optimizer step `step` (0-based) of `steps`: linear warm-up, then the schedule down to zero."""
    if step < section.warmup_steps:
        return (step + 1) / section.warmup_steps
    done = (step - section.warmup_steps) / max(1, steps - section.warmup_steps)
    if section.schedule == "linear":
        return 1.0 - done
    if section.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0
