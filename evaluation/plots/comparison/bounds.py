"""What each solver found, and how far its own bound leaves room for better."""

from typing import TYPE_CHECKING, Any

from edgeopt.evaluation.compare.performance import summarise
from edgeopt.evaluation.plots.style import COLOURS, GREY, legend_above, new_axes, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENTRIES = ("objective", "objective to bound", "bound", "best known")


def plot_bounds(data: Any, ax: "Axes | None" = None) -> "Axes":
    """Draw a bar from objective to certified bound per solver: the optimum lies inside every bar.

    Parameters
    ----------
    data : rows of one instance, with any number of seeds: median objective, best bound.
    ax : axes to draw on; a new figure without.
    """
    lines = [line for line in summarise(data) if line["objective"] is not None]
    ax = new_axes(ax, height=1.5 + 0.34 * max(1, len(lines)))
    ax.grid(visible=False, axis="y")
    drawn: dict[str, Any] = {}
    for position, line in enumerate(lines):
        objective, bound = line["objective"], line["bound"]
        if bound is not None:
            drawn["objective to bound"] = ax.barh(
                position, bound - objective, left=objective, height=0.5, color=COLOURS[5], alpha=0.45
            )
            (drawn["bound"],) = ax.plot(bound, position, marker="|", markersize=13, color=COLOURS[0], linestyle="")
        (drawn["objective"],) = ax.plot(objective, position, "o", color=COLOURS[1], markersize=6, zorder=3)
    best = next((line["best_known"] for line in lines if line["best_known"] is not None), None)
    if best is not None:
        drawn["best known"] = ax.axvline(best, color=GREY, linewidth=1, linestyle="--", zorder=0)
    ax.set_yticks(range(len(lines)), [shown(line["solver"]) for line in lines], parse_math=False)
    ax.invert_yaxis()
    ax.use_sticky_edges = False
    ax.margins(x=0.04, y=0.03)
    ax.set_xlabel("objective")
    legend_above(ax, {name: drawn[name] for name in ENTRIES if name in drawn})
    return ax
