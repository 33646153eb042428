"""How fast each solver gets close to the best."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.compare.performance import BAND, with_gaps
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.plots.style import MAX_BANDS, legend_outside, line_styles, new_axes, plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 200


def plot_gap_against_time(data: Any, ax: "Axes | None" = None, *, least_seconds: float = 1e-4) -> "Axes":
    """Draw the gap to the best known value against seconds: the median over runs with a 20-80 % band of up to ten solvers.

    The legend has the smallest final gap first, and of equal ones the earliest. A line starts where half of its solver's runs have a solution; the marker is where its last improvement comes.

    Parameters
    ----------
    data : rows with histories, from `comparison_rows` or a folder.
    ax : axes to draw on; a new figure without.
    least_seconds : left end of the logarithmic time axis.
    """
    groups: dict[str, list[list[tuple[float, float]]]] = {}
    rows = with_gaps(data)
    styles = line_styles(row["solver"] for row in rows)
    for row in rows:
        groups.setdefault(row["solver"], [])
        if steps := _steps(row, least_seconds):
            groups[row["solver"]].append(steps)
    ax = new_axes(ax)
    times = [seconds for runs in groups.values() for steps in runs for seconds, _ in steps]
    end = 1.5 * max([*times, 10 * least_seconds])
    start = max(least_seconds, 0.7 * min([*times, end]))
    grid = np.geomspace(start, end, POINTS)
    drawn: dict[str, tuple[tuple[float, int], Any]] = {}  # rank and line
    for solver, runs in groups.items():
        if not runs:
            continue
        style = styles[solver]
        gaps = np.array([_on_grid(steps, grid) for steps in runs])
        low, middle, high = np.percentile(np.where(np.isfinite(gaps), gaps, 1e9), [BAND[0], 50, BAND[1]], axis=0)
        shown = middle < 1e8
        if not shown.any():
            continue
        middle[~shown] = np.nan
        last = int(np.flatnonzero(middle > np.nanmin(middle)).max(initial=int(shown.argmax()) - 1)) + 1
        (line,) = ax.plot(
            grid, middle, drawstyle="steps-post", label=solver, markevery=[min(last, POINTS - 1)], **style
        )
        drawn[solver] = (float(middle[-1]), last), line
        if len(runs) > 1 and len(groups) <= MAX_BANDS:
            ax.fill_between(grid, low, high, where=shown, step="post", color=style["color"], alpha=0.18, linewidth=0)
    ax.set_xscale("log")
    ax.set_xlim(start, end)
    ax.set_yscale("symlog", linthresh=0.01, linscale=0.5)
    ax.set_ylim(-0.001, 1.5 * max([100.0, *(gap for (gap, _), _ in drawn.values())]))
    plain_log_ticks(ax.xaxis)
    plain_log_ticks(ax.yaxis)
    ax.set_xlabel("seconds")
    ax.set_ylabel("gap to best known, %")
    legend_outside(ax, {solver: line for solver, (_, line) in sorted(drawn.items(), key=lambda item: item[1][0])})
    return ax


def _steps(row: Row, least_seconds: float) -> list[tuple[float, float]]:
    """Return (seconds, gap in %) of every better solution of a run."""
    best = row.get("best_known")
    if best is None or not row["feasible"]:
        return []
    steps: list[tuple[float, float]] = []
    last = None
    for seconds, _, objective, _ in row.get("history") or ():
        if objective is not None and objective != last:
            last = objective
            gap = 100 * abs(best - objective) / abs(best) if best else (0.0 if objective == best else np.inf)
            steps.append((max(seconds, least_seconds), gap))
    return steps


def _on_grid(steps: list[tuple[float, float]], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    seconds, gaps = np.array(steps).T
    found: NDArray[np.float64] = np.concatenate([[np.inf], gaps])[np.searchsorted(seconds, grid, side="right")]
    return found
