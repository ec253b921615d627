"""How VSI-Bench and SPAR-Bench put scores together, and what is said of any other benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

Metrics = dict[str, list[float]]
"""name -> scores whose mean is the metric"""

_VSI = {
    "object_rel_distance": "Rel. Dist",
    "object_rel_direction": "Rel. Dir",
    "route_planning": "Route Plan",
    "obj_appearance_order": "Appr. Order",
    "object_counting": "Obj. Count",
    "object_abs_distance": "Abs. Dist",
    "object_size_estimation": "Obj. Size",
    "room_size_estimation": "Room Size",
}
"""Question type of VSI-Bench (arXiv 2412.14171) -> what its tables call it."""
_LEVELS = ("easy", "medium", "hard")
_SPAR = {
    "Low": (
        "depth_prediction_oc",
        "depth_prediction_oc_mv",
        "depth_prediction_oo",
        "depth_prediction_oo_mv",
        "distance_prediction_oc",
        "distance_prediction_oc_mv",
        "distance_prediction_oo",
        "distance_prediction_oo_mv",
    ),
    "Medium": ("camera_motion_infer", "position_matching", "view_change_infer"),
    "High": (
        "distance_infer_center_oo",
        "distance_infer_center_oo_mv",
        "obj_spatial_relation_oc_mv",
        "obj_spatial_relation_oo",
        "obj_spatial_relation_oo_mv",
        "spatial_imagination_oc",
        "spatial_imagination_oc_mv",
        "spatial_imagination_oo",
        "spatial_imagination_oo_mv",
    ),
}
"""Level of SPAR-Bench (arXiv 2503.22976) -> its question types."""


def vsibench(types: Sequence[str], scores: Sequence[float], pooled: bool) -> Metrics:
    """Every question type and `Overall`, the mean of these.

    Relative directions are the mean of what is easy, medium and hard; with `pooled` the mean over all their items.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    levels: defaultdict[str, list[float]] = defaultdict(list)
    for kind, score in zip(types, scores, strict=True):
        base, _, level = kind.rpartition("_")
        name = _VSI.get(base if level in _LEVELS else kind)
        if name is not None:
            found[name].append(score)
        if name == "Rel. Dir":
            levels[level].append(score)
    if levels and not pooled:
        found["Rel. Dir"] = [_mean(those) for those in levels.values()]
    table = {name: found[name] for name in _VSI.values() if name in found}
    return {**table, "Overall": [_mean(those) for those in table.values()]} if table else {}


def sparbench(types: Sequence[str], scores: Sequence[float], pooled: bool = False) -> Metrics:
    """The three levels, each the mean over its items, every question type, and `Total`, the mean of the types."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for kind, score in zip(types, scores, strict=True):
        found[kind].append(score)
    names = [kind for kinds in _SPAR.values() for kind in kinds if kind in found]
    levels = {level: [score for kind in kinds for score in found.get(kind, ())] for level, kinds in _SPAR.items()}
    table = {level: those for level, those in levels.items() if those} | {kind: found[kind] for kind in names}
    return {**table, "Total": [_mean(found[kind]) for kind in names]} if names else {}


def by_category(categories: Sequence[str], scores: Sequence[float]) -> Metrics:
    """One number for each category, in the order of their names."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for category, score in zip(categories, scores, strict=True):
        found[category].append(score)
    return {name: found[name] for name in sorted(found) if name}


TABLES: Mapping[str, Callable[[Sequence[str], Sequence[float], bool], Metrics]] = {
    "vsibench": vsibench,
    "sparbench": sparbench,
}


def table_of(types: Sequence[str]) -> str:
    """The benchmark that question types are of: the one that has more than half of them; "category" for none."""
    vsi = sum((kind.removesuffix("_easy").removesuffix("_medium").removesuffix("_hard")) in _VSI for kind in types)
    spar = sum(kind in kinds for kind in types for kinds in _SPAR.values())
    for name, count in (("vsibench", vsi), ("sparbench", spar)):
        if 2 * count > len(types):
            return name
    return "category"


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)
