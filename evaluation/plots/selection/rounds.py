"""Who is picked when, and by which server."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.plots.style import COLOURS, GREY, legend_outside, new_axes, title_left, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import ClientSelection, SelectionPlan

MAX_CELLS = 1500  # of clients x rounds that are drawn one by one
MAX_BLOCKS = 100  # along each side of the heat map
PICKED, CONFLICT = "#0072B2", "#D55E00"
_Bools = NDArray[np.bool_]


def plot_selection_rounds(problem: "ClientSelection", solution: "SelectionPlan", ax: "Axes | None" = None) -> "Axes":
    """Draw clients against rounds: a box in the server's colour for each pick, with a cross if it conflicts.

    A client that several servers pick in a round has a box for each of them. Large problems become a heat map: how often
    clients are picked, and how much of it is in vain.

    Parameters
    ----------
    problem, solution : a client-selection problem and a plan for it.
    ax : axes to draw on; a new figure without.
    """
    picked, conflict = picks_and_conflicts(problem, solution)
    small = problem.rounds * problem.num_clients <= MAX_CELLS and problem.num_servers <= len(COLOURS)
    height = 1.4 + (0.17 * problem.num_clients if small else 3.6)
    ax = new_axes(ax, height=float(np.clip(height, 2.6, 9.0)))
    ax.grid(visible=False)
    whole_ticks(ax.xaxis, ax.yaxis)
    drawn = (_boxes if small else _heat)(ax, picked, conflict)
    ax.set_xlabel("round")
    ax.set_ylabel("client")
    share = 100 * conflict.sum() / max(1, picked.sum())
    title_left(ax, f"{int(picked.sum()):,} picks, {share:.1f} % in conflict")
    legend_outside(ax, drawn)
    return ax


def picks_and_conflicts(problem: "ClientSelection", solution: "SelectionPlan") -> tuple[_Bools, _Bools]:
    """Return bool [T, S, C] twice: whether a server picks a client in a round, and whether that conflicts."""
    from edgeopt.problems.client_selection.environment import SelectionEnvironment

    environment = SelectionEnvironment(problem)
    conflict = np.stack([environment.replay(solution.picks[t : t + 1]).outcome[0] == 1 for t in range(problem.rounds)])
    return solution.mask(problem.num_clients), conflict


def _boxes(ax: "Axes", picked: _Bools, conflict: _Bools) -> dict[str, Any]:
    """Draw every pick, and return what the legend names; boxes of one client and round are side by side, by the number of the server."""
    from matplotlib.collections import PolyCollection

    rounds, servers, clients = picked.shape
    count, place = picked.sum(axis=1), np.cumsum(picked, axis=1) - 1  # (T, C), (T, S, C)
    crosses: list[tuple[float, float]] = []
    drawn: dict[str, Any] = {}
    for s in range(servers):
        t, c = np.nonzero(picked[:, s])
        width = 0.86 / count[t, c]
        left = t - 0.43 + place[t, s, c] * width
        corners = [left, c - 0.4], [left + width, c - 0.4], [left + width, c + 0.4], [left, c + 0.4]
        boxes = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
        name = f"server {s}"
        drawn[name] = ax.add_collection(PolyCollection(list(boxes), facecolor=COLOURS[s], linewidth=0, label=name))
        bad = conflict[t, s, c]
        crosses += zip((left + width / 2)[bad].tolist(), c[bad].tolist(), strict=True)
    if crosses:
        x, y = zip(*crosses, strict=True)
        size = float(np.clip(1200 / max(rounds, 2 * clients), 4, 30))
        ax.scatter(x, y, marker="x", s=size, color="white", linewidth=3.0)
        drawn["conflict"] = ax.scatter(x, y, marker="x", s=size, color="black", linewidth=1.1, label="conflict")
    ax.set_xlim(-0.6, rounds - 0.4)
    ax.set_ylim(clients - 0.4, -0.6)
    ax.set_yticks(range(0, clients, -(-clients // 30)))
    return drawn


def _heat(ax: "Axes", picked: _Bools, conflict: _Bools) -> dict[str, Any]:
    """Draw shades of two colours over blocks of clients and rounds, and return what the legend names."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    rounds, _, clients = picked.shape
    good, bad = (
        _blocks((mask.sum(axis=1) > 0).T) for mask in (picked & ~conflict.any(axis=1, keepdims=True), conflict)
    )
    most = max(float((good + bad).max()), 1e-9)
    tints = [np.array(to_rgb(colour)) for colour in (PICKED, CONFLICT)]
    image = 1 - sum(part[..., None] / most * (1 - tint) for part, tint in zip((good, bad), tints, strict=True))
    ax.imshow(
        np.clip(image, 0, 1), aspect="auto", interpolation="nearest", extent=(-0.5, rounds - 0.5, clients - 0.5, -0.5)
    )
    for spine in ax.spines.values():
        spine.set_color(GREY)
    return {"picked, no conflict": Patch(facecolor=PICKED), "picked, conflict": Patch(facecolor=CONFLICT)}


def _blocks(mask: _Bools) -> NDArray[np.float64]:
    """Return means of bool [C, T] over at most `MAX_BLOCKS` by `MAX_BLOCKS` blocks."""
    values = mask.astype(np.float64)
    for axis in (0, 1):
        edges = np.linspace(0, values.shape[axis], min(values.shape[axis], MAX_BLOCKS) + 1).round().astype(int)
        widths = np.diff(edges).reshape((-1, 1) if axis == 0 else (1, -1))
        values = np.add.reduceat(values, edges[:-1], axis=axis) / widths
    return values
