"""Pictures of split training: what is drawn is what the problem says."""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation import comparison_rows
from edgeopt.evaluation.plots.solutions import SOLUTION_PICTURES, draw_solution
from edgeopt.evaluation.plots.split.decisions import plot_split_decisions
from edgeopt.evaluation.plots.split.descent import descent_paths, plot_split_descent
from edgeopt.evaluation.plots.split.heterogeneity import heterogeneity_rows, plot_split_heterogeneity
from edgeopt.evaluation.plots.split.latency import LABELS, plot_split_latency
from edgeopt.evaluation.plots.split.target import plot_split_target, target_instances
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.problems.split_training.report import STAGES


@pytest.fixture(scope="module")
def problem() -> SplitTraining:
    return SplitTraining.random(num_devices=4, num_layers=5, interval=3, seed=1)


@pytest.fixture(scope="module")
def plan() -> SplitPlan:
    return SplitPlan(batch_size=[9, 4, 16, 7], cut_layer=[1, 3, 2, 3], aggregation_interval=3)


def legend_labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def line(ax: Axes, label: str) -> Any:
    return next(line for line in ax.get_lines() if line.get_label() == label)


# --- a solution ---------------------------------------------------------------------------------------------------


def test_registered_pictures_draw(problem: SplitTraining, plan: SplitPlan):
    """The report's pictures of a split plan exist, draw, and are the latency and the decisions."""
    pictures = SOLUTION_PICTURES["split-training"]
    assert [function for _, function in pictures] == ["plot_split_latency", "plot_split_decisions"]
    for caption, function in pictures:
        assert caption
        draw_solution(function, problem, plan).figure.canvas.draw()


@pytest.mark.parametrize("draw", [plot_split_latency, plot_split_decisions])
def test_given_axes_are_drawn_on(draw: Any, problem: SplitTraining, plan: SplitPlan):
    """Given axes are used and returned."""
    ax = Figure().add_subplot()
    assert draw(problem, plan, ax) is ax


def test_latency_bars_are_the_stages(problem: SplitTraining, plan: SplitPlan):
    """Every bar is as long as its stage; stages of a device do not overlap; the last one ends where the round ends."""
    ax, report = plot_split_latency(problem, plan), problem.report(plan)
    assert tuple(LABELS) == STAGES
    starts, widths = np.zeros((4, 5)), np.zeros((4, 5))
    for stage, bars in enumerate(ax.containers[:5]):
        assert bars.get_label() == STAGES[stage]
        for device, bar in enumerate(bars):
            starts[device, stage], widths[device, stage] = bar.get_x(), bar.get_width()
    np.testing.assert_allclose(widths, report.stage_s)
    ends = starts + widths
    assert (starts[:, 1:] >= ends[:, :-1] - 1e-12).all()
    np.testing.assert_allclose(ends[:, 1].max(), report.forward_s)
    assert (starts[:, 2] >= report.forward_s - 1e-12).all()
    np.testing.assert_allclose(np.sort(starts[:, 2])[1:], np.sort(ends[:, 2])[:-1])  # one device after another
    np.testing.assert_allclose(starts[:, 3], report.forward_s + report.server_s)
    np.testing.assert_allclose(ends.max(), report.round_s)


def test_latency_marks_the_stragglers(problem: SplitTraining, plan: SplitPlan):
    """Two outlined boxes are around those whom the server and the others wait for, as long as their phases."""
    ax, report = plot_split_latency(problem, plan), problem.report(plan)
    boxes = [bars[0] for bars in ax.containers if bars.get_label() == "straggler"]
    middle = [box.get_y() + box.get_height() / 2 for box in boxes]
    np.testing.assert_allclose(middle, [report.forward_straggler, report.backward_straggler])
    np.testing.assert_allclose([box.get_width() for box in boxes], [report.forward_s, report.backward_s])
    assert legend_labels(ax) == [*STAGES, "straggler"]


def test_latency_of_many_devices_keeps_the_stragglers():
    """Of a hundred devices forty are shown, and the stragglers are among them."""
    problem = SplitTraining.random(num_devices=100, num_layers=5, seed=3)
    plan = SplitPlan(batch_size=np.full(100, 8), cut_layer=np.full(100, 2), aggregation_interval=8)
    ax, report = plot_split_latency(problem, plan), problem.report(plan)
    shown = [int(label.get_text()) for label in ax.get_yticklabels()]
    assert len(shown) == 40
    assert {report.forward_straggler, report.backward_straggler} <= set(shown)
    assert "40 slowest of 100" in ax.get_ylabel()


def test_decisions_are_the_plan(problem: SplitTraining, plan: SplitPlan):
    """Bars are the batch sizes, slowest device first; equal cuts have equal colours, others differ; labels are cuts."""
    ax = plot_split_decisions(problem, plan)
    order = np.argsort(problem.device_flops)
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(device) for device in order]
    bars = ax.patches
    assert [bar.get_height() for bar in bars] == plan.batch_size[order].tolist()
    colour = {int(cut): to_hex(bar.get_facecolor()) for cut, bar in zip(plan.cut_layer[order], bars, strict=True)}
    assert len(set(colour.values())) == 3
    assert [colour[cut] for cut in plan.cut_layer[order]] == [to_hex(bar.get_facecolor()) for bar in bars]
    assert [text.get_text() for text in ax.texts] == [str(cut) for cut in plan.cut_layer[order]]


