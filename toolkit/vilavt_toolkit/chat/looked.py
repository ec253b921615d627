"""The regions of a dialogue as people look at them."""

from __future__ import annotations

from collections.abc import Iterable

from vilavt_toolkit.dialogue.session import Session
from vilavt_toolkit.report.trace import TraceRegion


def looked_at(session: Session, numbers: Iterable[int]) -> tuple[TraceRegion, ...]:
    """Regions that were zoomed into, by number, with their crops; first views are left out."""
    found = []
    for number in numbers:
        placed = session.trajectory.regions[number]
        if placed.box is None:
            continue
        source = session.sources[placed.source]
        found.append(TraceRegion(number, placed.source, source, placed.box, source.crop(placed.box).data))
    return tuple(found)
