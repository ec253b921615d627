"""Features as they are, for encoders that end in the language model's width: Qwen2.5-VL's tower merges into it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vilavt_toolkit.contracts import Grid, Projector
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.registry import projectors
from vilavt_toolkit.settings import NoSettings


@projectors.register("identity")
class IdentityProjector(Projector):
    """Changes nothing, and has no weights; raises BadConfig where the widths differ."""

    def __init__(self, config: NoSettings, in_width: int, out_width: int) -> None:
        super().__init__()
        if in_width != out_width:
            raise BadConfig(
                f"Projector 'identity' hands on features as they are, but the encoder's are {in_width} wide and the "
                f"language model's {out_width}; choose 'mlp', or parts of one width."
            )

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return its settings: it has none."""
        return NoSettings()

    def forward(self, features: Tensor, sizes: Sequence[Grid]) -> Tensor:
        """The features themselves; [F, D] -> [F, D]."""
        return features
