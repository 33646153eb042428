"""Pictures of client selection: what is drawn is what the problem says."""

from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import edgeopt
from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.benchmarks.held_out_selection import METRICS
from edgeopt.evaluation.plots.selection.fairness import plot_selection_fairness
from edgeopt.evaluation.plots.selection.forecast_calibration import calibration, plot_forecast_calibration
from edgeopt.evaluation.plots.selection.frontier import plot_selection_frontier
from edgeopt.evaluation.plots.selection.rounds import (
    CONFLICT,
    MAX_BLOCKS,
    PICKED,
    picks_and_conflicts,
    plot_selection_rounds,
)
from edgeopt.evaluation.plots.selection.training import plot_selection_training
from edgeopt.evaluation.plots.solutions import SOLUTION_PICTURES, draw_solution
from edgeopt.evaluation.plots.style import COLOURS
from edgeopt.evaluation.statistics import log_loss
from edgeopt.problems import ClientSelection, SelectionPlan


@pytest.fixture
def hand_made() -> tuple[ClientSelection, SelectionPlan]:
    """Two servers share client 1; both pick it in round 0. Client 3 is busy in round 1."""
    busy = np.zeros((3, 4), bool)
    busy[1, 3] = True
    problem = ClientSelection(
        coverage=[[True, True, False, False], [False, True, True, True]], picks=1, compute_s=1.0, payload_bits=1e6,
        rate_bps=1e6, timeout_s=4.0, rounds=3, busy=busy,
    )  # fmt: skip
    return problem, SelectionPlan([[[1], [1]], [[0], [3]], [[1], [2]]])


@pytest.fixture(scope="module")
def large() -> tuple[ClientSelection, SelectionPlan]:
    problem = ClientSelection.random(num_servers=4, num_clients=150, picks=5, rounds=120, seed=1)
    return problem, edgeopt.solve(problem, "random", seed=1).solution


