"""Optimizer `adamw_8bit`: AdamW whose moments take one byte a number, by bitsandbytes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vilavt_components.common.adam import AdamSettings, group_by_decay
from vilavt_components.common.master_weights import Master, update_in_float32
from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import BadConfig, MissingPackage
from vilavt_toolkit.registry import optimizers
from vilavt_toolkit.settings import setting

_QUANTISED = "__bnb_optimizer_quant_state__"
"""Key under which bitsandbytes puts codes and scales apart from the rest of a weight's state."""
_CODES = frozenset({"state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2"})


@dataclass(frozen=True)
class AdamW8bitConfig(AdamSettings):
    """Settings of the `adamw_8bit` optimizer."""

    master: Master = setting(
        "float32",
        help="for weights in bfloat16, what collects steps that would round to nothing: the half of float32 "
        "that bfloat16 does not hold, stochastic rounding (two bytes a weight less), or none",
    )


@optimizers.register("adamw_8bit", AdamW8bitConfig)
class AdamW8bit(Optimizer):
    """AdamW with block-wise quantised moments (Dettmers et al., 2021, arXiv 2110.02861).

    The moments of weights of fewer than 4,096 numbers stay in float32.
    """

    def __init__(self, config: AdamW8bitConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> AdamW8bitConfig:
        """Return settings with a large learning rate."""
        return AdamW8bitConfig(lr=1e-2)

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Build the optimizer; raises MissingPackage without bitsandbytes, and BadConfig if nothing is trainable."""
        groups = group_by_decay(self.config, parameters)
        if any(type(weight.data).__name__ == "DTensor" for group in groups for weight in group["params"]):
            raise BadConfig("optimizer adamw_8bit takes no sharded weights. Choose optimizer adamw.")
        config, build = self.config, _optimizer_class()
        built: torch.optim.Optimizer = build(groups, lr=config.lr, betas=config.betas, eps=config.eps)
        return update_in_float32(built, config.master)


@functools.cache
def _optimizer_class() -> Any:
    """Return bitsandbytes' class with a state that checkpoints can hold; imported here, since that takes seconds."""
    try:
        from bitsandbytes.optim import AdamW8bit as Library
    except ImportError as error:
        raise MissingPackage(
            "optimizer adamw_8bit needs the package bitsandbytes. Install it: pip install 'vilavt-toolkit[optim8bit]'"
        ) from error

    class FlatAdamW8bit(Library):  # type: ignore[misc]
        """AdamW in 8 bits whose state is tensors and numbers by name, for each weight."""

        def state_dict(self) -> dict[str, Any]:
            found: dict[str, Any] = super().state_dict()
            return {**found, "state": {key: _flatten(values) for key, values in found["state"].items()}}

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            state = {key: _nest(values) for key, values in state_dict["state"].items()}
            super().load_state_dict({**state_dict, "state": state}, move_to_device)

    return FlatAdamW8bit


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in values.items() if key != _QUANTISED}
    return rest | dict(values.get(_QUANTISED, {}))


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    # Else codes would be cast to the type of their weight.
    codes = {key: value for key, value in values.items() if key in _CODES}
    return {key: value for key, value in values.items() if key not in _CODES} | {_QUANTISED: codes}
