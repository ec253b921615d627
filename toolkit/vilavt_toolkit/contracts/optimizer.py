"""Optimizers: named parameters to a torch optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import nn

from vilavt_toolkit.contracts.component import Component

DECAYS = "decays"
"""Key of an optimizer's group that says if its weights take a weight decay; a recipe's `rates` may set another one."""


class Optimizer(Component, ABC):
    """Builds a torch optimizer. `__init__(config)`.

    Training splits its groups where a recipe sets a learning rate or weight decay for single weights, and takes the
    decay off norms and biases.
    """

    @abstractmethod
    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Return the optimizer of these named trainable parameters."""
