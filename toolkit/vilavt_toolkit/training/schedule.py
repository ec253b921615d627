"""The learning rate over the steps, as a factor of the optimizer's own."""

from __future__ import annotations

import math

from vilavt_toolkit.schema import TrainSection


def rate_factor(section: TrainSection, step: int) -> float:
    """Factor at optimizer step `step` (0-based): linear warm-up, then the schedule down to zero after the last step."""
    if step < section.warmup_steps:
        return (step + 1) / section.warmup_steps
    done = (step - section.warmup_steps) / max(1, section.steps - section.warmup_steps)
    if section.schedule == "linear":
        return 1.0 - done
    if section.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0
