"""Which server caches what."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.plots.style import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import ExpertCaching, Placement

MAX_EXPERTS = 64
MAX_LABELS = 24


def plot_placement(problem: "ExpertCaching", solution: "Placement", ax: "Axes | None" = None) -> "Axes":
    """Draw which server caches which expert, or how much of each layer when there are many experts.

    Parameters
    ----------
    problem, solution : an expert-caching problem and a placement for it.
    ax : axes to draw on; a new figure without.
    """
    shares, labels, title = _cells(problem, solution)
    ax = new_axes(ax, height=float(np.clip(1.6 + 0.28 * problem.num_servers, 2.4, 9.0)))
    binary = problem.num_experts <= MAX_EXPERTS
    image = ax.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_yticks(_some(problem.num_servers))
    ax.set_ylabel("server")
    ticks = _some(len(labels))
    tilted = max(map(len, labels)) > 4
    ax.set_xticks(
        ticks, [labels[tick] for tick in ticks], rotation=45 if tilted else 0, ha="right" if tilted else "center"
    )
    ax.set_xlabel(title)
    # thin white lines between the cells
    ax.set_xticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(problem.num_servers + 1) - 0.5, minor=True)
    ax.grid(visible=True, which="minor", color="white", linewidth=0.8)
    ax.tick_params(which="minor", length=0)
    used = problem.storage_used(solution).sum() / max(problem.storage_bytes.sum(), 1e-300)
    ax.set_title(f"{solution.num_copies} cached experts, {100 * used:.1f} % of the storage", fontsize=10, loc="left")
    if not binary:
        ax.figure.colorbar(image, ax=ax, label="cached, %", pad=0.02)
    return ax


def _cells(problem: "ExpertCaching", solution: "Placement") -> tuple[NDArray[np.float64], list[str], str]:
    """Return shares [N, columns], the column labels and the name of the horizontal axis."""
    cached = solution.cached.astype(np.float64)
    if problem.num_experts <= MAX_EXPERTS:
        return cached, [str(e) for e in range(problem.num_experts)], "expert (dark: cached)"
    group, layers = problem.expert_group, [model.num_layers for model in problem.models]
    if sum(layers) > 2:
        labels = [
            f"{model.name} {layer}" if len(layers) > 1 else str(layer)
            for model, count in zip(problem.models, layers, strict=True)
            for layer in range(count)
        ]
        title = "model and layer" if len(layers) > 1 else "layer"
    else:  # hardly any layers: cut the experts into blocks instead
        group = (np.arange(problem.num_experts) * MAX_EXPERTS // problem.num_experts).astype(np.int32)
        labels = [str(start) for start in np.unique(group, return_index=True)[1]]
        title = f"experts, in {len(labels)} blocks by number of the first"
    counts = np.bincount(group, minlength=len(labels))
    sums = np.array([np.bincount(group, weights=row, minlength=len(labels)) for row in cached])
    return sums / counts, labels, title


def _some(count: int) -> list[int]:
    """Return at most `MAX_LABELS` evenly spread positions."""
    return list(range(0, count, -(-count // MAX_LABELS)))
