"""Optimizer `adamw`: AdamW whose weight decay leaves out biases, norms and embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from vilavt_components.common.adam import AdamSettings, group_by_decay
from vilavt_components.common.master_weights import Master, update_in_float32
from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.registry import optimizers
from vilavt_toolkit.settings import setting

_FUSED_DEVICES = ("cpu", "cuda")
"""Devices on which torch can update all parameters in one kernel."""


@dataclass(frozen=True)
class AdamWConfig(AdamSettings):
    """Settings of the `adamw` optimizer."""

    master: Master = setting(
        "float32",
        help="for weights in bfloat16, what collects steps that would round to nothing: the half of float32 "
        "that bfloat16 does not hold, stochastic rounding (two bytes a weight less), or none",
    )
    fused: bool | None = setting(
        None, help="update all parameters in one kernel (null: wherever torch can; false: torch's own choice of others)"
    )


@optimizers.register("adamw", AdamWConfig)
class AdamW(Optimizer):
    """torch's AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101) over two groups of parameters."""

    def __init__(self, config: AdamWConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> AdamWConfig:
        """Return settings with a large learning rate."""
        return AdamWConfig(lr=1e-2)

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build AdamW over a group with and a group without weight decay; raises BadConfig if nothing is trainable."""
        config, groups = self.config, group_by_decay(self.config, parameters)
        fused = config.fused
        if fused is None:
            fused = all(weight.device.type in _FUSED_DEVICES for group in groups for weight in group["params"])
        # None, not False: torch then updates many tensors at once on a GPU, and one after another with False.
        built = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None)
        # A fused step would divide the gradient by the loss scale itself, after the gradient was clipped. Without this
        # mark Lightning divides it before.
        built._step_supports_amp_scaling = False
        return update_in_float32(built, config.master)
