"""How bandwidth and queue of a rolling horizon go over time."""

from typing import TYPE_CHECKING

from edgeopt.evaluation.plots.style import COLOURS, legend_above, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.solvers.model_download import RollingResult


def plot_rolling(result: "RollingResult", ax: "Axes | None" = None) -> "Axes":
    """Draw the share of the band in use, and the number of waiting requests on an axis of its own, against time.

    Parameters
    ----------
    result : what `rolling_horizon` returned.
    ax : axes to draw on; a new figure without.

    Returns
    -------
    The axes of the bandwidth; that of the queue is the second axes of the figure.
    """
    ax = new_axes(ax, height=3.6)
    from matplotlib.ticker import MaxNLocator  # after new_axes, which says what to install

    queue = ax.twinx()
    queue.spines[["top", "left"]].set_visible(False)
    times, used = result.bandwidth_in_use()
    in_use = ax.fill_between(times, 100 * used / result.band_hz, step="post", color=COLOURS[5], alpha=0.5, linewidth=0)
    times, waiting = result.num_waiting()
    (line,) = queue.plot(times, waiting, drawstyle="steps-post", color=COLOURS[1], linewidth=1.3)
    ax.set_ylim(0, 104)
    queue.set_ylim(0, max(1.0, float(waiting.max(initial=0.0))) * 1.04)
    queue.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(result.arrival_s.min(), result.arrival_s.min() + result.span_s)
    ax.set_xlabel("time, s")
    ax.set_ylabel("bandwidth in use, %")
    queue.set_ylabel("waiting requests")
    title = (
        f"{result.solver}: {result.num_done} of {result.num_requests} requests done in time, "
        f"{result.throughput_per_s:.1f} per second"
    )
    legend_above(ax, {"bandwidth in use": in_use, "waiting requests": line}, title=title)
    return ax
