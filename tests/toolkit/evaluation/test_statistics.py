"""Intervals: they cover what they say, clusters widen them, and they do not change from run to run."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, multinomial, norm

from vilavt_toolkit.evaluation import statistics
from vilavt_toolkit.evaluation.statistics import Estimate, bootstrap_mean, cluster_of, paired_difference


@pytest.mark.parametrize("right", [50, 30])
def test_the_interval_is_the_exact_bootstraps_of_a_known_sample(right):
    """Of n scores of which k are 1, a resample's sum is binomial, so that its quantiles are known."""
    estimate = bootstrap_mean([1.0] * right + [0.0] * (100 - right), range(100))
    low, high = binom.ppf([0.025, 0.975], 100, right / 100) / 100
    assert (estimate.mean, estimate.items, estimate.clusters) == (right / 100, 100, 100)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize("better", [50, 30])
def test_the_interval_of_a_difference_is_the_exact_bootstraps_too(better):
    """Every item of the first arm is as good as the second's or better by one; the sum of a resample is binomial."""
    first, second = [1.0] * better + [0.5] * (100 - better), [0.0] * better + [0.5] * (100 - better)
    estimate = paired_difference(first, second, range(100))
    low, high = binom.ppf([0.025, 0.975], 100, better / 100) / 100
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((better / 100, low, high), abs=1e-12)
    turned = paired_difference(second, first, range(100))
    assert (turned.mean, turned.low, turned.high) == pytest.approx((-better / 100, -high, -low), abs=1e-12)


def test_clusters_are_resampled_whole_and_weigh_by_their_size():
    """The lowest of 27 equally likely resamples of three clusters, 4%, lies in a 95% interval and in no 90% one."""
    scores, clusters = [0.0, 0.5, 0.5, 1.0, 1.0, 0.4], ["a", "b", "b", "c", "c", "c"]
    estimate = bootstrap_mean(scores, clusters)
    assert (estimate.items, estimate.clusters) == (6, 3) and estimate.mean == pytest.approx(3.4 / 6)
    assert (estimate.low, estimate.high) == pytest.approx((0.0, 0.8)), "three times a, three times c"
    means = statistics._resample_means(np.array([0.0, 1.0, 2.4]), np.array([1.0, 2.0, 3.0]), 0)
    sums, sizes = {"a": 0.0, "b": 1.0, "c": 2.4}, {"a": 1, "b": 2, "c": 3}
    exact = {sum(sums[c] for c in drawn) / sum(sizes[c] for c in drawn) for drawn in product("abc", repeat=3)}
    assert len(means) == statistics.RESAMPLES == 10_000
    assert {round(float(value), 9) for value in means} == {round(value, 9) for value in exact}


