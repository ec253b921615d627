"""The optimizer 'my_part': stochastic gradient descent with momentum.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    train:
      optimizer: {name: my_part, lr: 0.01}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.registry import optimizers, setting


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    lr: float = setting(0.01, help="learning rate at its peak, the schedule scales it", minimum=0)
    momentum: float = setting(0.9, help="decay of the running mean of gradients", minimum=0, maximum=1)


@optimizers.register("my_part", MyPartConfig)
class MyPart(Optimizer):
    """Follow a running mean of the gradients."""

    def __init__(self, config: MyPartConfig) -> None:
        self.config = config

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.SGD:
        """Return the torch optimizer of the named parameters, those that are frozen left out."""
        trainable = [parameter for _, parameter in parameters if parameter.requires_grad]
        return torch.optim.SGD(trainable, lr=self.config.lr, momentum=self.config.momentum)

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig()
