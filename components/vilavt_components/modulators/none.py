"""No modulation: the encoder does not see the inquiry."""

from __future__ import annotations

from vilavt_toolkit.contracts import BlockSpec, Modulator
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.settings import NoSettings


@modulators.register("none")
class NoModulation(Modulator):
    """Leaves every block as it is; what the other modulators are compared with."""

    def __init__(self, config: NoSettings, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return its settings, of which there are none."""
        return NoSettings()
