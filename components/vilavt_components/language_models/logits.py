"""Steps after the head of a language model: scaling by the family, and tokens that cannot be written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scale_logits(logits: Tensor, settings: Any) -> Tensor:
    """Scale logits [..., V] of a head as its family does; `settings` are transformers' of the text model.

    Granite divides by `logits_scaling`, Cohere multiplies by `logit_scale`, and Gemma 2 caps at
    `final_logit_softcapping` by tanh. A trial finds the families that do just this (`agreement.find_logit_scaling`).
    """
    if (divisor := getattr(settings, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(settings, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(settings, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


def rule_out_in_place(logits: Tensor, placeholder: int, size: int) -> Tensor:
    """Set the logits [..., V] of the placeholder, and of rows from `size` on, to -inf; differentiable."""
    ruled_out: Tensor = _RuleOut.apply(logits, placeholder, size)
    return ruled_out


class _RuleOut(torch.autograd.Function):
    """Sets logits to -inf in place. Assigning to slices would copy the whole gradient three times."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, placeholder: int, size: int) -> Tensor:
        ctx.ruled_out = placeholder, size
        logits[..., placeholder] = float("-inf")
        logits[..., size:] = float("-inf")
        ctx.mark_dirty(logits)
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        placeholder, size = ctx.ruled_out
        gradient = gradient.clone()
        gradient[..., placeholder] = 0.0
        gradient[..., size:] = 0.0
        return gradient, None, None
