"""Pictures of training: curves over seeds, and the timeline of a round."""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.plots.training.curves import plot_training_curves
from edgeopt.evaluation.plots.training.round_timeline import (
    MAX_LANES,
    SERVER,
    STAGES,
    STRAGGLER,
    WAITING,
    plot_round_timeline,
)
from edgeopt.schedule import RoundPlan

pytest.importorskip("torch")
from edgeopt.training import History, RoundRecord
from edgeopt.training.costs.timing import PhaseTime

NAN = float("nan")


def rows(seconds: list[float], accuracy: list[float]) -> list[dict[str, float]]:
    return [
        {
            "round": round,
            "seconds": s,
            "accuracy": a,
            "bytes_up": 1e6 * s,
            "bytes_down": 3e6 * s,
            "energy_j": 2 * s,
            "carbon_g": s,
        }
        for round, (s, a) in enumerate(zip(seconds, accuracy, strict=True))
    ]


FIRST = rows([1, 2, 3], [0.1, NAN, 0.4])
SECOND = rows([2, 4, 6], [0.2, 0.5, 0.9])


def test_median_and_band_by_hand():
    """Between evaluations a seed keeps its last value; lines start where all seeds have one."""
    ax = plot_training_curves({"a": [FIRST, SECOND]})
    (line,), (band,) = ax.get_lines(), ax.collections
    assert line.get_xdata().tolist() == [2, 3, 4, 6]
    np.testing.assert_allclose(line.get_ydata(), [0.15, 0.3, 0.45, 0.65])
    assert line.get_drawstyle() == "steps-post"
    low, high = np.array([[0.1, 0.2], [0.2, 0.4], [0.4, 0.5], [0.4, 0.9]]).T
    corners = band.get_paths()[0].vertices
    for x, bottom, top in zip([2, 3, 4, 6], low + 0.2 * (high - low), low + 0.8 * (high - low), strict=True):
        heights = corners[corners[:, 0] == x, 1]
        assert np.isclose(heights, bottom).any()
        assert np.isclose(heights, top).any()


def test_one_run_and_generators():
    """A history or its rows on its own is one run, and runs may come from a generator."""
    for runs in (History(rows=FIRST), FIRST, (run for run in [FIRST]), (History(rows=FIRST),)):
        (line,) = plot_training_curves({"a": runs}).get_lines()
        assert line.get_xdata().tolist() == [1, 3]
    with pytest.raises(EdgeOptError, match=r"^histories: expected runs by label, got a list$"):
        plot_training_curves([FIRST])
    with pytest.raises(EdgeOptError, match=r"^a = 'run': expected a list$"):
        plot_training_curves({"a": "run"})


@pytest.mark.parametrize(
    ("x", "expected", "label"),
    [
        ("seconds", [1, 3], "virtual time, s"),
        ("bytes", [4, 12], "sent up and down, MB"),
        ("round", [1, 3], "rounds"),
        ("energy_j", [2, 6], "energy of the clients, J"),
        ("carbon_g", [1, 3], "CO2 of the clients' energy, g"),
    ],
)
def test_axes(x: Any, expected: list[float], label: str):
    """Each axis has its column and unit; one seed has no band; a history is as good as its rows."""
    ax = plot_training_curves({"one": [History(rows=FIRST)]}, x=x)
    assert ax.get_lines()[0].get_xdata().tolist() == expected
    assert ax.get_xlabel() == label
    assert not ax.collections


def test_labels_and_other_columns():
    """Every label has a line of its own, in its order; other columns may be drawn on given axes; None is left out."""
    given = Figure().add_subplot()
    later = [dict(row, accuracy=None if np.isnan(row["accuracy"]) else row["accuracy"]) for row in FIRST]
    ax = plot_training_curves({"a": [later], "b": [SECOND]}, y="energy_j", ax=given)
    assert ax is given
    assert [line.get_label() for line in ax.get_lines()] == ["a", "b"]
    assert ax.get_ylabel() == "energy_j"
    plot_training_curves({"a": [later]}).figure.canvas.draw()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "histories"),
        (({"a": []},), "a: expected runs with at least one value of 'accuracy'"),
        (({"a": [FIRST, rows([1], [NAN])]},), "a: expected runs"),
        (({"a": [FIRST]}, "days"), "x = 'days'"),
    ],
)
def test_nothing_to_draw(arguments: Any, message: str):
    """The message names the label, or the axis."""
    with pytest.raises(EdgeOptError, match=message):
        plot_training_curves(*arguments)


