"""How many tasks are done in time, against bandwidth, deadline or number of users."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.evaluation.compare.performance import band
from edgeopt.evaluation.compare.rows import as_rows
from edgeopt.evaluation.plots.style import MAX_BANDS, by_height, legend_outside, line_styles, new_axes
from edgeopt.solve import Solver, solve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import ModelDownload

Varied = Literal["bandwidth_hz", "deadline_s", "num_users"]
UNITS: dict[str, tuple[str, float]] = {
    "bandwidth_hz": ("bandwidth, MHz", 1e-6),
    "deadline_s": ("deadline, s", 1.0),
    "num_users": ("users", 1.0),
    "per_s": ("arrivals per second", 1.0),
}
"""Label of the horizontal axis, and what turns the values into its unit."""


def download_throughput(
    x: Varied,
    values: Iterable[float],
    solvers: Sequence[str | Solver] = ("slide", "download-then-infer"),
    *,
    seeds: Sequence[int] = (0,),
    **arguments: Any,
) -> list[dict[str, Any]]:
    """Solve random model-download problems that differ in one number; return one tidy row per value, seed and solver.

    Parameters
    ----------
    x : what varies: ``bandwidth_hz``, ``deadline_s`` (the same for all users) or ``num_users``.
    values : its values.
    solvers : names or objects.
    seeds : one random problem each; bandwidth and deadline change nothing else of it.
    arguments : further arguments of `ModelDownload.random`.

    Returns
    -------
    list of rows: ``solver``, ``seed``, the varied name, ``objective``, ``users``, ``done`` (users admitted), ``share_done``.
    """
    if x not in (known := get_args(Varied)):
        raise EdgeOptError(f"x = {quoted(x)}: expected one of {', '.join(known)}")
    if x in arguments:
        raise EdgeOptError(f"{x}: it varies, expected it among no other arguments")
    rows = []
    for value in values:
        for seed in seeds:
            problem = _problem(x, value, seed, arguments)
            for solver in solvers:
                result = solve(problem, solver, seed=seed).raise_for_status()
                plan: Any = result.solution
                rows.append(
                    {
                        "solver": result.solver,
                        "seed": seed,
                        x: value,
                        "objective": result.objective,
                        "users": problem.num_users,
                        "done": plan.num_admitted,
                        "share_done": plan.num_admitted / problem.num_users,
                    }
                )
    return rows


def plot_download_throughput(
    data: Any, ax: "Axes | None" = None, *, x: str | None = None, value: str = "done"
) -> "Axes":
    """Draw the tasks done within their deadline against what varies: the median over seeds with a 20-80 % band of up to ten.

    Parameters
    ----------
    data : rows of `download_throughput`, or a data frame of them. Summaries of rolling horizons will do too, with a column
        ``per_s`` of arrivals per second.
    ax : axes to draw on; a new figure without.
    x : column on the horizontal axis; default: the one of `UNITS` that the rows have.
    value : column on the vertical axis: ``done``, ``share_done`` or ``objective``.

    Raises
    ------
    EdgeOptError
        If no row has the columns.
    """
    rows = as_rows(data)
    found = x if x is not None else next((name for name in UNITS if any(name in row for row in rows)), None)
    if found is None or not any(found in row and value in row for row in rows):
        raise EdgeOptError(f"data: expected rows with {found or ' or '.join(UNITS)} and {value}")
    label, factor = UNITS.get(found, (found, 1.0))
    points: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        points.setdefault(row["solver"], {}).setdefault(factor * row[found], []).append(row[value])
    ax = new_axes(ax)
    from matplotlib.ticker import MaxNLocator  # after new_axes, which says what to install

    styles = line_styles(row["solver"] for row in rows)
    drawn: dict[str, tuple[float, Any]] = {}  # height at the right end and line
    for solver, heights in points.items():
        at = np.array(sorted(heights))
        low, middle, high = np.array([band(heights[position]) for position in at]).T
        if value == "share_done":
            low, middle, high = 100 * low, 100 * middle, 100 * high
        (line,) = ax.plot(at, middle, label=solver, **styles[solver])
        drawn[solver] = float(middle[-1]), line
        if len(points) <= MAX_BANDS:
            ax.fill_between(at, low, high, color=styles[solver]["color"], alpha=0.12, linewidth=0)
    ax.set_xlabel(label)
    ax.set_ylabel(
        {"done": "tasks done in time", "share_done": "tasks done in time, %"}.get(value, value.replace("_", " "))
    )
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=value == "done"))
    ax.margins(x=0.03)
    legend_outside(ax, by_height(drawn))
    return ax


def _problem(x: Varied, value: float, seed: int, arguments: dict[str, Any]) -> "ModelDownload":
    from edgeopt.problems import ModelDownload

    if x == "num_users":
        users: Any = value  # a whole number, which `random` checks
        return ModelDownload.random(**arguments, num_users=users, seed=seed)
    made = ModelDownload.random(**arguments, seed=seed)
    return made.replace(**{x: np.full(made.num_users, value) if x == "deadline_s" else value})
