"""Intervals of means, ratios and shares, against SciPy and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.statistics import Interval, interval, ratio_interval, share_interval


def test_intervals_are_students():
    """The interval is SciPy's of the t distribution; one seed has a mean but no interval; none is an error."""
    values = np.random.default_rng(0).normal(3.0, 2.0, 10)
    for confidence in (0.95, 0.99):
        found = interval(values, confidence)
        expected = stats.t.interval(confidence, 9, loc=values.mean(), scale=stats.sem(values))
        np.testing.assert_allclose((found.low, found.high), expected)
        assert found.mean == pytest.approx(values.mean())
    assert interval([2.0]).mean == 2.0
    assert np.isnan(interval([2.0]).low)
    with pytest.raises(EdgeOptError, match="values: expected at least one"):
        interval([])


def test_an_interval_covers_as_often_as_it_says():
    """Of 2,000 samples of five normal values, close to 95 % of the intervals hold the mean that they were drawn with."""
    samples = np.random.default_rng(1).normal(1.0, 3.0, (2000, 5))
    found = [interval(sample) for sample in samples]
    assert 0.935 < np.mean([one.low < 1.0 < one.high for one in found]) < 0.965


def test_ratios_are_means_of_logarithms():
    """The mean is the geometric one, the interval that of a paired t test of the logarithms; zero has no logarithm."""
    first, second = np.array([2.0, 3.0, 8.0, 5.0]), np.array([1.0, 2.0, 3.0, 4.0])
    found = ratio_interval(first / second)
    expected = stats.ttest_rel(np.log(first), np.log(second)).confidence_interval(0.95)
    assert found.mean == pytest.approx(stats.gmean(first / second))
    assert (math.log(found.low), math.log(found.high)) == pytest.approx((expected.low, expected.high))
    with pytest.raises(EdgeOptError, match="ratios: expected numbers > 0, got 0"):
        ratio_interval([1.0, 0.0])


@given(trials=st.integers(1, 40), data=st.data())
def test_shares_have_exact_intervals(trials: int, data: st.DataObject):
    """The interval is that of SciPy's exact binomial test."""
    successes = data.draw(st.integers(0, trials))
    found = share_interval(successes, trials)
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.mean == successes / trials


def test_shares_at_the_ends_have_closed_forms():
    """With every one of n trials a success, the lower end is the n-th root of the tail, and the other way round."""
    assert share_interval(5, 5).low == pytest.approx(0.025 ** (1 / 5))
    assert share_interval(0, 5).high == pytest.approx(1 - 0.025 ** (1 / 5))
    with pytest.raises(EdgeOptError, match="successes = 6: expected 0 to 5"):
        share_interval(6, 5)


def test_intervals_are_said_shortly():
    """Words have the estimate, and the interval if there is one."""
    assert str(Interval(1 / 3, 0.25, 0.5)) == "0.3333 (0.25 to 0.5)"
    assert str(Interval(2.0, math.nan, math.nan)) == "2"