# --- a round ------------------------------------------------------------------------------------------------------


def phase(
    name: str, start: float, down: list[float], compute: list[float], up: list[float], server: list[float]
) -> Any:
    count = len(down)
    client = np.array(down) + compute + up
    return PhaseTime(
        name=name, start_s=start, seconds=float(client.max(initial=0) + sum(server)), entry=np.arange(count),
        down_s=np.array(down), compute_s=np.array(compute), up_s=np.array(up), served=np.arange(len(server)),
        server_s=np.array(server), energy_j=np.zeros(count),
    )  # fmt: skip


def record(*phases: Any, clients: Any = (4, 7), **changes: Any) -> RoundRecord:
    count = len(clients)
    fields: dict[str, Any] = {
        "plan": RoundPlan(client=clients), "completed": np.ones(count, bool), "conflict": np.zeros(count, bool)
    }  # fmt: skip
    return RoundRecord(number=3, phases=phases, row={}, **(fields | changes))


def bars(ax: Axes, colour: str) -> list[tuple[float, float, float]]:
    """Return start, end and middle height of the bars of a colour that have a length."""
    found = []
    for collection in ax.collections:
        colours = collection.get_facecolor()
        for index, path in enumerate(collection.get_paths()):
            if tuple(colours[index % len(colours)]) == to_rgba(colour):
                (x0, y0), (x1, y1) = path.vertices.min(axis=0), path.vertices.max(axis=0)
                if x1 > x0:
                    found.append((float(x0), float(x1), round(float(y0 + y1) / 2, 6)))
    return found


TWO = record(
    phase("forward", 0.0, [1.0, 2.0], [1.0, 4.0], [1.0, 1.0], [0.5, 0.25]),
    phase("backward", 7.75, [0.5, 0.5], [1.0, 1.5], [0.0, 0.0], []),
)


def test_bars_are_the_phases():
    """Stages follow one another, the fast wait for the slow, the server works after them."""
    ax = plot_round_timeline(TWO)
    assert bars(ax, STAGES["down"]) == [(0, 1, 0), (0, 2, 1), (7.75, 8.25, 0), (7.75, 8.25, 1)]
    assert bars(ax, STAGES["compute"]) == [(1, 2, 0), (2, 6, 1), (8.25, 9.25, 0), (8.25, 9.75, 1)]
    assert bars(ax, STAGES["up"]) == [(2, 3, 0), (6, 7, 1)]
    assert bars(ax, WAITING) == [(3, 7, 0), (9.25, 9.75, 0)]
    assert bars(ax, SERVER) == [(7, 7.5, 2), (7.5, 7.75, 2)]
    assert ax.get_xlim() == (0, 9.75)


def test_names_straggler_and_losses():
    """Lanes carry the clients' names; the straggler's is in colour, and who was lost is marked."""
    ax = plot_round_timeline(record(*TWO.phases, completed=np.array([False, True])))
    texts = ax.get_yticklabels()
    assert [text.get_text() for text in texts] == ["client 4, lost", "client 7", "server"]
    assert [text.get_color() == STRAGGLER for text in texts] == [False, True, False]
    assert ax.get_title(loc="left") == "round 3: 2 clients, 9.75 s, straggler: client 7"
    plan = RoundPlan(client=[4, 4], server=[0, 1])
    ax = plot_round_timeline(record(*TWO.phases, plan=plan))
    assert [text.get_text() for text in ax.get_yticklabels()][:2] == ["client 4 at 0", "client 4 at 1"]


def test_of_many_clients_the_slowest_are_shown():
    """The straggler is always there, and the title says how many are not shown."""
    count = 3 * MAX_LANES
    seconds = np.random.default_rng(0).permutation(count) + 1.0
    ax = plot_round_timeline(
        record(phase("train", 0.0, [0] * count, [*seconds], [0] * count, []), clients=range(count))
    )
    assert len(bars(ax, STAGES["compute"])) == MAX_LANES
    assert min(end for _, end, _ in bars(ax, STAGES["compute"])) == count - MAX_LANES + 1
    assert "shown: the 40 slowest" in ax.get_title(loc="left")
    ax.figure.canvas.draw()


def test_an_empty_round():
    """A round without clients is an empty picture; given axes are used."""
    given = Figure().add_subplot()
    ax = plot_round_timeline(record(clients=()), given)
    assert ax is given
    assert ax.get_title(loc="left") == "round 3: 0 clients, 0 s"
    ax.figure.canvas.draw()
