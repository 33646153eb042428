"""How the descent of `hasfl` comes down from every uniform start."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.plots.style import GREY, new_axes, plain_log_ticks, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import SplitTraining


def descent_paths(problem: "SplitTraining", *, joint: bool = True) -> dict[int, NDArray[np.float64]]:
    """Return the objective before and after every step of the descents, by the cut that all devices start with.

    Starts have the largest batch sizes that fit; those that cannot reach the target are left out.

    Parameters
    ----------
    problem : a split-training problem.
    joint : as in `Hasfl`.
    """
    from edgeopt.solvers.split_training.common import Costs
    from edgeopt.solvers.split_training.descent import descend, repaired

    costs, paths = Costs.of(problem), {}
    deepest = costs.deepest(np.ones(problem.num_devices, np.int64))
    for cut in range(int(deepest.max()) + 1):
        uniform = np.minimum(cut, deepest)
        start = repaired(costs, problem, costs.limit_at(uniform), uniform)
        if start is not None and (start[2] == uniform).all():
            paths[cut + 1] = np.array([value for value, *_ in descend(costs, problem, start, joint=joint)])
    return paths


def plot_split_descent(
    paths: dict[int, NDArray[np.float64]], ax: "Axes | None" = None, *, bound: float | None = None
) -> "Axes":
    """Draw each descent against its steps, in percent above the best end, in the colour of the cut it starts from.

    Parameters
    ----------
    paths : what `descent_paths` returned.
    ax : axes to draw on; a new figure without.
    bound : a valid lower bound: percentages then are of it, and nothing can reach zero but an optimum.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    ax = new_axes(ax, height=3.9)
    least = min((path.min() for path in paths.values()), default=1.0)
    base = least if bound is None else bound
    norm, tints = Normalize(min(paths, default=0), max(paths, default=1)), colormaps["viridis_r"]
    for cut, path in paths.items():
        above = 100 * np.maximum(0.0, path / base - 1)
        ax.plot(np.arange(path.size), above, "o-", color=tints(norm(cut)), markersize=4, linewidth=1.6, label=str(cut))
    ax.axhline(0.0, color=GREY, linewidth=1, linestyle="--", zorder=0)
    ax.set_yscale("symlog", linthresh=0.1, linscale=0.5)
    ax.set_ylim(-0.02, 2 * max([1.0, *(100 * (path.max() / base - 1) for path in paths.values())]))
    plain_log_ticks(ax.yaxis)
    whole_ticks(ax.xaxis)
    ax.set_xlabel("step: batch sizes and cuts in turn, both at once where that ends")
    ax.set_ylabel("seconds to target, % above " + ("the best end" if bound is None else "the bound"))
    ax.margins(x=0.03)
    if paths:
        bar = ax.figure.colorbar(ScalarMappable(norm, tints), ax=ax, pad=0.02, label="start: all cuts after layer")
        whole_ticks(bar.ax.yaxis)
    return ax
