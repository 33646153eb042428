"""What load each device has, of whose experts."""

from typing import TYPE_CHECKING

import numpy as np

from edgeopt.evaluation.plots.style import GREY, new_axes, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import ExpertBalancing, Replicas

MAX_LABELS = 40


def plot_balance(problem: "ExpertBalancing", solution: "Replicas", ax: "Axes | None" = None) -> "Axes":
    """Draw the load of each device in the layer that is balanced worst, one piece for each replica, most load first.

    The line is the mean, below which the largest load cannot be. Grey pieces are experts with one replica, blue ones
    are shares of experts with several, darker with more.

    Parameters
    ----------
    problem, solution : an expert-balancing problem and a placement with a replica of every expert.
    ax : axes to draw on; a new figure without.
    """
    from matplotlib import colormaps

    report = problem.report(solution)
    layer = int(np.argmax(report.largest / np.maximum(problem.mean_load, 1e-300)))
    share = problem.load[layer] / report.replicas[layer]
    order = np.argsort(-report.device_load[layer], kind="stable")
    most = max(2, int(report.replicas[layer].max()))
    ax = new_axes(ax, height=3.9)
    ax.grid(visible=False, axis="x")
    bottom = np.zeros(order.size)
    for slot in range(solution.experts.shape[2]):
        held = [
            sorted((e for e in solution.experts[layer, d].tolist() if e >= 0), key=lambda e: -share[e]) for d in order
        ]
        experts = [entry[slot] if slot < len(entry) else -1 for entry in held]
        height = np.array([share[e] if e >= 0 else 0.0 for e in experts])
        several = [report.replicas[layer, e] if e >= 0 else 1 for e in experts]
        tint = ["#c9c9c9" if n == 1 else colormaps["Blues"](0.35 + 0.6 * (n - 1) / (most - 1)) for n in several]
        ax.bar(np.arange(order.size), height, bottom=bottom, width=0.85, color=tint, edgecolor="white", linewidth=0.4)
        bottom += height
    ax.axhline(problem.mean_load[layer], color=GREY, linewidth=1.2, label="mean")
    few = order.size <= MAX_LABELS
    if few:
        ax.set_xticks(np.arange(order.size), [str(device) for device in order], fontsize=9 if order.size <= 25 else 7)
    else:
        whole_ticks(ax.xaxis)
    ax.set_xlabel("device, most load first" if few else f"{order.size} devices, most load first")
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("load")
    ax.set_xlim(-0.7, order.size - 0.3)
    largest, mean = report.largest[layer], max(problem.mean_load[layer], 1e-300)
    ax.set_title(
        f"layer {layer} of {problem.num_layers}: largest load {largest:.6g}, {100 * (largest / mean - 1):.2g} % above the mean",
        fontsize=10,
        loc="left",
    )
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, frameon=False, fontsize=9)
    return ax
