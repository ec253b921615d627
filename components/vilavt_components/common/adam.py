"""Settings and groups that all kinds of Adam with decoupled weight decay share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vilavt_toolkit.contracts import DECAYS
from vilavt_toolkit.errors import BadConfig
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
class AdamSettings:
    """Settings of Adam with decoupled weight decay."""

    lr: float = setting(1e-4, help="peak learning rate", minimum=0)
    betas: tuple[float, float] = setting(
        (0.9, 0.999), help="decay rates of the running means of gradient and squared gradient", minimum=0, maximum=1
    )
    eps: float = setting(1e-8, help="number added to the square root of the second mean", minimum=0)
    weight_decay: float = setting(0.01, help="decoupled weight decay of matrices", minimum=0)
    no_decay: tuple[str, ...] = setting(
        _EMBEDDINGS, help="parts of dotted parameter names without weight decay, besides biases and norms"
    )


def group_by_decay(settings: AdamSettings, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Return a group with and a group without weight decay; raises BadConfig if nothing is trainable.

    Matrices decay. Biases, norm scales and embeddings do not: decay would pull a norm's scale towards 0, and embeddings
    of rare tokens towards 0 between the steps that use them.
    """
    trainable = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise BadConfig("Nothing is trainable, since every part is frozen. Take one out of `train.freeze`.")

    def is_decayed(name: str, parameter: nn.Parameter) -> bool:
        # Biases and norm scales are the parameters of one dimension, whatever they are called.
        return parameter.dim() > 1 and not set(settings.no_decay) & set(name.split("."))

    # torch takes the weight decay per group, so the parameters are split by it.
    groups = []
    for wanted, decay in ((True, settings.weight_decay), (False, 0.0)):
        if chosen := [parameter for name, parameter in trainable if is_decayed(name, parameter) is wanted]:
            groups.append({"params": chosen, "weight_decay": decay, DECAYS: wanted})
    return groups
