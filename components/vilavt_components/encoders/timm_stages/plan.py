"""The plan of a staged model: which modules are its stem, its stages and its last norms, and the maps in between.

It is found by watching timm's own forward pass (`watching.py`), so no family needs a table of its own. timm's
`feature_info` names the modules at which stages end.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from vilavt_components.encoders.timm_stages.watching import Call, first_gap, unroll_chain, watch_forward
from vilavt_toolkit.contracts import Grid
from vilavt_toolkit.errors import BadConfig

_HEADS_WITH_NORM = ("NormMlpClassifierHead", "ClNormMlpClassifierHead")
_NO_STAGES = "timm's `feature_info` does not tell its stages apart"

Axes = Literal["nchw", "nhwc", "nlc"]
"""Order of the axes of maps: images, height, width, channels; `l` are the tokens of height and width together."""


@dataclass(frozen=True)
class Maps:
    """Layout in which the maps between two modules lie in their tensor, for views of the native size."""

    axes: Axes
    grid: Grid
    width: int
    block: int | None = None
    """Number of the block before, for models whose tokens stand in an order of their own (`reroll`)."""


@dataclass(frozen=True)
class StagePlan:
    """The names of a model's modules in the order of their calls, and what they hand on."""

    stages: tuple[tuple[str, ...], ...]
    tail: tuple[str, ...]
    """Norms, convolutions and activations after the last stage; none if not all stages are used."""
    maps: tuple[Maps, ...]
    """Those of the stem, and of every stage."""
    features: Maps
    native: Grid
    """Height and width in pixels of the images that the model was made for."""
    multiple: int
    """Sides of views are multiples of this many pixels; 0: views have the native size."""
    used: frozenset[str]
    """The modules that are called."""
    is_whole: bool
    """True if all stages are used."""
    copies_maps: bool = False
    """True if maps are copied into the order [n, D, h, w] before a stage, which some need."""
    idle: tuple[str, ...] = ()
    """The weights that the features do not depend on."""

    def scale_grid(self, size: Grid, before: Maps, after: Maps) -> Grid:
        """Return the grid of maps `after`, where those `before` have grid `size`."""
        # Views of one size have one grid, and those of such models need not divide each other.
        if not self.multiple:
            return after.grid
        return tuple(side * b // a for side, a, b in zip(size, before.grid, after.grid, strict=True))


def plan_stages(model: Any, name: str, native: Grid, wanted: int | None) -> StagePlan:
    """Plan a model on the meta device, cut after `wanted` stages (None: all); raises BadConfig with the reason.

    `find_multiple` then tells which views it takes beside the native ones.
    """
    try:
        # Whole first: only then is it known how many stages there are to cut after.
        plan = _plan_at(model, native, None)
        depth = len(plan.stages)
        if wanted is not None and wanted > depth:
            raise BadConfig(f"'{name}' has {depth} stages. Set `stages` to {depth} at most, not {wanted}.")
        if wanted is not None and wanted < depth:
            plan = _plan_at(model, native, wanted)
    except _NotStaged as error:
        raise BadConfig(
            f"Encoder 'timm_stages' cannot run '{name}' ({type(model).__name__}) stage by stage: {error}. "
            "Choose another model, such as convnext_tiny or resnet50. docs/encoder-families.md lists the families."
        ) from error
    return plan


class _NotStaged(Exception):
    """Says why a model cannot run in stages."""


def _plan_at(model: Any, size: Grid, wanted: int | None, like: StagePlan | None = None) -> StagePlan:
    """Plan a model for images of one size (h, w); raises _NotStaged.

    `like` is its plan for another size, whose axes are taken where the shapes allow several.
    """
    try:
        root = watch_forward(model, *size)
    except Exception as error:  # whatever a model of timm may raise
        raise _NotStaged(f"it does not take images of {size[1]} x {size[0]} pixels ({type(error).__name__})") from error
    stages, tail = _split_calls(model, root)
    if wanted is not None:
        stages, tail = stages[:wanted], []
    first = stages[0][0]
    blocks = [_block_number(model, stage[-1].name) for stage in stages]
    ends = [first.given, *(stage[-1].output for stage in stages)]
    known = [None] * (len(ends) + 1) if like is None else [each.axes for each in (*like.maps, like.features)]
    if len(known) != len(ends) + 1:
        raise _NotStaged("images of another size take other modules")
    parts = zip(ends, [blocks[0], *blocks], known, strict=False)
    maps = [_describe_maps(x, model, size, likely, block) for x, block, likely in parts]
    has_norm = wanted is None and type(getattr(model, "head", None)).__name__ in _HEADS_WITH_NORM
    norm = ("head.norm",) if has_norm else ()
    called = {call.name for calls in (*stages, tail) for each in calls for call in each.walk()}
    return StagePlan(
        stages=tuple(tuple(call.name for call in stage) for stage in stages),
        tail=(*(call.name for call in tail), *norm),
        maps=tuple(maps),
        features=_describe_maps(tail[-1].output, model, size, known[-1]) if tail else maps[-1],
        native=size,
        multiple=0,
        is_whole=wanted is None,
        used=frozenset(called | _names_before(root, first) | set(norm)),
    )


def _split_calls(model: Any, root: Call) -> tuple[list[list[Call]], list[Call]]:
    """Return the calls of every stage, and those after the last; raises _NotStaged."""
    marks = _stage_marks(model, root)
    related = [any(_belongs(call.name, mark) for mark in marks) for call in root.inner]
    if not any(related):
        raise _NotStaged(_NO_STAGES)
    # Before the first stage timm may do anything: the stem is its own forward pass, which ends there.
    start, end = related.index(True), len(related) - related[::-1].index(True)
    body, rest = root.inner[start:end], root.inner[end:]
    gap = first_gap(body, None)
    if gap is not None:
        raise _NotStaged(gap)
    chain = [call for each in body for call in unroll_chain(each, marks)]
    # A stage ends with the last call of its mark, and the first one begins with the first call of its kind.
    last_calls = {mark: i for i, call in enumerate(chain) for mark in marks if _belongs(call.name, mark)}
    begin = next((i for i, call in enumerate(chain) if _is_of_stage(call.name, marks[0])), 0)
    if chain[begin].given is root.given:
        # The first module belongs to the stem, or there would be no tokens to begin with.
        begin += 1
    ends = sorted({index for index in last_calls.values() if index >= begin})
    if len(ends) < 2:
        raise _NotStaged(_NO_STAGES)
    edges = [begin, *(index + 1 for index in ends)]
    stages = [chain[a:b] for a, b in pairwise(edges)]
    # What timm does after the last stage is left out if it is more than one module after another.
    tail = [*chain[edges[-1] :], *rest]
    return stages, [] if tail and first_gap([chain[edges[-1] - 1], *tail], None, root) is not None else tail


def _stage_marks(model: Any, root: Call) -> list[str]:
    """Return the names of the modules at which timm says that stages end, of those that are called."""
    called = {call.name for call in root.walk()}
    info = getattr(model, "feature_info", None) or []
    names = dict.fromkeys(str(each["module"]) for each in info if each["module"])
    marks = [name for name in names if any(each == name or each.startswith(f"{name}.") for each in called)]
    # A first feature of another kind than the second, such as `act1` before `layer1`, is one of the stem.
    if len(marks) > 1 and _kind(marks[0]) != _kind(marks[1]):
        marks = marks[1:]
    if len(marks) < 2:
        raise _NotStaged(_NO_STAGES)
    return marks


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _belongs(name: str, mark: str) -> bool:
    """Return True if a call of module `name` is that of `mark`, inside of it, or holds it."""
    return name == mark or name.startswith(f"{mark}.") or mark.startswith(f"{name}.")


def _is_of_stage(name: str, mark: str) -> bool:
    return _kind(name) == _kind(mark) or _belongs(name, mark)


def _names_before(root: Call, first: Call) -> set[str]:
    """Return the names of the modules that were called, and left, before the call `first`."""
    found: set[str] = set()
    for call in root.walk():
        if call is first:
            break
        if all(each is not first for each in call.walk()):
            found.add(call.name)
    return found


def _block_number(model: Any, name: str) -> int | None:
    return int(name.rpartition(".")[2]) if hasattr(model, "reroll") else None


def _describe_maps(x: Any, model: Any, size: Grid, likely: Axes | None, block: int | None = None) -> Maps:
    """Describe how maps of images of `size` lie in a tensor; raises _NotStaged if it holds no grid of tokens."""
    if likely is None:
        likely = "nhwc" if str(getattr(model, "output_fmt", "")).endswith("NHWC") else "nchw"
    shape = tuple(x.shape) if isinstance(x, Tensor) else ()
    height, width = size
    if len(shape) == 3:
        # Tokens, row after row: the grid has their number and the shape of the image.
        rows = round(math.sqrt(shape[1] * height / width))
        if rows and shape[1] % rows == 0:
            return Maps("nlc", (rows, shape[1] // rows), shape[2], block)
    if len(shape) == 4:
        last, first = (shape[1], shape[2]), (shape[2], shape[3])
        # The two axes whose ratio is that of the image are those of the grid.
        off = [abs(math.log(rows / columns * width / height)) for rows, columns in (first, last)]
        is_last = off[1] < off[0] or (off[0] == off[1] and likely == "nhwc")
        return Maps("nhwc", last, shape[3]) if is_last else Maps("nchw", first, shape[1])
    raise _NotStaged("what its stages hand on is no grid of tokens")


def find_multiple(model: Any, plan: StagePlan) -> int:
    """Return the pixels that the sides of a view must be multiples of; 0 if the model takes its native size only."""
    grids = [each.grid for each in (*plan.maps, plan.features)]
    if any(side % cells for grid in grids for side, cells in zip(plan.native, grid, strict=True)):
        return 0
    coarsest = math.lcm(*(side // cells for grid in grids for side, cells in zip(plan.native, grid, strict=True)))
    # Some windows need sides of several of their own, so that the native size is tried as the unit too.
    for multiple in dict.fromkeys((coarsest, math.lcm(coarsest, *plan.native))):
        whole = max(1, plan.native[0] // multiple) * multiple
        if all(_takes_size(model, plan, size) for size in ((multiple, 2 * multiple), (whole + multiple, whole))):
            return multiple
    return 0


def _takes_size(model: Any, plan: StagePlan, size: Grid) -> bool:
    """Return True if the model does the same to images of another size, and its grids grow with them."""
    cut = None if plan.is_whole else len(plan.stages)
    try:
        other = _plan_at(model, size, cut, plan)
    except _NotStaged:
        return False

    def scaled(maps: Maps) -> Maps:
        sides = zip(maps.grid, size, plan.native, strict=True)
        return replace(maps, grid=tuple(cells * new // old for cells, new, old in sides))

    same_maps = tuple(map(scaled, plan.maps)) == other.maps and scaled(plan.features) == other.features
    return same_maps and (plan.stages, plan.tail) == (other.stages, other.tail)
