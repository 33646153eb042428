"""How the objective depends on something that varies over the instances."""

from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.evaluation.compare.performance import band, with_gaps
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.plots.style import MAX_BANDS, by_height, legend_outside, line_styles, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_objective_against(
    data: Any, x: str, ax: "Axes | None" = None, *, value: str = "objective", label: str | None = None
) -> "Axes":
    """Draw a value against a number: the median over seeds and instances with a 20-80 % band of up to ten solvers.

    Parameters
    ----------
    data : rows of a comparison, its data frame with a further column, or its folder.
    x : column, or fact of the instances as in ``problem.describe()``, for example the storage fraction.
    ax : axes to draw on; a new figure without.
    value : column on the vertical axis.
    label : label of the horizontal axis, default `x`.

    Raises
    ------
    EdgeOptError
        If no row has a number `x`.
    """
    groups: dict[str, dict[float, list[float]]] = {}
    rows = with_gaps(data)
    styles = line_styles(row["solver"] for row in rows)
    for row in rows:
        at, height = _number(row, x), row.get(value) if row["feasible"] else None
        if at is not None and height is not None:
            groups.setdefault(row["solver"], {}).setdefault(at, []).append(height)
    if not groups:
        raise EdgeOptError(f"x = {quoted(x)}: expected a column or fact with numbers in rows with a solution")
    ax = new_axes(ax)
    drawn: dict[str, tuple[float, Any]] = {}  # height at the right end and line
    for solver, points in groups.items():
        xs = np.array(sorted(points))
        low, middle, high = np.array([band(points[at]) for at in xs]).T
        style = styles[solver]
        (line,) = ax.plot(xs, middle, label=solver, **style)
        drawn[solver] = float(middle[-1]), line
        if len(groups) <= MAX_BANDS:
            ax.fill_between(xs, low, high, color=style["color"], alpha=0.18, linewidth=0)
    ax.set_xlabel(label or x, parse_math=False)
    ax.set_ylabel(value.replace("_", " "), parse_math=False)
    ax.margins(x=0.03)
    legend_outside(ax, by_height(drawn))
    return ax


def _number(row: Row, name: str) -> float | None:
    found = row.get(name, (row.get("facts") or {}).get(name))
    return None if isinstance(found, bool) or not isinstance(found, Real) else float(found)