def legend_labels(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line(ax: Any, label: str) -> Any:
    return next(line for line in ax.get_lines() if line.get_label() == label)


# --- rounds -------------------------------------------------------------------------------------------------------


def test_registered_pictures_draw(hand_made: Any):
    """The report's pictures of a selection plan exist, draw, and are the rounds and the deliveries."""
    pictures = SOLUTION_PICTURES["client-selection"]
    assert [function for _, function in pictures] == ["plot_selection_rounds", "plot_selection_fairness"]
    for caption, function in pictures:
        assert caption
        draw_solution(function, *hand_made).figure.canvas.draw()


@pytest.mark.parametrize("draw", [plot_selection_rounds, plot_selection_fairness])
def test_given_axes_are_drawn_on(draw: Any, hand_made: Any):
    """Given axes are used and returned."""
    ax = Figure().add_subplot()
    assert draw(*hand_made, ax) is ax


def test_conflicts_are_those_of_the_report(large: Any):
    """Picks and conflicts, counted per round and server, are the report's."""
    problem, plan = large
    picked, conflict = picks_and_conflicts(problem, plan)
    np.testing.assert_array_equal(conflict.sum(axis=2), problem.report(plan).conflicts)
    assert (picked.sum(axis=2) == problem.picks).all()
    assert (picked | ~conflict).all()


def test_every_pick_is_a_box(hand_made: Any):
    """Boxes lie in their round and client, in their server's colour; two in one cell share its width, server 0 first."""
    ax = plot_selection_rounds(*hand_made)
    boxes = [collection for collection in ax.collections if isinstance(collection, PolyCollection)]
    assert [collection.get_label() for collection in boxes] == ["server 0", "server 1"]
    spans = []
    for server, collection in enumerate(boxes):
        np.testing.assert_allclose(collection.get_facecolor()[0][:3], to_rgb(COLOURS[server]))
        corners = [path.vertices for path in collection.get_paths()]
        found = [(round(float(v[:, 0].mean())), round(float(v[:4, 1].mean()))) for v in corners]
        expected = [(0, 1), (1, 0), (2, 1)] if server == 0 else [(0, 1), (1, 3), (2, 2)]
        assert sorted(found) == expected
        spans.append(sorted((float(v[:, 0].min()), float(v[:, 0].max())) for v in corners))
    np.testing.assert_allclose(spans[0], [(-0.43, 0.0), (0.57, 1.43), (1.57, 2.43)])
    np.testing.assert_allclose(spans[1], [(0.0, 0.43), (0.57, 1.43), (1.57, 2.43)])


def test_conflicts_are_crosses(hand_made: Any):
    """Both picks of client 1 and the pick of the busy client have a cross in the middle of their box, and no other."""
    ax = plot_selection_rounds(*hand_made)
    crosses = [c for c in ax.collections if isinstance(c, PathCollection) and c.get_label() == "conflict"]
    offsets = np.asarray(crosses[0].get_offsets())
    np.testing.assert_allclose(offsets[np.argsort(offsets[:, 0])], [(-0.215, 1), (0.215, 1), (1.0, 3)])
    assert "6 picks, 50.0 % in conflict" in ax.get_title(loc="left")
    assert legend_labels(ax) == ["server 0", "server 1", "conflict"]


def test_no_conflict_no_cross(hand_made: Any):
    """A plan without conflicts has no cross and no entry for it."""
    problem, _ = hand_made
    ax = plot_selection_rounds(problem, SelectionPlan([[[0], [1]], [[1], [2]], [[0], [3]]]))
    assert legend_labels(ax) == ["server 0", "server 1"]


def test_large_problems_are_heat_maps(large: Any):
    """One picture of at most so many blocks; white where nobody is picked, and both colours in the legend."""
    ax = plot_selection_rounds(*large)
    image = np.asarray(ax.get_images()[0].get_array())
    assert image.shape == (MAX_BLOCKS, MAX_BLOCKS, 3)
    assert legend_labels(ax) == ["picked, no conflict", "picked, conflict"]
    picked, _ = picks_and_conflicts(*large)
    rows = np.linspace(0, 150, MAX_BLOCKS + 1).round().astype(int)
    columns = np.linspace(0, 120, MAX_BLOCKS + 1).round().astype(int)
    some = np.add.reduceat(np.add.reduceat(picked.any(axis=1).T.astype(int), rows[:-1], 0), columns[:-1], 1) > 0
    np.testing.assert_array_equal((image < 1).any(axis=2), some)


def test_heat_maps_of_single_cells(large: Any):
    """Where a block is one client and round, its colour says what happened."""
    problem, plan = large
    few = problem.replace(rounds=80)
    part = SelectionPlan(plan.picks[:80])
    ax = plot_selection_rounds(few, part)
    image = np.asarray(ax.get_images()[0].get_array())
    picked, conflict = (mask.any(axis=1).T for mask in picks_and_conflicts(few, part))
    rows = np.linspace(0, 150, MAX_BLOCKS + 1).round().astype(int)
    single = np.flatnonzero(np.diff(rows) == 1)
    good, bad = (picked & ~conflict)[rows[single]], conflict[rows[single]]
    np.testing.assert_allclose(image[single][good], np.tile(to_rgb(PICKED), (good.sum(), 1)), atol=1e-9)
    np.testing.assert_allclose(image[single][bad], np.tile(to_rgb(CONFLICT), (bad.sum(), 1)), atol=1e-9)


# --- fairness -----------------------------------------------------------------------------------------------------


def test_deliveries_of_one_plan(hand_made: Any):
    """Bars are the deliveries, most first; the title has Jain's index and who is left out."""
    problem, plan = hand_made
    ax = plot_selection_fairness(problem, plan)
    assert [bar.get_height() for bar in ax.patches] == [1, 1, 1, 0]
    assert "index 0.75, 1 of 4 clients never" in ax.get_title(loc="left")
    assert ax.get_lines()[0].get_ydata()[0] == 0.75


def test_deliveries_of_several_plans(large: Any):
    """Every plan has a line through its sorted deliveries, and its index in the legend."""
    problem, plan = large
    plans = {"random": plan, "fastest": edgeopt.solve(problem, "fastest").solution}
    ax = plot_selection_fairness(problem, plans)
    for name, one in plans.items():
        report = problem.report(one)
        drawn = line(ax, f"{name}: {report.jain_index:.2f}")
        np.testing.assert_array_equal(drawn.get_ydata(), np.sort(report.deliveries)[::-1])


# --- studies ------------------------------------------------------------------------------------------------------


def row(solver: str, weight: float, seed: int, jain: float, conflicts: float) -> dict[str, Any]:
    values = dict.fromkeys(METRICS, 0.0) | {"jain_index": jain, "conflict_rate": conflicts}
    return {"solver": solver, "fairness_weight": weight, "seed": seed, **values}


def test_frontier():
    """A solver's line goes through the means over seeds by rising weight, with the weights as labels; others are points."""
    rows = [
        row("rl-crp", 2.0, 0, 0.8, 0.3), row("rl-crp", 2.0, 1, 0.6, 0.4), row("rl-crp", 0.5, 0, 0.5, 0.2),
        row("random", 1.0, 0, 0.9, 0.4),
    ]  # fmt: skip
    ax = plot_selection_frontier(rows)
    drawn = line(ax, "rl-crp")
    np.testing.assert_allclose(drawn.get_xdata(), [0.5, 0.7])
    np.testing.assert_allclose(drawn.get_ydata(), [20, 35])
    np.testing.assert_allclose(line(ax, "random").get_xydata(), [[0.9, 40]])
    assert [text.get_text() for text in ax.texts] == ["0.5", "2"]
    with pytest.raises(EdgeOptError, match="rows: expected at least one"):
        plot_selection_frontier([])


def test_calibration():
    """Bins hold equally many; each has its mean forecast, its share and the half width of its interval."""
    chance = np.linspace(0.001, 0.999, 1000)
    happened = np.arange(1000) % 4 == 0
    mean, share, half = calibration(chance, happened, 5)
    np.testing.assert_allclose(mean, [0.1, 0.3, 0.5, 0.7, 0.9], atol=0.002)
    np.testing.assert_allclose(share, 0.25)
    np.testing.assert_allclose(half, 1.96 * np.sqrt(0.25 * 0.75 / 200))
    ax = plot_forecast_calibration({"ours": (chance, happened), "base rate": (np.full(1000, 0.25), happened)}, bins=5)
    assert legend_labels(ax) == [
        f"{name}: {log_loss(given, happened):.3f}"
        for name, given in (("ours", chance), ("base rate", np.full(1000, 0.25)))
    ]
    bars = {bar.get_label().split(":")[0]: bar for bar in ax.containers}
    np.testing.assert_allclose(bars["ours"][0].get_ydata(), share)
    np.testing.assert_allclose(bars["base rate"][0].get_xydata(), [[0.25, 0.25]])


@pytest.mark.parametrize(("value", "factor"), [("reward", 1.0), ("conflict_rate", 100.0)])
def test_training(value: Any, factor: float):
    """Bold lines are means of ten iterations, drawn at the last of them."""
    pytest.importorskip("torch")
    from edgeopt.solvers.client_selection.learner import Iteration

    run = [Iteration(k, 0.1 * k, 1 / k) for k in range(1, 31)]
    ax = plot_selection_training({"rl-crp": run}, value=value)
    drawn = line(ax, "rl-crp")
    heights = factor * np.array([getattr(iteration, value) for iteration in run])
    np.testing.assert_array_equal(drawn.get_xdata(), np.arange(10, 31))
    np.testing.assert_allclose(drawn.get_ydata(), [heights[k : k + 10].mean() for k in range(21)])
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), heights)
