"""What each modality counts while a recording goes on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.plots.style import curve_styles, legend_outside, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_modality_weights(weights: Mapping[str, ArrayLike], ax: "Axes | None" = None) -> "Axes":
    """Draw the weight of each modality at each step, a line for each.

    Parameters
    ----------
    weights : by modality [T].
    ax : axes to draw on; a new figure without.

    Raises
    ------
    EdgeOptError
        If there are none, or their lengths differ.
    """
    lines = {name: np.asarray(values, np.float64) for name, values in weights.items()}
    if not lines:
        raise EdgeOptError("weights: expected at least one modality")
    length = next(iter(lines.values())).size
    for name, values in lines.items():
        if values.shape != (length,) or not length:
            raise EdgeOptError(f"weights[{name!r}]: shape {list(values.shape)}: expected [{length or 1}] as the others")
    ax, drawn = new_axes(ax), {}
    for name, style in curve_styles(lines).items():
        (drawn[name],) = ax.plot(np.arange(length), lines[name], label=name, **style)
    ax.set_xlim(0, max(1, length - 1))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("step")
    ax.set_ylabel("weight")
    legend_outside(ax, drawn)
    return ax
