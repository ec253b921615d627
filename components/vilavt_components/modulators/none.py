"""Modulator `none`: the encoder does not see the inquiry."""

from __future__ import annotations

from vilavt_toolkit.contracts import BlockSpec, Modulator
from vilavt_toolkit.registry import modulators
from vilavt_toolkit.settings import NoSettings


@modulators.register("none")
class NoModulation(Modulator):
    """Changes nothing: y' = y. The baseline that other modulators are compared with.

    It has no sites and no context, so it runs at the speed of the plain encoder.
    """

    def __init__(self, config: NoSettings, block: BlockSpec, inquiry_width: int) -> None:
        super().__init__()

    @classmethod
    def tiny(cls) -> NoSettings:
        """Return the empty settings."""
        return NoSettings()
