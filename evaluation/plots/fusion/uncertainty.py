"""A recording, and how sure a model is of each modality while it goes on."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.plots.style import COLOURS, GREY, legend_outside, new_axes, shown
from edgeopt.validate import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = 0.28  # of a signal's three standard deviations, in rows
_BAND = 0.3  # of a row: the band of the highest uncertainty, to either side


def plot_uncertainty(
    names: "list[str]",
    signals: ArrayLike,
    log_u: ArrayLike,
    burst: ArrayLike | None = None,
    present: ArrayLike | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the signal of each modality in a row of its own, in a band as wide as its uncertainty is within its own range.

    Parameters
    ----------
    names : of the M modalities.
    signals : [M, T], one standardised number of each step.
    log_u : [M, T], logarithms of the uncertainties.
    burst : bool [M, T], steps that are shaded.
    present : [M, T], 1 or 0; the line has a gap where a modality is missing.
    ax : axes to draw on; a new figure without.

    Raises
    ------
    EdgeOptError
        If shapes differ.
    """
    given = listed("names", names)
    values, logs = (np.asarray(x, np.float64) for x in (signals, log_u))
    shape = (len(given), values.shape[-1] if values.ndim else 0)
    parts = {"signals": values, "log_u": logs}
    parts |= {name: np.asarray(x) for name, x in (("burst", burst), ("present", present)) if x is not None}
    for name, part in parts.items():
        if part.shape != shape or 0 in shape:
            raise EdgeOptError(f"{name}: shape {list(part.shape)}: expected {list(shape)}, of modalities and steps")
    ax = new_axes(ax, height=1.0 + 0.9 * len(given))
    steps = np.arange(shape[1])
    drawn: dict[str, Any] = {}
    for row in range(len(given)):
        m = len(given) - 1 - row
        line = row + _HEIGHT / 3 * np.clip(values[m], -4, 4)
        if present is not None:
            line = np.where(parts["present"][m] > 0, line, np.nan)
        range_of = np.ptp(logs[m])
        width = _BAND * (0.15 + 0.85 * (logs[m] - logs[m].min()) / (range_of if range_of > 1e-9 else 1.0))
        middle = np.where(np.isnan(line), row, line)
        drawn["uncertainty"] = ax.fill_between(
            steps, middle - width, middle + width, color=COLOURS[1], alpha=0.3, linewidth=0
        )
        (drawn["signal"],) = ax.plot(steps, line, color=COLOURS[0], linewidth=1.5)
        if burst is not None and parts["burst"][m].any():
            drawn["burst"] = ax.fill_between(
                steps, row - 0.48, row + 0.48, where=parts["burst"][m].astype(bool), color=GREY, alpha=0.2, linewidth=0,
                step="mid",
            )  # fmt: skip
        ax.axhline(row - 0.5, color="#DDDDDD", linewidth=0.6)
    ax.set_yticks(range(len(given)), [shown(name) for name in reversed(given)], parse_math=False)
    ax.set_ylim(-0.6, len(given) - 0.4)
    ax.set_xlim(0, max(1, shape[1] - 1))
    ax.set_xlabel("step")
    legend_outside(ax, {name: drawn[name] for name in ("signal", "uncertainty", "burst") if name in drawn})
    return ax
