"""Projector `identity`: features unchanged, for encoders that already end in the language model's width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vilavt_toolkit.contracts import Grid, Projector
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.registry import projectors
from vilavt_toolkit.settings import NoSettings


@projectors.register("identity")
class IdentityProjector(Projector):
    """Hands features on unchanged, without weights, as for Qwen2.5-VL, whose tower ends in its merger.

    Raises BadConfig if the widths differ.
    """

    def __init__(self, config: NoSettings, in_width: int, out_width: int) -> None:
        super().__init__()
        if in_width != out_width:
            raise BadConfig(
                f"Projector 'identity' hands features on unchanged, but the encoder's are {in_width} wide and the "
                f"language model's {out_width}. Choose projector 'mlp'."
            )

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return the empty settings."""
        return NoSettings()

    def forward(self, features: Tensor, sizes: Sequence[Grid]) -> Tensor:
        """Return the features themselves; [F, D] -> [F, D]."""
        return features
