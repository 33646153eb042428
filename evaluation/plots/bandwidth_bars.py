"""Who gets how much of the band."""

from typing import TYPE_CHECKING

import numpy as np

from edgeopt.evaluation.plots.style import COLOURS, GREY, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import DownloadPlan, ModelDownload

MAX_LABELS = 40
MAX_COLOURS = len(COLOURS)


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
    at = np.arange(users.size)
    for place, kind in enumerate(kinds[: MAX_COLOURS - 1] if kinds.size > MAX_COLOURS else kinds):
        own = model == kind
        ax.bar(at[own], mhz[own], width=0.8, color=COLOURS[place], label=problem.model_names[kind])
    if kinds.size > MAX_COLOURS:
        own = np.isin(model, kinds[MAX_COLOURS - 1 :])
        ax.bar(at[own], mhz[own], width=0.8, color=GREY, label=f"{kinds.size - MAX_COLOURS + 1} other models")
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
    if users.size:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False, title="model")
    return ax
