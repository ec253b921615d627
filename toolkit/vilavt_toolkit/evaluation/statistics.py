"""Means with intervals, for scores that come in clusters."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval, over `items` scores in `clusters` clusters."""

    mean: float
    low: float
    high: float
    items: int
    clusters: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def bootstrap(scores: Sequence[float], clusters: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Mean of scores with a 95% percentile bootstrap over whole clusters (the questions of one image go together).

    Raises ValueError for no scores.
    """
    if not scores:
        raise ValueError("There are no scores to average.")
    places = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    sums, sizes = np.zeros(len(places)), np.zeros(len(places))
    for score, cluster in zip(scores, clusters, strict=True):
        sums[places[cluster]] += score
        sizes[places[cluster]] += 1
    draws = np.random.default_rng(seed).multinomial(len(places), np.full(len(places), 1 / len(places)), size=RESAMPLES)
    means = (draws @ sums) / (draws @ sizes)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(np.mean(scores)), float(low), float(high), len(scores), len(places))


def paired(first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Mean of first minus second on the same items, with its interval."""
    return bootstrap([a - b for a, b in zip(first, second, strict=True)], clusters, seed)
