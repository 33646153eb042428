"""Pictures of model download: they draw what the plan and the problem say, on given axes or their own."""

from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

import edgeopt
from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.plots.download.bandwidth_bars import plot_bandwidth_bars
from edgeopt.evaluation.plots.download.rolling import plot_rolling
from edgeopt.evaluation.plots.download.throughput import download_throughput, plot_download_throughput
from edgeopt.evaluation.plots.download.timeline import plot_download_timeline
from edgeopt.evaluation.plots.solutions import SOLUTION_PICTURES, draw_solution
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.solvers.model_download import poisson_arrivals, rolling_horizon


def two_users() -> tuple[ModelDownload, DownloadPlan]:
    """Two layers of 4 Mbit and a second of computing each; user 0 gets 4 Mbit/s, user 1 is refused."""
    problem = ModelDownload(
        layer_indptr=[0, 2],
        layer_bits=4e6,
        layer_flops=1e9,
        model_names=["two layers"],
        deadline_s=[3.5, 3.0],
        cycles_per_flop=1.0,
        min_frequency_hz=1e8,
        max_frequency_hz=1e9,
        spectral_efficiency=4.0,
        bandwidth_hz=1e6,
    )
    return problem, DownloadPlan(model=[0, -1], bandwidth_hz=[1e6, 0.0], frequency_hz=[1e9, 1e9])


def spans(ax: Any) -> list[list[tuple[float, float]]]:
    """Return (start, end) of every bar, one list for each drawn row, in the order of drawing."""
    rows = [collection for collection in ax.collections if isinstance(collection, PolyCollection)]
    return [
        [(float(path.vertices[:, 0].min()), float(path.vertices[:, 0].max())) for path in row.get_paths()]
        for row in rows
    ]


def bars(ax: Any) -> list[tuple[float, float, tuple[float, ...]]]:
    """Return (left end, height, colour) of every upright bar, from left to right."""
    found = [
        (float(path.vertices[:, 0].min()), float(path.vertices[:, 1].max()), tuple(row.get_facecolor()[0]))
        for row in ax.collections
        for path in row.get_paths()
    ]
    return sorted(found)


def deadlines(ax: Any) -> list[float]:
    return [float(line.get_xdata()[0]) for line in ax.get_lines()]


def names(ax: Any) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


@pytest.fixture(scope="module")
def solved() -> tuple[ModelDownload, DownloadPlan, DownloadPlan]:
    problem = ModelDownload.random(num_users=20, bandwidth_hz=100e6, energy=None, seed=1)
    slide, first_then = (edgeopt.solve(problem, name).solution for name in ("slide", "download-then-infer"))
    return problem, slide, first_then


def test_timeline_by_hand():
    """Layers arrive at 1 and 2 s and run from 1 to 2 and from 2 to 3 s; the deadline mark is at 3.5 s."""
    ax = plot_download_timeline(*two_users())
    assert spans(ax) == [[(0.0, 1.0), (1.0, 2.0)], [(1.0, 2.0), (2.0, 3.0)]]
    assert deadlines(ax) == [3.5]
    assert names(ax) == ["user 0"]
    assert ax.get_title(loc="left") == "1 of 2 users done in time"


def test_timeline_of_two_plans_by_hand():
    """Download first, infer afterwards: the second lane of the same plan runs its layers from 2 to 3 and from 3 to 4 s."""
    problem, plan = two_users()
    nobody = DownloadPlan.refuse_all(2)
    ax = plot_download_timeline(problem, {"slide": plan, "download-then-infer": plan, "nobody": nobody})
    assert spans(ax)[1] == [(1.0, 2.0), (2.0, 3.0)]
    assert spans(ax)[2:] == [[(0.0, 1.0), (1.0, 2.0)], [(2.0, 3.0), (3.0, 4.0)]]
    assert names(ax) == ["user 0   slide", "download-then-infer", "nobody"]
    assert [text.get_text().strip() for text in ax.texts] == ["refused"]
    assert deadlines(ax) == [3.5] * 3


def test_timeline_agrees_with_the_simulation(solved: Any):
    """Every lane ends when the simulation says that its user is done, and no lane of an admitted user is missing."""
    problem, slide, _ = solved
    users = np.flatnonzero(slide.admitted)[:5]
    drawn = spans(plot_download_timeline(problem, slide, users=users))
    assert len(drawn) == 10
    done = problem.simulate(slide).completion_s[users]
    np.testing.assert_allclose([row[-1][1] for row in drawn[1::2]], done)
    assert [len(row) for row in drawn[::2]] == problem.num_layers[slide.model[users]].tolist()