def test_decisions_show_the_limits(problem: SplitTraining, plan: SplitPlan):
    """The small lines are at the largest batch sizes that the problem allows at these cuts."""
    ax = plot_split_decisions(problem, plan)
    order = np.argsort(problem.device_flops)
    heights = [segment[0][1] for segment in ax.collections[0].get_segments()]
    assert heights == problem.batch_limit[order, plan.cut_layer[order] - 1].tolist()


def test_decisions_of_many_devices_have_no_labels():
    """With many devices numbers would overlap: there are none."""
    problem = SplitTraining.random(num_devices=60, num_layers=5, seed=3)
    ax = plot_split_decisions(problem, SplitPlan(batch_size=np.full(60, 8), cut_layer=np.full(60, 2)))
    assert not ax.texts
    assert "60 devices" in ax.get_xlabel()


# --- the descent --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paths(problem: SplitTraining) -> dict[int, Any]:
    return descent_paths(problem)


@pytest.mark.parametrize("interval", [3, (1, 20)])
@pytest.mark.parametrize("seed", [1, 2])
def test_descents_fall(interval: int | tuple[int, int], seed: int):
    """Every descent falls or stays at each step; starts are numbered by their cut layers."""
    found = descent_paths(SplitTraining.random(num_devices=12, num_layers=15, interval=interval, seed=seed))
    assert found
    assert set(found) <= set(range(1, 16))
    for path in found.values():
        assert (np.diff(path) <= 1e-9 * path[:-1]).all()


def test_descent_lines(paths: dict[int, Any]):
    """Each line is its path in percent above the best end, or above a given bound."""
    best = min(path.min() for path in paths.values())
    for bound, base in ((None, best), (0.9 * best, 0.9 * best)):
        ax = plot_split_descent(paths, bound=bound)
        for cut, path in paths.items():
            drawn = line(ax, str(cut))
            np.testing.assert_array_equal(drawn.get_xdata(), np.arange(path.size))
            np.testing.assert_allclose(drawn.get_ydata(), 100 * (path / base - 1), atol=1e-9)
    plot_split_descent({}).figure.canvas.draw()


# --- sweeps -------------------------------------------------------------------------------------------------------


def test_target_instances(problem: SplitTraining):
    """The problems differ in the target alone, in least feasible targets."""
    instances = target_instances(problem, (1.5, 4.0))
    assert [p.target / problem.least_target for p in instances.values()] == pytest.approx([1.5, 4.0])
    assert all(p.replace(target=problem.target) == problem for p in instances.values())


def test_target_picture(problem: SplitTraining):
    """A solver's line has its objectives over the targets, and the least target is marked."""
    rows, _ = comparison_rows(target_instances(problem, (1.5, 4.0)), ["hasfl"], executor="serial", display=False)
    ax = plot_split_target(rows)
    drawn = line(ax, "hasfl")
    np.testing.assert_allclose(drawn.get_xdata(), [1.5 * problem.least_target, 4 * problem.least_target])
    np.testing.assert_allclose(drawn.get_ydata(), [row["objective"] for row in rows])
    assert drawn.get_ydata()[0] > drawn.get_ydata()[1]
    assert any(np.allclose(other.get_xdata(), problem.least_target) for other in ax.get_lines())
    ax.figure.canvas.draw()


def fake_row(solver: str, level: float, seed: int, objective: float | None) -> dict[str, Any]:
    return {
        "solver": solver, "heterogeneity": level, "instance": f"{level} {seed}", "seed": seed,
        "feasible": objective is not None, "objective": objective,
    }  # fmt: skip


def test_heterogeneity_lines():
    """Lines are medians over seeds of ratios on the same problem; what is not solved by both does not count."""
    rows = [
        fake_row("hasfl", 0.0, 0, 10.0), fake_row("fixed", 0.0, 0, 20.0),
        fake_row("hasfl", 0.0, 1, 100.0), fake_row("fixed", 0.0, 1, 400.0),
        fake_row("hasfl", 1.0, 0, 5.0), fake_row("fixed", 1.0, 0, 50.0),
        fake_row("hasfl", 1.0, 1, 5.0), fake_row("fixed", 1.0, 1, None),
        fake_row("hasfl", 1.0, 2, None), fake_row("fixed", 1.0, 2, 1.0),
    ]  # fmt: skip
    ax = plot_split_heterogeneity(rows)
    drawn = line(ax, "fixed")
    assert drawn.get_xdata().tolist() == [0.0, 1.0]
    assert drawn.get_ydata().tolist() == [3.0, 10.0]
    assert line(ax, "hasfl").get_ydata()[0] == 1.0
    ax.figure.canvas.draw()
    with pytest.raises(EdgeOptError, match="reference = 'exact': expected a solver with a solution"):
        plot_split_heterogeneity(rows, reference="exact")


def test_heterogeneity_rows():
    """The sweep solves one problem for each level and seed with each solver, the ones `SplitTraining.random` makes."""
    rows = heterogeneity_rows((0.0, 1.0), (4, 5), ["hasfl"], num_devices=3)
    assert [(row["heterogeneity"], row["seed"]) for row in rows] == [(0.0, 4), (1.0, 4), (0.0, 5), (1.0, 5)]
    for row in rows:
        problem = SplitTraining.random(num_devices=3, heterogeneity=row["heterogeneity"], seed=row["seed"])
        assert row["facts"] == problem.describe()
