"""Optimizer `apex_fused_adam`: NVIDIA apex's FusedAdam, with the state of `adamw`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vilavt_components.common.adam import AdamSettings, group_by_decay
from vilavt_components.common.apex import require_apex
from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.registry import optimizers


@dataclass(frozen=True)
class ApexFusedAdamConfig(AdamSettings):
    """Settings of the `apex_fused_adam` optimizer."""


@optimizers.register("apex_fused_adam", ApexFusedAdamConfig)
class ApexFusedAdam(Optimizer):
    """apex's AdamW, which updates all weights of a group in one launch. It needs apex's CUDA extensions.

    Its state loads into `adamw` and back, so that a run may be resumed with the other one.
    """

    def __init__(self, config: ApexFusedAdamConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> ApexFusedAdamConfig:
        """Return settings with a large learning rate."""
        return ApexFusedAdamConfig(lr=1e-2)

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer; raises MissingPackage without apex's extensions.

        Raises BadConfig for no weights, and for weights in bfloat16.
        """
        require_apex("optimizer apex_fused_adam", "optimizer adamw")
        config, groups = self.config, group_by_decay(self.config, parameters)
        refuse_bfloat16([weight for group in groups for weight in group["params"]])
        built: torch.optim.Optimizer = _optimizer_class()(
            groups, lr=config.lr, betas=config.betas, eps=config.eps, adam_w_mode=True
        )
        return built


def refuse_bfloat16(weights: Iterable[nn.Parameter]) -> None:
    """Raise BadConfig for weights in bfloat16, in which most of FusedAdam's steps would round to nothing.

    It counts steps by group, and so cannot be given copies in float32 a few at a time, as `update_in_float32` does.
    """
    if any(weight.dtype == torch.bfloat16 for weight in weights):
        raise BadConfig(
            "optimizer apex_fused_adam would round most steps of weights in bfloat16 to nothing. Choose optimizer "
            "adamw, which collects them, or train.precision=bf16-mixed."
        )


@functools.cache
def _optimizer_class() -> Any:
    """Return apex's class with the state of `adamw`."""
    from apex.optimizers import FusedAdam

    class InterchangeableFusedAdam(FusedAdam):  # type: ignore[misc]
        """FusedAdam whose state dict is that of torch's AdamW."""

        def state_dict(self) -> dict[str, Any]:
            return to_adamw_state(super().state_dict())

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(from_adamw_state(state_dict))

    return InterchangeableFusedAdam


def to_adamw_state(found: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a state dict of FusedAdam, which counts steps by group, into one of AdamW, which does by weight."""
    state, groups = {key: dict(values) for key, values in found["state"].items()}, []
    for group in found["param_groups"]:
        for key in (key for key in group["params"] if key in state):
            state[key]["step"] = torch.tensor(float(group.get("step", 0)))
        groups.append({name: value for name, value in group.items() if name != "step"})
    return {**found, "state": state, "param_groups": groups}


def from_adamw_state(found: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a state dict of AdamW into one of FusedAdam; of a group's counts the largest counts."""
    state, groups = {key: dict(values) for key, values in found["state"].items()}, []
    for group in found["param_groups"]:
        counts = [int(state[key].pop("step")) for key in group["params"] if "step" in state.get(key, {})]
        groups.append({**group, **({"step": max(counts)} if counts else {})})
    return {**found, "state": state, "param_groups": groups}