def test_timeline_of_many_users_shows_some():
    """At most 24 lanes are drawn, and the title says so; with two plans they are shared."""
    problem = ModelDownload.random(num_users=200, bandwidth_hz=2e9, energy=None)
    plan = edgeopt.solve(problem, "slide").solution
    assert plan.num_admitted > 24
    ax = plot_download_timeline(problem, plan)
    assert len(names(ax)) == 24
    assert f"{plan.num_admitted} of 200 users done in time" in ax.get_title(loc="left")
    assert "shown: 24" in ax.get_title(loc="left")
    assert len(names(plot_download_timeline(problem, {"a": plan, "b": plan}))) == 24


def test_bandwidth_bars_have_the_plan(solved: Any):
    """One bar per admitted user, widest first, as high as its MHz, in one colour for each model."""
    problem, slide, _ = solved
    ax = plot_bandwidth_bars(problem, slide)
    found = bars(ax)
    np.testing.assert_allclose([high for _, high, _ in found], -np.sort(-slide.bandwidth_hz[slide.admitted] / 1e6))
    users = [int(label.get_text()) for label in ax.get_xticklabels()]
    assert sorted(users) == np.flatnonzero(slide.admitted).tolist()
    assert len({colour for _, _, colour in found}) == len(set(slide.model[slide.admitted].tolist()))
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(legend) == sorted({problem.model_names[i] for i in slide.model[slide.admitted]})
    assert ax.get_title(loc="left").startswith(f"{len(found)} of 20 users admitted, ")


