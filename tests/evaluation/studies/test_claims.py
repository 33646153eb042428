"""Verdicts on claims: the three of them, what leaves a claim undecided, and what must hold for any rows."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.studies import Always, Claim, Difference, Evidence, Level, Ordering, Rate, Ratio

FEW = [0.1, 0.2, 0.3, 0.4, 0.5]


def evidence(values: dict[str, list[Any]], task: str = "t") -> Evidence:
    """Return rows with the metric ``m`` of some variants, one value for each seed."""
    rows = [
        {"task": task, "variant": variant, "seed": seed, "m": value}
        for variant, own in values.items()
        for seed, value in enumerate(own)
    ]
    return Evidence(rows=rows, tasks=(task,), seeds=range(max(map(len, values.values()))))


def decide(test: Any, values: dict[str, list[Any]]) -> Any:
    return Claim(text="", source="ours", test=test).decide(evidence(values))


# --- each test ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "verdict"), [({"above": 0.0}, "shown"), ({"above": 0.3}, "not shown"), ({"above": 0.6}, "contradicted"),
                           ({"below": 0.6}, "shown"), ({"below": 0.3}, "not shown"), ({"below": 0.0}, "contradicted"),
                           ({"above": 0.0, "below": 0.6}, "shown"), ({"above": 0.25, "below": 0.35}, "not shown"),
                           ({"above": 0.51, "below": 0.9}, "contradicted")]
)  # fmt: skip
def test_an_interval_is_held_against_bounds(bound: dict[str, float], verdict: str):
    """Within the bounds is shown, beyond them contradicted, across one of them neither; 0.3 has the interval 0.1 to 0.5."""
    found = decide(Level(metric="m", variant="a", **bound), {"a": FEW})
    (figure,) = found.figures
    assert (figure.value.low, figure.value.high) == pytest.approx((0.1037, 0.4963), abs=1e-4)
    assert found.verdict == verdict
    assert "m, a: 0.3 (0.1037 to 0.4963), 5 seeds; it" in found.reason


def test_differences_are_paired():
    """A shift that all seeds share is found under noise that they share; the interval is that of SciPy's paired t test."""
    noise = np.random.default_rng(0).normal(0, 10, 5)
    first, second = noise + np.array([1.0, 1.1, 0.9, 1.05, 0.95]), noise
    found = decide(Difference(metric="m", first="a", second="b", above=0.5), {"a": list(first), "b": list(second)})
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found.verdict == "shown"
    assert (found.figures[0].value.low, found.figures[0].value.high) == pytest.approx((expected.low, expected.high))
    unpaired = decide(Level(metric="m", variant="a", above=0.5), {"a": list(first)})
    assert unpaired.verdict == "not shown"


def test_ratios():
    """Twice as much under every seed is a ratio of 2 whatever the size; what is not positive has none."""
    values = {"a": [2.0, 20.0, 201.0], "b": [1.0, 10.0, 100.0]}
    assert decide(Ratio(metric="m", first="a", second="b", above=1.9), values).verdict == "shown"
    assert decide(Ratio(metric="m", first="b", second="a", above=0.6), values).verdict == "contradicted"
    found = decide(Ratio(metric="m", first="a", second="b", above=1.0), values | {"b": [1.0, 0.0, 1.0]})
    assert (found.verdict, found.reason) == ("not shown", "m: a ratio needs numbers > 0, got 0")


def test_rates_of_few_seeds_show_little():
    """Five successes of five are a share above 0.47, not above 0.48: the exact interval begins at 0.4782."""
    values = {"a": [True] * 5}
    assert decide(Rate(metric="m", variant="a", above=0.47), values).verdict == "shown"
    assert decide(Rate(metric="m", variant="a", above=0.48), values).verdict == "not shown"
    assert decide(Rate(metric="m", variant="a", above=0.95), {"a": [False] * 5}).verdict == "contradicted"


def test_always_means_every_run():
    """One run beyond the bounds contradicts what is to hold always, in whichever variant it is."""
    test = Always(metric="m", variants=("a", "b"), below=1.0)
    assert decide(test, {"a": [0.0, 0.5, 0.9], "b": [0.1, 0.2, 0.3]}).verdict == "shown"
    found = decide(test, {"a": [0.0, 0.5, 0.9], "b": [0.1, 1.0, 0.3]})
    assert found.verdict == "contradicted"
    assert "from 0 to 1 in 6 runs; they are not all below 1" in found.reason


