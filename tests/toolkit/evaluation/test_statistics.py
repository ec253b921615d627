"""Intervals: they cover what they say, clusters widen them, and they do not change from run to run."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vilavt_toolkit.evaluation import statistics
from vilavt_toolkit.evaluation.statistics import bootstrap_mean, paired_difference


def test_intervals_cover_the_true_mean_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        scores = (rng.random(100) < 0.7).astype(float).tolist()
        estimate = bootstrap_mean(scores, range(100), trial)
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.98


def test_items_that_share_an_image_widen_the_interval():
    rng = np.random.default_rng(1)
    scores = np.repeat((rng.random(50) < 0.5).astype(float), 4).tolist()
    alone = bootstrap_mean(scores, range(200))
    together = bootstrap_mean(scores, [index // 4 for index in range(200)])
    assert alone.mean == together.mean and (alone.clusters, together.clusters, together.items) == (200, 50, 200)
    assert 1.7 < (together.high - together.low) / (alone.high - alone.low) < 2.3, "four copies: twice as wide"


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_interval_holds_the_mean_and_stays_in_the_range_of_a_score(pairs):
    scores, clusters = map(list, zip(*pairs, strict=True))
    estimate = bootstrap_mean(scores, clusters)
    assert estimate.mean == pytest.approx(np.mean(scores))
    assert 0 - 1e-9 <= estimate.low <= estimate.mean + 1e-9
    assert estimate.mean - 1e-9 <= estimate.high <= 1 + 1e-9
    assert estimate.high > estimate.low, "a handful of items never leaves no doubt"
    assert bootstrap_mean(scores, clusters) == estimate


def test_the_same_items_compared_in_pairs_are_sharper_than_apart():
    rng = np.random.default_rng(2)
    hard = rng.random(300)
    first = [float(h < 0.8) for h in hard]
    second = [float(h < 0.7) for h in hard]
    difference = paired_difference(first, second, range(300))
    apart = bootstrap_mean(first, range(300)), bootstrap_mean(second, range(300))
    assert difference.mean == pytest.approx(apart[0].mean - apart[1].mean)
    assert difference.high - difference.low < apart[0].high - apart[0].low
    assert difference.low > 0


def test_unequal_lists_and_no_scores_are_errors():
    with pytest.raises(ValueError, match="no scores"):
        bootstrap_mean([], [])
    with pytest.raises(ValueError):
        bootstrap_mean([1.0], [0, 1])
    with pytest.raises(ValueError):
        paired_difference([1.0], [1.0, 0.0], [0])


def test_an_estimate_reads_as_percent_with_its_interval():
    assert str(statistics.Estimate(0.5, 0.25, 0.75, 8, 8)) == "50.0 [25.0, 75.0]"


def test_all_right_and_all_wrong_have_the_wilson_interval_of_their_clusters():
    """Twenty of twenty: 83.9% to 100%, as tables of Wilson's interval have it."""
    right = bootstrap_mean([1.0] * 40, [index // 2 for index in range(40)])
    assert (right.mean, right.high) == (1.0, 1.0) and right.low == pytest.approx(0.8389, abs=1e-4)
    wrong = bootstrap_mean([0.0] * 40, [index // 2 for index in range(40)])
    assert (wrong.mean, wrong.low) == (0.0, 0.0) and wrong.high == pytest.approx(1 - right.low)


def test_two_arms_that_never_differed_may_differ_either_way():
    same = paired_difference([1.0, 0.0] * 10, [1.0, 0.0] * 10, range(20))
    assert same.mean == 0 and same.high == -same.low == pytest.approx(0.1611, abs=1e-4)
    better = paired_difference([1.0] * 20, [0.0] * 20, range(20))
    assert better.high == 1 and better.low == pytest.approx(1 - 2 * 0.1611, abs=1e-4)


def test_memory_stays_bounded_and_the_interval_the_same_however_many_are_drawn_at_once(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    scores = (np.random.default_rng(3).random(2000) < 0.6).astype(float).tolist()
    whole = bootstrap_mean(scores, range(2000))
    monkeypatch.setattr(statistics, "_AT_ONCE", 20_000)
    tracemalloc.start()
    assert bootstrap_mean(scores, range(2000)) == whole
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000, "500 x 2000 draws at once would be 8 MB"
