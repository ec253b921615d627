"""AdamW with weight decay where it belongs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from vilavt_toolkit.contracts import Optimizer
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.registry import optimizers
from vilavt_toolkit.settings import setting

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

    lr: float = setting(1e-4, help="learning rate at its peak", minimum=0)
    betas: tuple[float, float] = setting((0.9, 0.999), help="decay of the two running means", minimum=0, maximum=1)
    eps: float = setting(1e-8, help="added to the root of the second mean", minimum=0)
    weight_decay: float = setting(0.01, help="decoupled weight decay of matrices", minimum=0)
    no_decay: tuple[str, ...] = setting(
        _EMBEDDINGS, help="parts of parameter names without weight decay, beside biases and norms"
    )
    fused: bool = setting(False, help="one kernel for all parameters; faster, not with 16-mixed and clipping")


@optimizers.register("adamw", AdamWConfig)
class AdamW(Optimizer):
    """torch's AdamW; biases, norms and embeddings do not decay."""

    def __init__(self, config: AdamWConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> AdamWConfig:
        """Return settings with a large learning rate."""
        return AdamWConfig(lr=1e-2)

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
        """Return AdamW over two groups, with and without decay; raises BadConfig if nothing is trainable."""
        trainable = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        if not trainable:
            raise BadConfig("Nothing is trainable: every part is frozen; take one out of `train.freeze`.")
        decayed = [(name, p) for name, p in trainable if self._decays(name, p)]
        others = [(name, p) for name, p in trainable if not self._decays(name, p)]
        config = self.config
        groups = [
            {"params": group, "weight_decay": decay}
            for group, decay in ((decayed, config.weight_decay), (others, 0.0))
            if group
        ]
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=config.fused)

    def _decays(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() > 1 and not set(self.config.no_decay) & set(name.split("."))
