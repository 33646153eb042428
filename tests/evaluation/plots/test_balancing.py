"""The picture of expert balancing: heights of bars are the loads of devices."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import edgeopt
from edgeopt.evaluation.plots import plot_balance
from edgeopt.evaluation.plots.solutions import SOLUTION_PICTURES, draw_solution
from edgeopt.problems import ExpertBalancing


def test_bars_are_loads_and_the_worst_layer_is_shown():
    """Pieces add up to the load of each device, most load first, in the layer whose largest load is furthest above its mean."""
    problem = ExpertBalancing(load=[[1.0, 1.0, 1.0], [9.0, 1.0, 1.0]], slots=[2, 2])
    solution = edgeopt.solve(problem, "eplb").solution
    ax = Figure().add_subplot()
    assert plot_balance(problem, solution, ax) is ax
    report = problem.report(solution)
    layer = int(np.argmax(report.largest / problem.mean_load))
    tops = np.sum([[bar.get_height() for bar in bars] for bars in ax.containers], axis=0)
    assert tops == pytest.approx(np.sort(report.device_load[layer])[::-1])
    assert f"layer {layer} of 2" in ax.get_title(loc="left")


def test_many_devices_and_the_report_draw():
    """With more devices than labels fit it draws, too; the report knows the picture."""
    problem = ExpertBalancing.random(num_devices=48, num_experts=96)
    ((caption, function),) = SOLUTION_PICTURES[problem.kind]
    assert caption
    ax = draw_solution(function, problem, edgeopt.solve(problem, "eplb").solution)
    ax.figure.canvas.draw()
    assert "48 devices" in ax.get_xlabel()
