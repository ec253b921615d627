"""Optimizer `adamw`: AdamW whose weight decay leaves out biases, norms and embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from vilavt_toolkit.contracts import DECAYS, Optimizer
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.registry import optimizers
from vilavt_toolkit.settings import setting

# Whole parts of dotted parameter names, as the encoders and language models here spell them.
_EMBEDDINGS = (
    "pos_embed",
    "cls_token",
    "reg_token",
    "embed_tokens",
    "wte",
    "wpe",
    "embedding",
    "embeddings",
    "word_embeddings",
    "position_embeddings",
)


@dataclass(frozen=True)
class AdamWConfig:
    """Settings of the `adamw` optimizer."""

    lr: float = setting(1e-4, help="peak learning rate", minimum=0)
    betas: tuple[float, float] = setting(
        (0.9, 0.999), help="decay rates of the running means of gradient and squared gradient", minimum=0, maximum=1
    )
    eps: float = setting(1e-8, help="number added to the square root of the second mean", minimum=0)
    weight_decay: float = setting(0.01, help="decoupled weight decay of matrices", minimum=0)
    no_decay: tuple[str, ...] = setting(
        _EMBEDDINGS, help="parts of dotted parameter names without weight decay, besides biases and norms"
    )
    fused: bool = setting(
        False, help="update all parameters in one kernel (faster, but not for 16-mixed with gradient clipping)"
    )


@optimizers.register("adamw", AdamWConfig)
class AdamW(Optimizer):
    """torch's AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101) over two groups of parameters.

    Matrices decay. Biases, norm scales and embeddings do not: decay would pull a norm's scale towards 0, and embeddings
    of rare tokens towards 0 between the steps that use them.
    """

    def __init__(self, config: AdamWConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> AdamWConfig:
        """Return settings with a large learning rate."""
        return AdamWConfig(lr=1e-2)

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
        """Build AdamW over a group with and a group without weight decay; raises BadConfig if nothing is trainable."""
        trainable = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        if not trainable:
            raise BadConfig("Nothing is trainable, since every part is frozen. Take one out of `train.freeze`.")
        decayed = [(name, p) for name, p in trainable if self._is_decayed(name, p)]
        others = [(name, p) for name, p in trainable if not self._is_decayed(name, p)]
        config = self.config
        # torch takes the weight decay per group, so the parameters are split by it.
        groups = [
            {"params": group, "weight_decay": decay, DECAYS: group is decayed}
            for group, decay in ((decayed, config.weight_decay), (others, 0.0))
            if group
        ]
        # None, not False: torch then updates many tensors at once on a GPU, and one after another with False.
        fused = config.fused or None
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)

    def _is_decayed(self, name: str, parameter: nn.Parameter) -> bool:
        # Biases and norm scales are the parameters of one dimension, whatever they are called.
        return parameter.dim() > 1 and not set(self.config.no_decay) & set(name.split("."))
