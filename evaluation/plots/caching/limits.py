"""What the routing of a model allows a cache."""

from typing import TYPE_CHECKING

from edgeopt.errors import InvalidProblemError
from edgeopt.evaluation.plots.style import COLOURS, GREY, legend_above, new_axes, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.evaluation.caching_limits import CachingLimits


def plot_caching_limits(found: "CachingLimits", ax: "Axes | None" = None) -> "Axes":
    """Draw the largest hit ratio against storage, and how many experts each user has in use in each layer.

    Parameters
    ----------
    found : of `edgeopt.evaluation.caching_limits`.
    ax : a subplot; a new figure without. The map takes the right part of its place.

    Raises
    ------
    InvalidProblemError
        If `ax` is no subplot.
    """
    ax = new_axes(ax, width=11.0, height=4.4)
    share, own, common = found.curve
    lines = {
        "a server for each user, at most": ax.plot(100 * share, 100 * own, color=COLOURS[0], linewidth=1.8)[0],
        "one server for all, at most": ax.plot(
            100 * share, 100 * common, color=COLOURS[1], linewidth=1.8, linestyle="--"
        )[0],
        "experts at random": ax.plot([0, 100], [0, 100], color=GREY, linewidth=1.2, linestyle=":")[0],
    }
    for limit in found.limits:
        ax.axvline(100 * limit.storage, color="#BBBBBB", linewidth=0.8, zorder=0)
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 101)
    ax.set_xlabel("storage, % of all experts")
    ax.set_ylabel("hit ratio, % of expert uses")
    if (place := ax.get_subplotspec()) is None:
        raise InvalidProblemError("ax: expected a subplot, got axes that are in no grid")
    halves = place.subgridspec(1, 2, width_ratios=(1, 1))
    ax.set_subplotspec(halves[0])
    beside = ax.figure.add_subplot(halves[1])
    picture = beside.imshow(
        found.effective_experts,
        aspect="auto",
        cmap="viridis_r",
        vmin=1,
        vmax=found.num_experts,
        interpolation="nearest",
    )
    bar = ax.figure.colorbar(picture, ax=beside)
    bar.set_label(f"experts in use, of {found.num_experts}")
    beside.set_xlabel("layer")
    beside.set_ylabel("user")
    for axis in (beside.xaxis, beside.yaxis):
        whole_ticks(axis)
    legend_above(ax, lines)
    return ax
