"""What all pictures share: a palette for every eye, quiet axes, a legend beside the data."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.extras import needs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette without its yellow, which vanishes on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"


def new_axes(ax: "Axes | None" = None, *, width: float = 9.0, height: float = 4.2) -> "Axes":
    """Return `ax`, or the axes of a new figure of this size in inches, made without pyplot.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    """
    if ax is not None:
        return ax
    with needs("a picture", "report"):
        from matplotlib.figure import Figure
    axes: Axes = Figure(figsize=(width, height), dpi=100, layout="constrained").add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def line_styles(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return colour, dash and marker of each solver, by the order in which solvers first appear.

    All pictures of one comparison therefore draw a solver alike.

    Examples
    --------
    >>> styles = line_styles([{"solver": "greedy"}, {"solver": "random"}, {"solver": "greedy"}])
    >>> styles["greedy"]["color"], styles["random"]["marker"]
    ('#0072B2', 's')
    """
    return {
        solver: {
            "color": COLOURS[position % len(COLOURS)],
            "linestyle": LINES[position // len(COLOURS) % len(LINES)],
            "marker": MARKERS[position % len(MARKERS)],
            "markersize": 5,
            "linewidth": 1.8,
        }
        for position, solver in enumerate(dict.fromkeys(row["solver"] for row in rows))
    }


def legend_beside(ax: "Axes", **options: Any) -> None:
    """Put the legend to the right of the axes, where it covers nothing."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False, **options)
