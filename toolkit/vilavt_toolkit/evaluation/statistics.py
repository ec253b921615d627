"""Means with 95% intervals, for scores that come in clusters."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

RESAMPLES = 10_000
_QUANTILES = (0.025, 0.975)
"""The ends of a 95% percentile interval."""
_Z = 1.959964
"""The 97.5% quantile of the normal distribution, for a 95% Wilson interval."""
_MAX_DRAWS = 1_000_000
"""Numbers drawn at once, so that memory stays bounded for any number of clusters."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval, over `items` scores in `clusters` clusters."""

    mean: float
    low: float
    high: float
    items: int
    clusters: int

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Estimate:
        """Read an estimate from plain data, which may have more keys; raises KeyError."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def format_points(self, unit: str = "") -> str:
        """Write a difference with its sign, in percentage points; `unit` follows the mean."""
        return f"{100 * self.mean:+.1f}{unit} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def cluster_of(tags: Mapping[str, Any], item: str) -> Hashable:
    """Return the cluster of an item: the tag `group` where its task sets one, else the item alone."""
    group: Hashable = tags.get("group", item)
    return group


def bootstrap_mean(
    scores: Sequence[float], clusters: Sequence[Hashable], seed: int = 0, span: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    """Return the mean of scores with a 95% percentile bootstrap over whole clusters.

    The method is Efron and Tibshirani (1993), chapter 13. Questions about one image share a cluster, because their
    scores are not independent. If every cluster has the same mean, all resamples agree and the bootstrap has no width.
    Then the interval is Wilson's (1927) for a share of which none was seen: that share of the clusters may have scored
    anything in `span`, the range of a score. Raises ValueError if there are no scores, or not one cluster for each.
    """
    if not scores:
        raise ValueError("There are no scores to average.")
    places = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    sums, sizes = np.zeros(len(places)), np.zeros(len(places))
    for score, cluster in zip(scores, clusters, strict=True):
        sums[places[cluster]] += score
        sizes[places[cluster]] += 1
    mean = float(np.mean(scores))
    # A tolerance, since sums of equal scores may differ in their last digit.
    if np.ptp(sums / sizes) < 1e-9:
        # Wilson's upper end for 0 of n is z^2 / (n + z^2).
        unseen = _Z**2 / (len(places) + _Z**2)
        low, high = mean - unseen * (mean - span[0]), mean + unseen * (span[1] - mean)
    else:
        low, high = np.quantile(_resample_means(sums, sizes, seed), _QUANTILES)
    return Estimate(mean, float(low), float(high), len(scores), len(places))


def _resample_means(sums: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Return the means [RESAMPLES] over clusters drawn with replacement."""
    count, rng = len(sums), np.random.default_rng(seed)
    rows = max(1, _MAX_DRAWS // count)
    means = []
    for start in range(0, RESAMPLES, rows):
        # How often each cluster is drawn is all that a mean needs: a multinomial draw and two products.
        draws = rng.multinomial(count, np.full(count, 1 / count), size=min(rows, RESAMPLES - start))
        means.append((draws @ sums) / (draws @ sizes))
    return np.concatenate(means)


def paired_difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable], seed: int = 0
) -> Estimate:
    """Return the mean of first minus second on the same items, with its interval.

    Pairs remove what makes an item hard for both, so that the interval is narrower than that of two separate means.
    """
    return bootstrap_mean([a - b for a, b in zip(first, second, strict=True)], clusters, seed, (-1.0, 1.0))
