"""Tool calls: read from and written as JSON, resolved to regions of the sources, and prepared to be shown.

The texts of both errors are feedback that the model reads in its dialogue. Changing them changes what it generates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vilavt_toolkit.contracts import (
    Box,
    InquiryTokens,
    Region,
    RegionCall,
    ShownAs,
    Slot,
    Source,
    ToolCall,
    Trajectory,
    View,
    position_in_source,
)
from vilavt_toolkit.utils.json_objects import RepeatedKey, load_unambiguous
from vilavt_toolkit.vision.boxes import BoxError, units_per_axis

if TYPE_CHECKING:
    from vilavt_toolkit.models.model import VisualChatModel


class CallFormatError(Exception):
    """Raised for a tool call that is not well-formed. Its text is feedback for the model."""


class CallError(Exception):
    """Raised for a well-formed tool call that cannot be carried out. Its text is feedback for the model."""


def write_call(call: ToolCall) -> str:
    """Return a call as JSON on one line."""
    # The keys of a box are its source's (`bbox_2d` for images), so they stand beside the index.
    regions = [{"index": region.index, **region.box} for region in call.regions]
    return json.dumps({"region": regions, "query": call.inquiry}, ensure_ascii=False)


def read_call(body: str, max_regions: int, blank_inquiries: bool = True) -> ToolCall:
    """Read a call; the inverse of `write_call`. Raises CallFormatError, also for a blank query if none is allowed."""
    try:
        call = load_unambiguous(body)
        # Python reads NaN, Infinity and lone surrogates, which no file or tokenizer accepts.
        json.dumps(call, ensure_ascii=False, allow_nan=False).encode()
    except RepeatedKey:
        # A model cannot have meant both values.
        raise CallFormatError("The tool call has the same key twice in one object. Write each key once.") from None
    except (ValueError, RecursionError):
        raise CallFormatError("The tool call is not valid JSON.") from None
    if not isinstance(call, dict) or set(call) != {"region", "query"}:
        raise CallFormatError('The tool call must be an object with the keys "region" and "query".')
    regions, inquiry = call["region"], call["query"]
    if not isinstance(inquiry, str):
        raise CallFormatError('"query" must be a text.')
    if not blank_inquiries and not inquiry.strip():
        raise CallFormatError('"query" is empty. Say in words what you want to know.')
    if not isinstance(regions, list) or not 1 <= len(regions) <= max_regions:
        raise CallFormatError(f'"region" must be a list of 1 to {max_regions} regions.')
    return ToolCall(tuple(_read_region(number, region) for number, region in enumerate(regions)), inquiry)


def _read_region(number: int, region: Any) -> RegionCall:
    """Read region `number` of a call. Its box is not checked here: only its source knows what a box is."""
    if not isinstance(region, dict) or "index" not in region:
        raise CallFormatError(f'Region {number} must be an object with an "index" and a box.')
    index = region["index"]
    # JSON true is an int to Python.
    if isinstance(index, bool) or not isinstance(index, int):
        raise CallFormatError(f'"index" of region {number} must be a whole number.')
    return RegionCall(index, {key: value for key, value in region.items() if key != "index"})


class PreparedRegion(NamedTuple):
    """A region that is cut and prepared for the encoder, but not shown yet."""

    source_index: int
    region: Region
    view: View


@dataclass(frozen=True)
class PreparedCall:
    """A tool call that is ready to be shown: its regions are prepared, its prompt is written."""

    regions: tuple[PreparedRegion, ...]
    inquiry: InquiryTokens
    pieces: tuple[str | Slot, ...]
    """The user turn that shows its regions."""
    demanding: tuple[str | Slot, ...]
    """The same turn when it also demands the answer."""

    @property
    def views(self) -> list[View]:
        """The views of its regions, in order."""
        return [region.view for region in self.regions]


class ParentRegion(NamedTuple):
    """A shown region that boxes of a tool call are relative to."""

    source_index: int
    source: Source
    within: Box
    """Its own box in the source's coordinates."""
    units: int | tuple[int, ...]
    """Box units along each of its sides."""
    position: tuple[float, ...]
    """Its edges as fractions of the source, from which those of regions named in it are computed."""
    shown: ShownAs
    """`ShownAs` of regions that are named in it; without a scale if the encoder gives no extent."""


def find_parent(
    model: VisualChatModel, sources: Sequence[Source], trajectory: Trajectory, views: Sequence[View], index: int
) -> ParentRegion:
    """Return the shown region with this index, as one that boxes are relative to."""
    shown = trajectory.regions[index]
    source = sources[shown.source]
    within = shown.to_region(source).extent
    extent = model.vision.backbone.extent(views[index])
    position = shown.shown.position or position_in_source(source, within)
    named_in = ShownAs.from_parent_view(source, position, extent[0]) if extent else ShownAs()
    return ParentRegion(shown.source, source, within, model.dialogue.box_units(extent), position, named_in)


def check_index(number: int, index: int, shown_count: int) -> None:
    """Raise CallError if region `number` of a call names an index that was never shown."""
    if not 0 <= index < shown_count:
        known = f"0 to {shown_count - 1}" if shown_count else "none, since no image was shown"
        # The model may write an index of thousands of digits, and feedback must stay short.
        named = index if abs(index) < 10**9 else "with so many figures"
        raise CallError(f'"index" {named} of region {number} does not exist; there are {known}.')


def resolve_region(number: int, call: RegionCall, parent: ParentRegion, max_pixels: int | None) -> Region:
    """Return the region of the source that region `number` of a call names; raises CallError."""
    try:
        box = parent.source.read_box(call.box, parent.within, parent.units)
        shown = replace(parent.shown, position=_nested_position(call, parent, box))
        return Region(parent.source, box, shown=shown, max_pixels=max_pixels)
    except BoxError as error:
        raise CallError(f"Region {number}: {error}") from None


def _nested_position(call: RegionCall, parent: ParentRegion, box: Box) -> tuple[float, ...]:
    """Return the edges of a region named in `parent` as fractions of the source, or () if they follow from its `box`.

    In the order of operations of the paper's code, whose sizes are cut to whole pixels afterwards. Fractions computed
    from the box differ from these in their last digits.
    """
    axes, numbers = len(parent.position) // 2, call.box.get(parent.source.box_key)
    # A source of one's own may write boxes in another way than two corners in units of the region.
    if not isinstance(numbers, list | tuple) or len(numbers) != len(parent.position):
        return ()
    if not all(isinstance(number, int | float) for number in numbers):
        return ()
    lows, highs, units = parent.position[:axes], parent.position[axes:], units_per_axis(parent.units, axes)
    edges = []
    for place, number in enumerate(numbers):
        low, high, most = (values[place % axes] for values in (lows, highs, units))
        edges.append(low + number / most * (high - low))
    found = zip(edges, position_in_source(parent.source, box), strict=True)
    return tuple(edges) if all(math.isclose(edge, other, abs_tol=1e-9) for edge, other in found) else ()