def test_orderings_are_steps():
    """All steps must be shown; a step the wrong way contradicts; intervals are wider, as there are several."""
    values = {
        name: [level + jitter for jitter in (0.0, 0.1, 0.3)] for name, level in (("a", 9.0), ("b", 5.0), ("c", 1.0))
    }
    values["c"] = [0.9, 1.2, 1.1]
    assert decide(Ordering(metric="m", variants=("a", "b", "c")), values).verdict == "shown"
    assert decide(Ordering(metric="m", variants=("a", "c", "b")), values).verdict == "contradicted"
    values["b"] = values["a"]
    tie = decide(Ordering(metric="m", variants=("a", "b", "c")), values)
    assert tie.verdict == "contradicted"  # equal under every seed: a is not above b
    steps = [a - c for a, c in zip(values["a"], values["c"], strict=True)]
    wide = stats.t.interval(1 - 0.05 / 2, 2, loc=np.mean(steps), scale=stats.sem(steps))
    assert (tie.figures[1].value.low, tie.figures[1].value.high) == pytest.approx(wide)


# --- what decides nothing -------------------------------------------------------------------------------------------


def test_few_seeds_show_nothing():
    """Two seeds are not enough, however clear they are; the reason says so."""
    found = decide(Difference(metric="m", first="a", second="b", above=0.0), {"a": [9.0, 9.0], "b": [0.0, 0.0]})
    assert (found.verdict, found.reason, found.figures) == ("not shown", "2 seeds: expected at least 3", ())


def test_a_failed_run_or_a_missing_value_shows_nothing():
    """Runs without a row, and values that are None or nan, are not left out of a mean: the claim is not shown."""
    test = Difference(metric="m", first="a", second="b", above=0.0)
    lost = decide(test, {"a": [9.0] * 5, "b": [0.0] * 4})
    assert (lost.verdict, lost.reason) == ("not shown", "b: 1 of 5 runs are missing or failed, that of seed 4 on t")
    for nothing in (None, math.nan, math.inf):
        found = decide(test, {"a": [9.0, nothing, nothing, 9.0], "b": [0.0] * 4})
        assert (found.verdict, found.reason) == ("not shown", "m of a: 2 of 4 runs have none, the first of seed 1 on t")
    unknown = decide(Level(metric="m", variant="a", above=0.0, task="other"), {"a": [9.0] * 3})
    assert unknown.verdict == "not shown"


def test_tasks_are_averaged_within_a_seed():
    """Without a task, a seed counts once: with the mean over the tasks; a task that has no rows at all is missed."""
    rows = [*evidence({"a": [1.0, 2.0, 3.0]}, "t").rows, *evidence({"a": [3.0, 4.0, 5.0]}, "u").rows]
    both = Evidence(rows=rows, tasks=("t", "u"), seeds=range(3))
    assert both.by_seed("m", "a") == [2.0, 3.0, 4.0]
    assert both.by_seed("m", "a", "u") == [3.0, 4.0, 5.0]
    (figure,) = Level(metric="m", variant="a", above=0.0).decide(both).figures
    assert figure.seeds == 3
    third = Evidence(rows=rows, tasks=("t", "u", "v"), seeds=range(3))
    assert (
        Claim(text="", source="ours", test=Level(metric="m", variant="a", above=0.0)).decide(third).verdict
        == "not shown"
    )


@pytest.mark.parametrize(
    "bounds", [{}, {"above": 1.0, "below": 1.0}, {"above": 2.0, "below": 1.0}, {"above": math.nan}]
)
def test_bounds_that_mean_nothing_are_refused(bounds: dict[str, float]):
    """A test without bounds, or between bounds with nothing between them, is an error."""
    with pytest.raises(EdgeOptError, match="expected one of them, or both with the lower first"):
        Level(metric="m", variant="a", **bounds)


# --- properties -----------------------------------------------------------------------------------------------------

VALUES = st.lists(st.floats(0.5, 100.0), min_size=3, max_size=8)


@given(data=st.data(), margin=st.floats(0.0, 5.0), second=VALUES)
def test_swapping_the_variants_contradicts_what_was_shown(data: st.DataObject, margin: float, second: list[float]):
    """If a is shown to be above b by a margin, then that b is above a is contradicted; so for ratios above 1."""
    factors = data.draw(st.lists(st.floats(0.9, 20.0), min_size=len(second), max_size=len(second)))
    first = [factor * value for factor, value in zip(factors, second, strict=True)]
    values, swapped = {"a": first, "b": second}, {"a": second, "b": first}
    for test in (
        Difference(metric="m", first="a", second="b", above=margin),
        Ratio(metric="m", first="a", second="b", above=1.0 + margin),
        Ordering(metric="m", variants=("a", "b")),
    ):
        if decide(test, values).verdict == "shown":
            assert decide(test, swapped).verdict == "contradicted"


@given(values=VALUES, shift=st.floats(0.1, 10.0), bound=st.floats(0.0, 100.0))
def test_larger_values_are_never_less_above(values: list[float], shift: float, bound: float):
    """When every value grows, the verdict on being above a bound goes from contradicted towards shown, never back."""
    order = ("contradicted", "not shown", "shown")
    test = Level(metric="m", variant="a", above=bound)
    before = decide(test, {"a": values}).verdict
    after = decide(test, {"a": [value + shift for value in values]}).verdict
    assert order.index(after) >= order.index(before)