def test_bandwidth_bars_of_many_models():
    """More models than colours: the commonest keep theirs, the others share grey; many users lose their labels."""
    problem = ModelDownload(
        layer_indptr=np.arange(10),
        layer_bits=np.ones(9),
        layer_flops=np.zeros(9),
        model_names=[f"model {i}" for i in range(9)],
        deadline_s=np.ones(50),
        cycles_per_flop=np.ones(50),
        min_frequency_hz=np.ones(50),
        max_frequency_hz=np.ones(50),
        spectral_efficiency=np.ones(50),
        bandwidth_hz=1e9,
    )
    model = np.minimum(np.arange(50) // 5, 8)  # ten users of model 8, five of every other
    ax = plot_bandwidth_bars(
        problem, DownloadPlan(model=model, bandwidth_hz=1e6 * np.arange(1, 51), frequency_hz=np.ones(50))
    )
    assert len(bars(ax)) == 50
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["model 8", *(f"model {i}" for i in range(5)), "3 other models"]
    assert ax.get_xlabel() == "50 users, widest band first"


@pytest.mark.parametrize("draw", [plot_download_timeline, plot_bandwidth_bars])
def test_nobody_admitted_is_still_a_picture(draw: Any):
    """A plan that refuses all draws no bar of any length, and can be rendered."""
    problem, _ = two_users()
    ax = draw(problem, DownloadPlan.refuse_all(2))
    ax.figure.canvas.draw()
    assert not ax.patches
    assert not any(len(bars.get_paths()) for bars in ax.collections)


def test_axes_given(solved: Any):
    """Given axes are drawn on."""
    problem, slide, _ = solved
    result = rolling_horizon(problem, 0.0)
    rows = [{"solver": "slide", "seed": 0, "num_users": n, "done": n} for n in (1, 2)]
    for draw, arguments in (
        (plot_download_timeline, (problem, slide)),
        (plot_bandwidth_bars, (problem, slide)),
        (plot_download_throughput, (rows,)),
        (plot_rolling, (result,)),
    ):
        ax = Figure().add_subplot()
        assert draw(*arguments, ax) is ax
        assert ax.get_xlabel()


def test_registered_for_the_report(solved: Any):
    """The report draws both pictures of a plan."""
    problem, slide, _ = solved
    pictures = SOLUTION_PICTURES["model-download"]
    assert [function for _, function in pictures] == ["plot_download_timeline", "plot_bandwidth_bars"]
    for _, function in pictures:
        draw_solution(function, problem, slide).figure.canvas.draw()


def test_throughput_rows():
    """More bandwidth never does harm to `slide`, and the rows say what the plans say."""
    rows = download_throughput("bandwidth_hz", [50e6, 200e6], num_users=12, seeds=(0, 1))
    assert [(row["bandwidth_hz"], row["seed"], row["solver"]) for row in rows[:3]] == [
        (50e6, 0, "slide"),
        (50e6, 0, "download-then-infer"),
        (50e6, 1, "slide"),
    ]
    done = {(row["solver"], row["seed"], row["bandwidth_hz"]): row["done"] for row in rows}
    for seed in (0, 1):
        assert done["slide", seed, 50e6] <= done["slide", seed, 200e6]
        assert done["slide", seed, 50e6] >= done["download-then-infer", seed, 50e6]
    problem = ModelDownload.random(num_users=12, bandwidth_hz=50e6)
    assert done["slide", 0, 50e6] == edgeopt.solve(problem, "slide").objective
    assert all(row["share_done"] == row["done"] / 12 for row in rows)


@pytest.mark.parametrize(("x", "value", "label"), [("deadline_s", 2.0, "deadline, s"), ("num_users", 9, "users")])
def test_throughput_against(x: Any, value: float, label: str):
    """Deadline and number of users can vary too, and name the axis."""
    (row,) = download_throughput(x, [value], ["slide"], energy=None)
    assert row["users"] == (9 if x == "num_users" else 30)
    assert plot_download_throughput([row]).get_xlabel() == label


def test_throughput_draws_the_median():
    """A line per solver through the medians, in MHz; the band spans the seeds."""
    rows = [
        {"solver": solver, "seed": seed, "bandwidth_hz": 1e6 * mhz, "done": mhz * factor + seed}
        for mhz in (100, 200)
        for solver, factor in (("slide", 2), ("random", 1))
        for seed in (0, 1, 2)
    ]
    ax = plot_download_throughput(rows)
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(lines["slide"].get_xydata(), [[100, 201], [200, 401]])
    np.testing.assert_allclose(lines["random"].get_ydata(), [101, 201])
    assert ax.get_xlabel() == "bandwidth, MHz"


def test_throughput_needs_its_columns():
    """Rows of something else, and an unknown number to vary, are errors that name what was expected."""
    with pytest.raises(EdgeOptError, match="bandwidth_hz or deadline_s or num_users"):
        plot_download_throughput([{"solver": "slide", "done": 3}])
    with pytest.raises(EdgeOptError, match="'colour'"):
        download_throughput("colour", [1.0])  # type: ignore[arg-type]


def test_throughput_refuses_what_it_would_not_do():
    """Users are whole, and what varies cannot be fixed as well."""
    with pytest.raises(EdgeOptError, match=r"num_users = 1\.5: expected an integer >= 1"):
        download_throughput("num_users", [1.5])
    for x in ("num_users", "deadline_s", "bandwidth_hz"):
        with pytest.raises(EdgeOptError, match=f"{x}: it varies, expected it among no other arguments"):
            download_throughput(x, [5], **{x: 3})  # type: ignore[arg-type]


def test_timeline_of_nothing():
    """No plans, and users that there are not, are errors that say so."""
    problem, plan = two_users()
    with pytest.raises(EdgeOptError, match="plans: expected at least one plan"):
        plot_download_timeline(problem, {})
    for user in (99, -1, 0.5):
        with pytest.raises(EdgeOptError, match=rf"users\[1\] = {user}: expected an integer from 0 to 1"):
            plot_download_timeline(problem, plan, users=[0, user])


def test_rolling_draws_the_steps():
    """The filled steps reach the utilisation of the band, and the queue line is the number of waiting requests."""
    problem = ModelDownload.random(num_users=40, bandwidth_hz=100e6, energy=None)
    result = rolling_horizon(problem, poisson_arrivals(40, 30.0))
    ax = plot_rolling(result)
    queue = next(axes for axes in ax.figure.axes if axes is not ax)
    line = next(line for line in queue.get_lines() if len(line.get_xdata()))
    np.testing.assert_array_equal(line.get_ydata(), result.num_waiting()[1])
    filled = ax.collections[0].get_paths()[0].vertices
    assert filled[:, 1].max() == pytest.approx(100 * result.bandwidth_in_use()[1].max() / problem.bandwidth_hz)
    assert f"{result.num_done} of 40 requests" in ax.get_title(loc="left")
