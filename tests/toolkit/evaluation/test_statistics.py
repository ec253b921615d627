"""Intervals: they cover what they say, clusters widen them, and they do not change from run to run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vilavt_toolkit.evaluation import statistics
from vilavt_toolkit.evaluation.statistics import bootstrap, paired


def test_intervals_cover_the_true_mean_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        scores = (rng.random(100) < 0.7).astype(float).tolist()
        estimate = bootstrap(scores, range(100), trial)
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.98


def test_items_that_share_an_image_widen_the_interval():
    rng = np.random.default_rng(1)
    scores = np.repeat((rng.random(50) < 0.5).astype(float), 4).tolist()
    alone = bootstrap(scores, range(200))
    together = bootstrap(scores, [index // 4 for index in range(200)])
    assert alone.mean == together.mean and (alone.clusters, together.clusters, together.items) == (200, 50, 200)
    assert 1.7 < (together.high - together.low) / (alone.high - alone.low) < 2.3, "four copies: twice as wide"


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_interval_holds_the_mean_and_stays_among_the_scores(pairs):
    scores, clusters = map(list, zip(*pairs, strict=True))
    estimate = bootstrap(scores, clusters)
    assert estimate.mean == pytest.approx(np.mean(scores))
    assert min(scores) - 1e-9 <= estimate.low <= estimate.mean + 1e-9
    assert estimate.mean - 1e-9 <= estimate.high <= max(scores) + 1e-9
    assert bootstrap(scores, clusters) == estimate


def test_the_same_items_compared_in_pairs_are_sharper_than_apart():
    rng = np.random.default_rng(2)
    hard = rng.random(300)
    first = [float(h < 0.8) for h in hard]
    second = [float(h < 0.7) for h in hard]
    difference = paired(first, second, range(300))
    apart = bootstrap(first, range(300)), bootstrap(second, range(300))
    assert difference.mean == pytest.approx(apart[0].mean - apart[1].mean)
    assert difference.high - difference.low < apart[0].high - apart[0].low
    assert difference.low > 0
    assert paired(first, first, range(300)).low == paired(first, first, range(300)).high == 0


def test_unequal_lists_and_no_scores_are_errors():
    with pytest.raises(ValueError, match="no scores"):
        bootstrap([], [])
    with pytest.raises(ValueError):
        bootstrap([1.0], [0, 1])
    with pytest.raises(ValueError):
        paired([1.0], [1.0, 0.0], [0])


def test_an_estimate_reads_as_percent_with_its_interval():
    assert str(statistics.Estimate(0.5, 0.25, 0.75, 8, 8)) == "50.0 [25.0, 75.0]"
