"""Whether conflicts that are forecast with 30 % happen in 30 % of the cases."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.plots.style import GREY, MAX_BANDS, legend_outside, line_styles, new_axes
from edgeopt.evaluation.statistics import log_loss

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.evaluation.benchmarks.held_out_selection import Forecasts


def plot_forecast_calibration(forecasts: "Forecasts", ax: "Axes | None" = None, *, bins: int = 10) -> "Axes":
    """Draw how often the forecast happened against the forecast, in bins of equally many, with 95 % intervals of up to ten forecasts.

    Parameters
    ----------
    forecasts : probabilities and what happened, by name, as `edgeopt.evaluation.benchmarks.held_out_selection.gapped_forecasts` returns.
    ax : axes to draw on; a new figure without.
    bins : of each forecast; equal forecasts are never parted, so that there may be fewer.
    """
    ax = new_axes(ax, width=7.4, height=4.4)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", zorder=0)
    styles = line_styles(forecasts)
    drawn = {}
    for name, (chance, happened) in forecasts.items():
        mean, share, error = calibration(chance, happened, bins)
        label = f"{name}: {log_loss(chance, happened):.3f}"
        bars = error if len(forecasts) <= MAX_BANDS else None
        drawn[label] = ax.errorbar(mean, share, yerr=bars, label=label, capsize=2, elinewidth=1, **styles[name])
    most = max(max(float(chance.max()), 0.0) for chance, _ in forecasts.values())
    ax.set_xlim(0, min(1.0, 1.1 * most))
    ax.set_ylim(0, min(1.0, 1.2 * most))
    ax.set_xlabel("forecast probability of a conflict")
    ax.set_ylabel("share that happened")
    legend_outside(ax, drawn, title="forecast: log-loss")
    return ax


def calibration(
    chance: NDArray[np.float64], happened: NDArray[np.bool_], bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return mean forecast, share that happened and half its 95 % interval [at most `bins`], by rising forecast.

    Examples
    --------
    >>> mean, share, _ = calibration(np.array([0.1, 0.1, 0.8, 0.8]), np.array([False, False, True, False]), 2)
    >>> mean.tolist(), share.tolist()
    ([0.1, 0.8], [0.0, 0.5])
    """
    edges = np.unique(np.quantile(chance, np.linspace(0, 1, bins + 1)[1:-1]))
    part = np.searchsorted(edges, chance, side="left")
    part = np.unique(part, return_inverse=True)[1]
    count = np.bincount(part)
    mean, share = np.bincount(part, chance) / count, np.bincount(part, happened) / count
    return mean, share, 1.96 * np.sqrt(share * (1 - share) / count)
