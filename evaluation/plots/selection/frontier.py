"""Conflicts against fairness, as the weight of fairness moves."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.compare.rows import as_rows
from edgeopt.evaluation.plots.style import GREY, MARKERS, legend_outside, line_styles, new_axes
from edgeopt.evaluation.statistics import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILLS = ("full", "none", "left", "top")  # grey markers have no colour to tell them apart


def plot_selection_frontier(rows: Iterable[Mapping[str, Any]], ax: "Axes | None" = None) -> "Axes":
    """Draw the means over seeds: a line per solver through its weights, grey points for one weight; right and low is better.

    Parameters
    ----------
    rows : what `edgeopt.evaluation.benchmarks.held_out_selection.evaluate` returned, for several weights of fairness.
    ax : axes to draw on; a new figure without.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in intervals(as_rows(rows), ("jain_index", "conflict_rate"), ("solver", "fairness_weight")):
        groups.setdefault(row["solver"], []).append(row)
    if not groups:
        raise EdgeOptError("rows: expected at least one")
    ax = new_axes(ax, width=8.0, height=4.4)
    lines = line_styles(solver for solver, found in groups.items() if len(found) > 1)
    points = line_styles(solver for solver in groups if solver not in lines)
    styles = lines | {
        name: style | {"color": GREY, "linestyle": "", "marker": MARKERS[i % len(MARKERS)],
                       "fillstyle": FILLS[i // len(MARKERS) % len(FILLS)]}
        for i, (name, style) in enumerate(points.items())
    }  # fmt: skip
    drawn = {}
    for solver, found in groups.items():
        found.sort(key=lambda row: row["fairness_weight"])
        x, y = ([row[name].mean for row in found] for name in ("jain_index", "conflict_rate"))
        style = styles[solver] | {"markersize": 6}
        (drawn[solver],) = ax.plot(x, [100 * rate for rate in y], label=solver, **style)
        if len(found) > 1:
            for row in found:
                at = (row["jain_index"].mean, 100 * row["conflict_rate"].mean)
                ax.annotate(
                    f"{row['fairness_weight']:g}", at, (5, -9), textcoords="offset points", fontsize=8,
                    color=styles[solver]["color"],
                )  # fmt: skip
    ax.set_ylim(bottom=-0.03 * ax.get_ylim()[1])
    ax.margins(x=0.08)
    ax.set_xlabel("fairness: Jain's index of deliveries")
    ax.set_ylabel("picks in conflict, %")
    legend_outside(ax, drawn)
    return ax
