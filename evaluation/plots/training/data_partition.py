"""Who holds which classes, and how much."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from edgeopt.evaluation.plots.style import COLOURS, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.data.partition import Partition

MAX_LINED = 60
"""Clients up to which white lines separate the cells."""
MAX_TICKS = 24


def plot_data_partition(partition: "Partition", labels: ArrayLike, ax: "Axes | None" = None) -> "Axes":
    """Draw how many samples of each label each client has, and above it how many in all.

    Parameters
    ----------
    partition : who holds which samples.
    labels : int [n], label of each sample, such as `ArrayData.labels`.
    ax : axes to draw on; a new figure without. The bars above are an inset of these axes.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    counts, sizes = partition.label_counts(labels), partition.sizes
    clients, kinds = counts.shape
    ax = new_axes(ax)
    norm = PowerNorm(0.5, vmin=0, vmax=max(1, counts.max()))  # or few samples would look like none
    image = ax.imshow(counts.T, cmap="Blues", norm=norm, aspect="auto", interpolation="nearest", origin="lower")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    lines = clients <= MAX_LINED
    if lines:
        ax.set_xticks(np.arange(clients + 1) - 0.5, minor=True)
    if kinds <= MAX_LINED:
        ax.set_yticks(np.arange(kinds + 1) - 0.5, minor=True)
    ax.grid(visible=True, which="minor", color="white", linewidth=0.8)
    ax.tick_params(which="minor", length=0)
    for axis, count in ((ax.xaxis, clients), (ax.yaxis, kinds)):
        axis.set_major_locator(MaxNLocator(min(count, MAX_TICKS), integer=True))
    ax.set_xlim(-0.5, clients - 0.5)
    ax.set_ylim(-0.5, kinds - 0.5)
    ax.set_xlabel("client")
    ax.set_ylabel("label")
    ax.figure.colorbar(image, ax=ax, label="samples of the label", pad=0.02)

    above = ax.inset_axes((0, 1.03, 1, 0.24), sharex=ax)
    above.bar(np.arange(clients), sizes, width=0.9 if lines else 1.0, color=COLOURS[0])
    above.spines[["top", "right"]].set_visible(False)
    above.tick_params(axis="x", which="both", length=0, labelbottom=False)
    above.set_ylim(0, 1.05 * max(1, sizes.max()))
    above.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    above.set_ylabel("samples")
    own = (counts > 0).sum(axis=1)
    ax.set_title(
        f"{clients} clients with {sizes.min()} to {sizes.max()} samples of {own.min()} to {own.max()} labels",
        fontsize=10, loc="left", pad=4,
    )  # fmt: skip
    return ax
