"""Performance profiles and summaries, against numbers worked out by hand."""

import math

import pytest

from edgeopt.evaluation import performance_profile, rows_frame, summarise
from edgeopt.evaluation.compare.performance import band
from edgeopt.evaluation.compare.rows import Row, add_gaps


def row(solver: str, instance: str, objective: float | None, seconds: float = 1.0, **more: object) -> Row:
    feasible = objective is not None
    parts = {"build": 0.0, "compile": 0.0, "solve": seconds, "total": seconds}
    return {
        "solver": solver, "instance": instance, "seed": 0, "sense": "max", "problem": "any", "limit": None,
        "status": "feasible" if feasible else "error", "feasible": feasible, "objective": objective, "bound": None,
        "gap": None, "guarantee": "heuristic", "seconds": parts, "message": "", "history": [],
    } | more  # fmt: skip


ROWS = [
    row("a", "p", 10.0, 4.0), row("a", "q", 8.0, 1.0),
    row("b", "p", 9.0, 1.0), row("b", "q", 10.0, 3.0),
    row("c", "p", 10.0, 1.0), row("c", "q", None, 1.0),
]  # fmt: skip


def test_gap_profile():
    """Shares are of all runs: a failed run never counts as solved."""
    lines = {line.solver: (line.x.tolist(), line.share.tolist()) for line in performance_profile(ROWS)}
    assert lines["a"] == ([0.0, 0.2], [0.5, 1.0])
    assert lines["b"] == ([0.0, 0.1], [0.5, 1.0])
    assert lines["c"] == ([0.0], [0.5])


def test_gap_profile_puts_the_best_first():
    """The order is by area: closer on more runs comes first."""
    assert [line.solver for line in performance_profile(ROWS)][:2] == ["b", "a"]


def test_time_profile():
    """Times are multiples of the fastest solver that got there; who did not get there never does."""
    lines = {line.solver: (line.x.tolist(), line.share.tolist()) for line in performance_profile(ROWS, "time")}
    assert lines["a"] == ([4.0], [0.5])
    assert lines["b"] == ([1.0], [0.5])
    assert lines["c"] == ([1.0], [0.5])


def test_profile_from_frame_equals_profile_from_rows():
    """A data frame, whose gaps are NaN instead of None, gives the same lines."""
    from_frame = performance_profile(rows_frame(add_gaps(ROWS)))
    for one, other in zip(from_frame, performance_profile(ROWS), strict=True):
        assert (one.solver, one.x.tolist(), one.share.tolist()) == (
            other.solver,
            other.x.tolist(),
            other.share.tolist(),
        )


def test_band_of_nothing():
    """No values, no numbers."""
    assert all(math.isnan(value) for value in band([]))


def test_summary_over_seeds():
    """Medians over seeds, the best bound, and how the runs ended."""
    runs = [row("a", "p", value, seed=seed, bound=20.0 + seed) for seed, value in enumerate((10.0, 11.0, 15.0))]
    (line,) = summarise([*runs, row("a", "p", None, seed=3)])
    assert (line["objective"], line["bound"], line["runs"]) == (11.0, 20.0, 4)
    assert line["status"] == "feasible 3, error 1"
    assert line["gap_to_best"] == pytest.approx(4 / 15)
    assert line["objective_low"] < 11.0 < line["objective_high"]


def test_summary_keeps_minimisation():
    """For minimisation the best bound is the largest."""
    runs = [row("a", "p", 10.0, seed=seed, sense="min", bound=bound) for seed, bound in enumerate((5.0, 6.0))]
    assert summarise(runs)[0]["bound"] == 6.0
