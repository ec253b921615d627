"""The projector 'my_part': normalised features, then one linear layer.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    model:
      projector: {name: my_part, bias: false}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vilavt_toolkit.contracts import Grid, Projector
from vilavt_toolkit.registry import projectors, setting


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    bias: bool = setting(True, help="add a bias to the linear layer")


@projectors.register("my_part", MyPartConfig)
class MyPart(Projector):
    """Normalise every feature, and map it to the language model's width."""

    def __init__(self, config: MyPartConfig, in_width: int, out_width: int) -> None:
        """Build the projector from the encoder's output width to the language model's width."""
        super().__init__()
        # Encoders differ in the scale of their features. The norm gives the language model the same scale from all.
        self.norm = nn.LayerNorm(in_width)
        self.linear = nn.Linear(in_width, out_width, bias=config.bias)

    def forward(self, features: Tensor, sizes: Sequence[Grid]) -> Tensor:
        """Project the packed features of regions with grids `sizes`; [F, D_in] -> [F, D_out].

        A projector that merges features also overrides `output_grid`, from which everything else is counted.
        """
        projected: Tensor = self.linear(self.norm(features))
        return projected

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig()
