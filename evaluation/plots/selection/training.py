"""How a learner of client selection gets better while it trains."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeopt.evaluation.plots.style import MAX_BANDS, curve_styles, legend_outside, new_axes, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.solvers.client_selection.learner import Iteration

SMOOTHED = 10  # iterations
LABELS = {"reward": "mean reward per server and round", "conflict_rate": "picks in conflict, %"}


def plot_selection_training(
    runs: "Mapping[str, Sequence[Iteration]]",
    ax: "Axes | None" = None,
    *,
    value: Literal["reward", "conflict_rate"] = "reward",
) -> "Axes":
    """Draw reward or conflict rate against iterations: faint as played (up to ten learners), bold the mean of ten iterations.

    Parameters
    ----------
    runs : what `Learner.step` returned, iteration by iteration; by name.
    ax : axes to draw on; a new figure without.
    value : what to draw.
    """
    ax = new_axes(ax, height=3.6)
    styles = curve_styles(runs)
    drawn = {}
    for name, played in runs.items():
        style = styles[name]
        number = np.array([iteration.number for iteration in played])
        height = np.array([getattr(iteration, value) for iteration in played]) * (
            100 if value == "conflict_rate" else 1
        )
        if len(runs) <= MAX_BANDS:
            ax.plot(number, height, color=style["color"], linewidth=0.7, alpha=0.4)
        width = min(SMOOTHED, len(played))
        mean = np.convolve(height, np.full(width, 1 / width), "valid")
        (drawn[name],) = ax.plot(number[width - 1 :], mean, label=name, **style)
    whole_ticks(ax.xaxis)
    ax.set_xlabel("iteration")
    ax.set_ylabel(LABELS[value])
    ax.margins(x=0.02)
    legend_outside(ax, drawn)
    return ax
