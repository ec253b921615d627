"""Optimizers: named parameters to a torch optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import nn

from vilavt_toolkit.contracts.component import Component


class Optimizer(Component, ABC):
    """Builds a torch optimizer. `__init__(config)`."""

    @abstractmethod
    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Return the optimizer of these named trainable parameters."""
