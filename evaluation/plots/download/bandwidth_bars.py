"""Who gets how much of the band."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.plots.style import COLOURS, GREY, legend_outside, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import DownloadPlan, ModelDownload

MAX_LABELS = 40


def plot_bandwidth_bars(problem: "ModelDownload", solution: "DownloadPlan", ax: "Axes | None" = None) -> "Axes":
    """Draw the bandwidth of each admitted user, widest first, in the colour of the model that it gets.

    Parameters
    ----------
    problem, solution : a model-download problem and a plan for it.
    ax : axes to draw on; a new figure without.
    """
    users = np.flatnonzero(solution.model >= 0)
    users = users[np.argsort(-solution.bandwidth_hz[users], kind="stable")]
    mhz, model = solution.bandwidth_hz[users] / 1e6, solution.model[users]
    ax = new_axes(ax, height=3.6)
    ax.grid(visible=False, axis="x")
    kinds, counts = np.unique(model, return_counts=True)
    kinds = kinds[np.argsort(-counts, kind="stable")]  # the commonest models have colours of their own
    named = kinds if kinds.size <= len(COLOURS) else kinds[: len(COLOURS) - 1]
    at = np.arange(users.size)
    width = 0.8 if users.size <= MAX_LABELS else 1.0  # narrow bars with gaps would flicker
    drawn = {}
    for colour, kind in zip(COLOURS, named, strict=False):
        own = model == kind
        drawn[problem.model_names[kind]] = _add_bars(ax, at[own], mhz[own], width, color=colour)
    if named.size < kinds.size:
        own = ~np.isin(model, named)
        drawn[f"{kinds.size - named.size} other models"] = _add_bars(ax, at[own], mhz[own], width, color=GREY)
    ax.autoscale_view()
    ax.set_ylim(bottom=0)
    if users.size <= MAX_LABELS:
        ax.set_xticks(at, [str(user) for user in users], fontsize=9 if users.size <= 25 else 7)
        ax.set_xlabel("user")
    else:
        ax.set_xlabel(f"{users.size} users, widest band first")
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("bandwidth, MHz")
    ax.margins(x=0.01)
    share = 100 * mhz.sum() * 1e6 / problem.bandwidth_hz
    ax.set_title(
        f"{users.size} of {problem.num_users} users admitted, {share:.1f} % of {problem.bandwidth_hz / 1e6:g} MHz",
        fontsize=10,
        loc="left",
    )
    legend_outside(ax, drawn, title="model")
    return ax


def _add_bars(ax: "Axes", at: NDArray[np.int64], height: NDArray[np.float64], width: float, **style: Any) -> Any:
    """Add bars as one collection, and return it: it draws ten thousands of them where ``ax.bar`` would take minutes."""
    from matplotlib.collections import PolyCollection

    x = at[:, None] + width * np.array([-0.5, -0.5, 0.5, 0.5])
    y = height[:, None] * np.array([0.0, 1.0, 1.0, 0.0])
    corners = list(np.stack([x, y], axis=-1))
    return ax.add_collection(PolyCollection(corners, linewidth=0, antialiased=width < 1, **style))
