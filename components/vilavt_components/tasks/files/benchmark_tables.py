"""Tables of scores: those of VSI-Bench and SPAR-Bench, and one number a category for any other benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

Metrics = dict[str, list[float]]
"""name -> scores, whose mean is the metric"""

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
"""Question type of VSI-Bench (arXiv 2412.14171) -> its name in the tables."""
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


def score_vsibench(types: Sequence[str], scores: Sequence[float], pooled: bool) -> Metrics:
    """Collect the scores of every question type, and `Overall`, the mean of the types.

    Relative directions are the mean of the levels easy, medium and hard; with `pooled` the mean over all their items.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    levels: defaultdict[str, list[float]] = defaultdict(list)
    for kind, score in zip(types, scores, strict=True):
        # Only relative directions have levels: "object_rel_direction_easy".
        base, _, level = kind.rpartition("_")
        name = _VSI.get(base if level in _LEVELS else kind)
        if name is not None:
            found[name].append(score)
        if name == "Rel. Dir":
            levels[level].append(score)
    if levels and not pooled:
        # The published metric gives every level the same weight, however many items it has.
        found["Rel. Dir"] = [_mean_score(those) for those in levels.values()]
    table = {name: found[name] for name in _VSI.values() if name in found}
    return {**table, "Overall": [_mean_score(those) for those in table.values()]} if table else {}


def score_sparbench(types: Sequence[str], scores: Sequence[float], pooled: bool = False) -> Metrics:
    """Collect the scores of the three levels and of every question type, and `Total`, the mean of the types."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for kind, score in zip(types, scores, strict=True):
        found[kind].append(score)
    # Types that the benchmark does not have are left out of the table, not counted as 0.
    names = [kind for kinds in _SPAR.values() for kind in kinds if kind in found]
    levels = {level: [score for kind in kinds for score in found.get(kind, ())] for level, kinds in _SPAR.items()}
    table = {level: those for level, those in levels.items() if those} | {kind: found[kind] for kind in names}
    return {**table, "Total": [_mean_score(found[kind]) for kind in names]} if names else {}


def score_by_category(categories: Sequence[str], scores: Sequence[float]) -> Metrics:
    """Collect the scores of each category, in the order of their names."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for category, score in zip(categories, scores, strict=True):
        found[category].append(score)
    return {name: found[name] for name in sorted(found) if name}


TABLES: Mapping[str, Callable[[Sequence[str], Sequence[float], bool], Metrics]] = {
    "vsibench": score_vsibench,
    "sparbench": score_sparbench,
}


def detect_table(types: Sequence[str]) -> str:
    """Return the table of the benchmark that more than half of the question types belong to, else "category"."""
    vsi = sum((kind.removesuffix("_easy").removesuffix("_medium").removesuffix("_hard")) in _VSI for kind in types)
    spar = sum(kind in kinds for kind in types for kinds in _SPAR.values())
    for name, count in (("vsibench", vsi), ("sparbench", spar)):
        if 2 * count > len(types):
            return name
    return "category"


def _mean_score(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)
