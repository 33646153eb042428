"""On how many runs each solver is how close to the best."""

from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.evaluation.compare.performance import Metric, performance_profile, with_gaps
from edgeopt.evaluation.plots.style import legend_outside, line_styles, new_axes, plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_performance_profile(data: Any, ax: "Axes | None" = None, *, metric: Metric = "gap") -> "Axes":
    """Draw performance profiles, best solver first in the legend: higher and further left is better.

    Parameters
    ----------
    data : rows of a comparison, its data frame, or its folder, all of one kind of problem: solvers of another have no runs
        to be compared on.
    ax : axes to draw on; a new figure without.
    metric : ``gap`` to the best known value, or ``time`` as a multiple of the fastest.
    """
    rows = with_gaps(data)
    profiles, styles = performance_profile(rows, metric), line_styles(row["solver"] for row in rows)
    ax = new_axes(ax)
    factor, least = (100.0, 0.0) if metric == "gap" else (1.0, 1.0)
    ends = [factor * line.x[-1] for line in profiles if line.x.size]
    end = 1.3 * max([*ends, 1.0 if metric == "gap" else 2.0])
    drawn = {}
    for line in profiles:
        x = np.concatenate([[least], factor * line.x, [end]])
        share = np.concatenate([[0.0], 100 * line.share, 100 * line.share[-1:] if line.share.size else [0.0]])
        style = styles[line.solver] | {"drawstyle": "steps-post", "markevery": _inner(x.size)}
        (drawn[line.solver],) = ax.plot(x, share, label=line.solver, **style)
    if metric == "gap":
        ax.set_xscale("symlog", linthresh=0.01, linscale=0.5)
        ax.set_xlabel("gap to best known, % (0 at the left edge)")
    else:
        ax.set_xscale("log")
        ax.set_xlabel("multiple of the fastest solver's seconds, within 1 % of the best known value")
    ax.set_xlim(least, end)
    plain_log_ticks(ax.xaxis)
    ax.set_ylim(-2, 103)
    ax.set_ylabel("runs solved that well, %")
    legend_outside(ax, drawn)
    return ax


def _inner(size: int) -> slice:
    return slice(1, size - 1, max(1, size // 8))