def coverage(intervals: np.ndarray, chances: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How often intervals [S, 2] of S samples hold each of P truths, with chances [S, P] of the samples."""
    held = (intervals[:, :1] <= truth + 1e-12) & (truth - 1e-12 <= intervals[:, 1:])
    return (chances * held).sum(0)


def ends(estimates: Iterable[Estimate]) -> np.ndarray:
    return np.array([(estimate.low, estimate.high) for estimate in estimates])


def test_the_interval_of_a_mean_covers_the_truth_95_times_in_100(monkeypatch):
    """Exactly: every sample of 100 scores of 0 and 1 has its interval, those of all one kind Wilson's."""
    monkeypatch.setattr(statistics, "RESAMPLES", 2000)
    count, truth = 100, np.linspace(0.1, 0.9, 41)
    intervals = ends(bootstrap_mean([1.0] * k + [0.0] * (count - k), range(count)) for k in range(count + 1))
    chances = binom.pmf(np.arange(count + 1)[:, None], count, truth)
    assert 0.94 <= coverage(intervals, chances, truth).mean() <= 0.96


def test_the_interval_of_a_paired_difference_covers_the_truth_95_times_in_100(monkeypatch):
    """Exactly: of 40 items, some are better by one, some worse, and the others equal."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    count = 40
    samples = [(better, worse) for better in range(count + 1) for worse in range(count + 1 - better)]
    intervals = ends(
        paired_difference(
            [1.0] * b + [0.0] * (count - b), [0.0] * b + [1.0] * w + [0.0] * (count - b - w), range(count)
        )
        for b, w in samples
    )
    shares = np.array([(0.3, 0.1), (0.4, 0.2), (0.25, 0.25), (0.5, 0.1), (0.1, 0.35)])
    places = [(better, worse, count - better - worse) for better, worse in samples]
    chances = np.stack([multinomial.pmf(places, count, [up, down, 1 - up - down]) for up, down in shares], 1)
    assert 0.94 <= coverage(intervals, chances, shares[:, 0] - shares[:, 1]).mean() <= 0.96


def test_the_interval_over_clusters_covers_the_truth_95_times_in_100_and_one_over_items_does_not(monkeypatch):
    """Exactly: 100 images with two questions each, which are both right or both wrong."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    count, truth = 100, np.linspace(0.1, 0.9, 41)
    chances = binom.pmf(np.arange(count + 1)[:, None], count, truth)

    def mean_coverage(clusters: Sequence[int]) -> float:
        samples = ([1.0] * 2 * k + [0.0] * 2 * (count - k) for k in range(count + 1))
        intervals = ends(bootstrap_mean(scores, clusters) for scores in samples)
        return float(coverage(intervals, chances, truth).mean())

    assert 0.94 <= mean_coverage([index // 2 for index in range(2 * count)]) <= 0.96
    assert mean_coverage(range(2 * count)) < 0.88


def test_one_differing_cluster_is_enough_for_the_bootstrap_and_rounding_is_not():
    """Wilson's interval reaches to both ends of the span; the bootstrap's stays between the clusters' means."""
    assert bootstrap_mean([0.5] * 9 + [0.501], range(10)).high < 0.502
    assert bootstrap_mean([0.3] * 9 + [0.1 + 0.2], range(10)).high > 0.45


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


def test_an_estimate_reads_as_percent_with_its_interval_and_a_difference_with_its_sign():
    estimate = Estimate(0.5, -0.25, 0.75, 8, 8)
    assert str(estimate) == "50.0 [-25.0, 75.0]"
    assert estimate.format_points() == "+50.0 [-25.0, +75.0]"
    assert estimate.format_points(" points") == "+50.0 points [-25.0, +75.0]"


def test_an_estimate_is_read_from_a_row_with_more_in_it():
    row = {"first": "a", "mean": 0.1, "low": 0.0, "high": 0.2, "items": 3, "clusters": 2}
    assert Estimate.from_json(row) == Estimate(0.1, 0.0, 0.2, 3, 2)


def test_items_are_of_their_group_or_alone():
    assert cluster_of({"group": 7}, "a") == 7 and cluster_of({"groups": 7}, "a") == "a"


@pytest.mark.parametrize("count", [1, 5, 20, 200])
def test_scores_without_spread_have_wilsons_interval(count):
    """As scipy has it for all right of n, and over the span of scores from that mean to both ends."""
    wilson = binomtest(count, count).proportion_ci(0.95, "wilson")
    right = bootstrap_mean([1.0] * count, range(count))
    assert (right.low, right.high) == pytest.approx((wilson.low, 1.0), abs=1e-6)
    share = norm.ppf(0.975) ** 2 / (count + norm.ppf(0.975) ** 2)
    middle = bootstrap_mean([0.25] * count, range(count), span=(-1.0, 3.0))
    assert (middle.low, middle.high) == pytest.approx((0.25 - share * 1.25, 0.25 + share * 2.75), abs=1e-6)


def test_the_seed_decides_the_resamples():
    scores = (np.random.default_rng(4).random(30)).tolist()
    assert bootstrap_mean(scores, range(30), 1) != bootstrap_mean(scores, range(30), 2)
    assert paired_difference(scores, scores[::-1], range(30), 1) != paired_difference(
        scores, scores[::-1], range(30), 2
    )


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
    monkeypatch.setattr(statistics, "_MAX_DRAWS", 20_000)
    tracemalloc.start()
    assert bootstrap_mean(scores, range(2000)) == whole
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000, "500 x 2000 draws at once would be 8 MB"
