"""Pictures: they draw what the data says, on given axes or their own, without pyplot."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import edgeopt
from edgeopt.errors import EdgeOptError
from edgeopt.evaluation import comparison_rows
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.plots.caching.placement import plot_placement
from edgeopt.evaluation.plots.comparison.bounds import plot_bounds
from edgeopt.evaluation.plots.comparison.gap_against_time import plot_gap_against_time
from edgeopt.evaluation.plots.comparison.objective_against import plot_objective_against
from edgeopt.evaluation.plots.comparison.performance_profile import plot_performance_profile
from edgeopt.problems import ExpertCaching, Placement
from tests.evaluation.fake_solvers import Fake, tiny_problem


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    problems = {"a": tiny_problem(), "b": tiny_problem(2.0)}
    return comparison_rows(problems, ["random", Fake(), Fake("raise")], seeds=(0, 1, 2), executor="serial")[0]


DRAWINGS: list[Callable[..., Any]] = [
    plot_bounds,
    plot_gap_against_time,
    plot_performance_profile,
    lambda rows, ax=None: plot_performance_profile(rows, ax, metric="time"),
    lambda rows, ax=None: plot_objective_against(rows, "experts", ax),
]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_axes_given_and_new(draw: Callable[..., Any], rows: list[Row]):
    """Given axes are drawn on; without, there is a figure that can be saved."""
    ax = Figure().add_subplot()
    assert draw(rows, ax) is ax
    assert ax.get_xlabel()
    figure = draw(rows).figure
    figure.canvas.draw()


@pytest.mark.parametrize("draw", [plot_bounds, plot_gap_against_time, plot_performance_profile])
def test_nothing_solved_is_still_a_picture(draw: Callable[..., Any], rows: list[Row]):
    """Failed runs alone draw empty axes instead of failing."""
    draw([row for row in rows if row["status"] == "error"]).figure.canvas.draw()


def test_profile_line_has_the_data(rows: list[Row]):
    """The line of the solver that always finds the best is at 100 % from the left edge on."""
    ax = plot_performance_profile(rows)
    line = next(line for line in ax.get_lines() if line.get_label() == "fake")
    assert line.get_xdata()[1] == 0.0
    assert line.get_ydata()[1] == 100.0


def test_bounds_show_objective(rows: list[Row]):
    """One bar per solver with a solution, from objective to bound."""
    ax = plot_bounds([row for row in rows if row["instance"] == "a"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["random", "fake"]
    bar = ax.patches[1]
    assert (bar.get_x(), bar.get_width()) == (3.0, 7.0)


def test_objective_against_needs_numbers(rows: list[Row]):
    """A fact that is not there is an error that names it."""
    with pytest.raises(EdgeOptError, match="'colour'"):
        plot_objective_against(rows, "colour")


def test_placement_small():
    """A small placement shows each expert: dark where it is cached."""
    problem, placement = tiny_problem(), Placement(np.eye(3, dtype=bool))
    image = plot_placement(problem, placement).get_images()[0]
    np.testing.assert_array_equal(image.get_array(), 100 * np.eye(3))


@pytest.mark.parametrize(("num_experts", "columns"), [(256, 64), (65, 64)])
def test_placement_large(num_experts: int, columns: int):
    """Many experts are cut into blocks; the shares of the blocks add up to the copies."""
    problem = ExpertCaching.from_facility(np.ones((2, 2)), np.ones((2, num_experts)), np.ones(num_experts), [9, 20])
    solution = edgeopt.solve(problem, "random").solution
    shares = np.asarray(plot_placement(problem, solution).get_images()[0].get_array()) / 100
    assert shares.shape == (2, columns)
    counts = np.bincount(np.arange(num_experts) * 64 // num_experts)
    np.testing.assert_allclose(shares @ counts, solution.cached.sum(axis=1))


def test_no_pyplot():
    """Drawing loads no pyplot: nobody's backend or figure list is touched. Importing the package loads no matplotlib."""
    code = (
        "import sys, edgeopt.evaluation as e\n"
        "assert 'matplotlib' not in sys.modules and 'pandas' not in sys.modules\n"
        "from edgeopt.evaluation.plots.comparison.bounds import plot_bounds\n"
        "plot_bounds([]).figure.canvas.draw()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pictures_of_a_folder_are_drawn_in_silence(tmp_path: Path):
    """Nothing but what was written is said, not even by matplotlib about a home that it cannot write."""
    comparison_rows({"a": tiny_problem()}, [Fake()], executor="serial", out=tmp_path)
    script = Path(__file__).parents[3] / "docs" / "make_images.py"
    done = subprocess.run(
        [sys.executable, script, "--rows", tmp_path, "--out", tmp_path / "plots"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"MPLCONFIGDIR": str(script)},  # a file
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"a-bounds.png", "a-gap-against-time.png"}
