"""How good models get against virtual time, bytes, energy or rounds, over several seeds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.evaluation.plots.style import MAX_BANDS, curve_styles, legend_outside, new_axes, whole_ticks
from edgeopt.validate import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.training import History

    Run: TypeAlias = History | Sequence[Mapping[str, float | int]]

Against = Literal["seconds", "bytes", "round", "energy_j", "carbon_g"]

_AXES: dict[str, tuple[str, tuple[str, ...], float]] = {  # label, columns that are added up, unit
    "seconds": ("virtual time, s", ("seconds",), 1.0),
    "bytes": ("sent up and down, MB", ("bytes_up", "bytes_down"), 1e6),
    "round": ("rounds", ("round",), 1.0),
    "energy_j": ("energy of the clients, J", ("energy_j",), 1.0),
    "carbon_g": ("CO2 of the clients' energy, g", ("carbon_g",), 1.0),
}
_NAMES = {
    "accuracy": "accuracy on held-out samples",
    "personal_accuracy": "accuracy of clients' own models on labels like theirs",
    "test_loss": "loss on held-out samples",
    "train_loss": "training loss",
}


def plot_training_curves(
    histories: "Mapping[str, Sequence[Run] | Run]",
    x: Against = "seconds",
    y: str = "accuracy",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the median over seeds, one line for each label, and of up to ten the band from the 20th to the 80th percentile.

    Seeds are brought together in steps: between two evaluations a run has what the last one found, and one that has
    ended keeps it. A line starts where every seed has been evaluated.

    Parameters
    ----------
    histories : by label the runs of all seeds, or one, each a `edgeopt.training.History` or its rows.
    x : virtual ``seconds``, ``bytes`` of all clients, ``round``, ``energy_j`` or ``carbon_g``.
    y : a column of the rows; rows where it is nan or None are left out.
    ax : axes to draw on; a new figure without.

    Raises
    ------
    EdgeOptError
        If there is nothing to draw under a label, or `x` is unknown.
    """
    if x not in _AXES:
        raise EdgeOptError(f"x = {quoted(x)}: expected one of {', '.join(_AXES)}")
    if not isinstance(histories, Mapping):
        raise EdgeOptError(f"histories: expected runs by label, got a {type(histories).__name__}")
    if not histories:
        raise EdgeOptError("histories: expected at least one label")
    label, columns, unit = _AXES[x]
    styles = curve_styles(histories)
    ax = new_axes(ax)
    drawn = {}
    for name, runs in histories.items():
        curves = [_curve(run, columns, y) for run in _runs(name, runs)]
        if not curves or not all(at.size for at, _ in curves):
            raise EdgeOptError(f"{name}: expected runs with at least one value of {quoted(y)} each")
        at, low, middle, high = _band(curves)
        style = styles[name] | {"drawstyle": "steps-post"}
        (drawn[name],) = ax.plot(at / unit, middle, label=name, **style)
        if len(curves) > 1 and len(histories) <= MAX_BANDS:
            ax.fill_between(at / unit, low, high, step="post", color=style["color"], alpha=0.2, linewidth=0)
    ax.set_xlim(left=0)
    if x == "round":
        whole_ticks(ax.xaxis)
    ax.set_xlabel(label)
    ax.set_ylabel(_NAMES.get(y, y), parse_math=False)
    legend_outside(ax, drawn)
    return ax


def _runs(name: str, given: "Sequence[Run] | Run") -> "list[Run]":
    """Return the runs under a label; one on its own, a history or its rows, is a list of it."""
    runs: list[Any] = [given] if hasattr(given, "rows") else listed(name, given, single=())
    return [runs] if runs and isinstance(runs[0], Mapping) else runs


def _curve(run: "Run", columns: tuple[str, ...], y: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where a run was evaluated, and what was found."""
    rows = run if isinstance(run, Sequence) else run.rows
    values = np.array([row[y] for row in rows], np.float64)  # None becomes nan
    at = np.array([sum(row[column] for column in columns) + (columns == ("round",)) for row in rows], np.float64)
    known = ~np.isnan(values)
    return at[known], values[known]


def _band(curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> list[NDArray[np.float64]]:
    """Return the steps of all curves, and percentiles 20, 50 and 80 of what they have there."""
    at = np.unique(np.concatenate([where for where, _ in curves]))
    at = at[at >= max(where[0] for where, _ in curves)]
    held = np.array(
        [values[np.searchsorted(where, at, side="right") - 1] for where, values in curves]
    )  # (seeds, steps)
    return [at, *np.percentile(held, [20, 50, 80], axis=0)]
