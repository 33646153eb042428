"""Which device trains on how many samples, and where its model is cut."""

from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.evaluation.plots.style import GREY, new_axes, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import SplitPlan, SplitTraining

MAX_LABELS = 40


def plot_split_decisions(problem: "SplitTraining", solution: "SplitPlan", ax: "Axes | None" = None) -> "Axes":
    """Draw the batch size of each device as a bar, slowest device first, in the colour of its cut layer.

    A small line over a bar is the largest batch size that the device's memory and limit allow at that cut.

    Parameters
    ----------
    problem, solution : a split-training problem and a plan for it.
    ax : axes to draw on; a new figure without.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    order = np.argsort(problem.device_flops, kind="stable")
    batch, cut = solution.batch_size[order], solution.cut_layer[order]
    limit = problem.batch_limit[order, cut - 1]
    ax = new_axes(ax, height=3.9)
    ax.grid(visible=False, axis="x")
    cuts = np.unique(cut)
    tints = ListedColormap(_tints(cuts.size))
    at, place = np.arange(order.size), np.searchsorted(cuts, cut)
    ax.bar(at, batch, width=0.8 if order.size <= 200 else 1.0, color=tints(place))
    ax.hlines(limit, at - 0.4, at + 0.4, color=GREY, linewidth=1.4, label="largest that fits")
    few = order.size <= MAX_LABELS
    if few:
        ax.set_xticks(at, [str(device) for device in order], fontsize=9 if order.size <= 25 else 7)
        for x, height, layer in zip(at, batch, cut, strict=True):
            ax.annotate(
                str(layer), (x, height), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8,
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"},
            )  # fmt: skip
    ax.set_xlabel("device, slowest first" if few else f"{order.size} devices, slowest first")
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("batch size, samples" + (" (number: cut layer)" if few else ""))
    ax.set_xlim(-0.7, order.size - 0.3)
    ax.set_ylim(0, 1.12 * max(int(batch.max()), min(int(limit.max()), 2 * int(batch.max()))))
    whole_ticks(ax.yaxis)
    ax.set_title(
        f"{problem.num_layers} layers; batch sizes {batch.min()} to {batch.max()}, {batch.sum()} samples per round",
        fontsize=10,
        loc="left",
    )
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, frameon=False, fontsize=9)
    norm = BoundaryNorm(np.arange(cuts.size + 1) - 0.5, cuts.size)
    bar = ax.figure.colorbar(ScalarMappable(norm, tints), ax=ax, pad=0.02, label="cut after layer")
    some = range(0, cuts.size, -(-cuts.size // 20))
    bar.set_ticks(list(some), labels=[str(cuts[i]) for i in some])
    bar.ax.tick_params(length=0)
    return ax


def _tints(count: int) -> Any:
    """Return colours from light to dark, deeper cuts darker."""
    from matplotlib import colormaps

    return colormaps["viridis_r"](np.linspace(0.1, 0.95, count) if count > 1 else [0.6])
