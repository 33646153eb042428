"""The objective along a number of a problem, with the band up to what its bound leaves open."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.plots.style import curve_styles, legend_outside, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CURVES = 7
WIDEST = 0.5  # relative gap up to which bounds are made room for


def plot_what_if(rows: Sequence[dict[str, Any]], ax: "Axes | None" = None, *, along: int = 0) -> "Axes":
    """Draw the objective along one parameter; of two, a curve for each of up to seven values of the other.

    The band reaches from the objective to the bound: the optimum lies inside. Bands wider than half of the objective are
    cut off at the frame; points without a solution are left out.

    Parameters
    ----------
    rows : rows of a what-if.
    ax : axes to draw on; a new figure without.
    along : which parameter goes along the axis.
    """
    if not rows:
        raise EdgeOptError("rows: expected at least one point")
    names = rows[0]["axes"]
    other = 1 - along if len(names) == 2 else None
    values = sorted({row["values"][other] for row in rows}) if other is not None else [None]
    if len(values) > MAX_CURVES:
        values = [values[round(i * (len(values) - 1) / (MAX_CURVES - 1))] for i in range(MAX_CURVES)]
    ax = new_axes(ax)
    labels = {value: "objective" if value is None else f"{value:.6g}" for value in values}
    styles = curve_styles(labels.values())
    drawn: dict[str, Any] = {}
    for value, label in labels.items():
        line = sorted(
            (row["values"][along], row["objective"], row["bound"])
            for row in rows
            if row["feasible"] and (other is None or row["values"][other] == value)
        )
        if not line:
            continue
        x, objective = [point[0] for point in line], [point[1] for point in line]
        (drawn[label],) = ax.plot(x, objective, **styles[label] | {"markevery": 1, "markersize": 4})
        bound = [point[1] if point[2] is None else point[2] for point in line]
        if other is None and any(point[2] is not None for point in line):
            drawn["up to the bound"] = ax.fill_between(
                x, objective, bound, color=styles[label]["color"], alpha=0.25, lw=0
            )
        else:
            ax.fill_between(x, objective, bound, color=styles[label]["color"], alpha=0.2, lw=0)
    shown = [
        value
        for row in rows
        if row["feasible"]
        for value in (row["objective"], row["bound"] if _is_near(row) else None)
    ]
    heights = [value for value in shown if value is not None]
    if heights:
        room = 0.05 * ((max(heights) - min(heights)) or abs(heights[0]) or 1.0)
        ax.set_ylim(min(heights) - room, max(heights) + room)
    ax.set_xlabel(names[along], parse_math=False)
    ax.set_ylabel(f"objective ({rows[0]['sense']})")
    legend_outside(ax, drawn, title=None if other is None else names[other])
    return ax


def _is_near(row: dict[str, Any]) -> bool:
    return row["gap"] is not None and row["gap"] <= WIDEST
