"""The modulator 'my_part': the inquiry gates the output of the MLP.

Use it in a recipe that stands beside this file:

    plugins: [./my_part.py]
    model:
      modulator: {name: my_part, hidden_dim: 64}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vilavt_toolkit.contracts import BlockSpec, Inquiry, Modulator
from vilavt_toolkit.registry import modulators, setting


@dataclass(frozen=True, kw_only=True)
class MyPartConfig:
    """The keys that a recipe may set, each with its type, default and help."""

    hidden_dim: int = setting(64, help="width between the inquiry and the gate", minimum=1)


@modulators.register("my_part", MyPartConfig)
class MyPart(Modulator):
    """Scale the output of the MLP under the inquiry, channel by channel."""

    # The sites that `modulate` is called at. docs/contracts.md lists them all.
    sites = frozenset({"mlp"})
    # What a token attends over in a modulated block: its "region", or its whole inquiry "group".
    span = "region"

    def __init__(self, config: MyPartConfig, block: BlockSpec, inquiry_width: int) -> None:
        """Build the modulator of one block; each modulated block gets an instance of its own."""
        super().__init__()
        last = nn.Linear(config.hidden_dim, block.sites["mlp"])
        # Zero weights make the gate 0: a new modulator leaves the encoder exactly as it was.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.gate = nn.Sequential(nn.Linear(inquiry_width, config.hidden_dim), nn.SiLU(), last)

    @classmethod
    def unsupported_reason(cls, config: Any, block: BlockSpec) -> str:
        """Return why this cannot work on a block; `vilavt check` shows it before any weight is loaded."""
        return "" if "mlp" in block.sites else "it gates the MLP, and the block has no site 'mlp'."

    def modulate(self, site: str, x: Tensor, y: Tensor, inquiry: Inquiry) -> Tensor:
        """Change the output y of the part at `site`; [S, D] -> [S, D].

        `inquiry.pooled` [G, D_inquiry] has one row per inquiry, and `inquiry.to_tokens` gives every token its
        inquiry's row. The engine restores y for tokens whose inquiry is empty.
        """
        # Not y * (1 + gate): next to the 1, bfloat16 has no room for a small gate.
        return y + y * inquiry.to_tokens(self.gate(inquiry.pooled)).to(y.dtype)

    @classmethod
    def tiny(cls) -> MyPartConfig:
        """Return the settings of a small instance, which the contract tests build."""
        return MyPartConfig(hidden_dim=4)
