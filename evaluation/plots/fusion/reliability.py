"""How often answers are right that are given with some confidence."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.plots.style import GREY, legend_outside, line_styles, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_reliability(tables: Mapping[str, ArrayLike], ax: "Axes | None" = None) -> "Axes":
    """Draw the share of right answers against their mean confidence, bin by bin, beside the diagonal.

    Parameters
    ----------
    tables : by label [bins, 3], as `edgeopt.fusion.reliability` returns them; bins without answers are left out.
    ax : axes to draw on; a new figure without.

    Raises
    ------
    EdgeOptError
        If there are none, or one is no such table.
    """
    if not tables:
        raise EdgeOptError("tables: expected at least one label")
    ax, drawn = new_axes(ax, width=7.0, height=4.6), {}
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for name, style in line_styles(tables).items():
        table = np.asarray(tables[name], np.float64)
        if table.ndim != 2 or table.shape[1] != 3:
            raise EdgeOptError(f"tables[{name!r}]: shape {list(table.shape)}: expected [bins, 3]")
        some = table[:, 2] > 0
        (drawn[name],) = ax.plot(table[some, 0], table[some, 1], label=name, **style)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("confidence")
    ax.set_ylabel("share of right answers")
    legend_outside(ax, drawn)
    return ax
