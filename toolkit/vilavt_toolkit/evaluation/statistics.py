"""Means with intervals, for scores that come in clusters."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
_AT_ONCE = 1_000_000
"""Numbers drawn at once, so that memory stays bounded for any number of clusters."""
_Z = 1.959964
"""The normal quantile of a 95% interval."""


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


def bootstrap(
    scores: Sequence[float], clusters: Sequence[Hashable], seed: int = 0, span: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    """Mean of scores with a 95% percentile bootstrap over whole clusters (the questions of one image go together).

    Where all clusters have one mean no resample differs: there it is the Wilson interval of a share of the clusters
    that none was seen of, which may lie anywhere in `span`, the range of a score. Raises ValueError for no scores.
    """
    if not scores:
        raise ValueError("There are no scores to average.")
    places = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    sums, sizes = np.zeros(len(places)), np.zeros(len(places))
    for score, cluster in zip(scores, clusters, strict=True):
        sums[places[cluster]] += score
        sizes[places[cluster]] += 1
    mean = float(np.mean(scores))
    if np.ptp(sums / sizes) < 1e-9:
        unseen = _Z**2 / (len(places) + _Z**2)
        low, high = mean - unseen * (mean - span[0]), mean + unseen * (span[1] - mean)
    else:
        low, high = np.quantile(_resampled(sums, sizes, seed), [0.025, 0.975])
    return Estimate(mean, float(low), float(high), len(scores), len(places))


def _resampled(sums: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Means [RESAMPLES] over clusters drawn with replacement."""
    count, rng = len(sums), np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // count)
    means = []
    for start in range(0, RESAMPLES, rows):
        draws = rng.multinomial(count, np.full(count, 1 / count), size=min(rows, RESAMPLES - start))
        means.append((draws @ sums) / (draws @ sizes))
    return np.concatenate(means)


def paired(first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Mean of first minus second on the same items, with its interval."""
    return bootstrap([a - b for a, b in zip(first, second, strict=True)], clusters, seed, (-1.0, 1.0))
