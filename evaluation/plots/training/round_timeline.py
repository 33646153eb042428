"""When each client of a training round receives, computes and sends, and who keeps the others waiting."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.plots.style import COLOURS, legend_above, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.training import RoundRecord

MAX_LANES = 40
STAGES = {"down": COLOURS[5], "compute": COLOURS[0], "up": COLOURS[2]}
WAITING = "#E4E4E4"
SERVER = COLOURS[3]
STRAGGLER = COLOURS[1]


def plot_round_timeline(record: "RoundRecord", ax: "Axes | None" = None) -> "Axes":
    """Draw a Gantt chart of one round: per client the way down, its work, the way up and waiting; below, the server.

    The name of the straggler, without whom the round would be shortest, is in colour. Clients whose update did not arrive are
    marked.

    Parameters
    ----------
    record : what `edgeopt.training.train` hands to ``on_round``, or the history's ``last``.
    ax : axes to draw on; a new figure without. Of many clients the 40 slowest are shown.
    """
    slowness = np.nan_to_num(record.client_seconds, nan=-1.0)
    shown = np.sort(np.argsort(-slowness, kind="stable")[:MAX_LANES])
    lane = {int(entry): y for y, entry in enumerate(shown)}
    with_server = any(phase.server_s.sum() > 0 for phase in record.phases)
    lanes = len(shown) + with_server
    ax = new_axes(ax, height=1.5 + 0.26 * max(lanes, 3))
    ax.grid(visible=False, axis="y")
    for phase in record.phases:
        end = phase.start_s + phase.client_s.max(initial=0.0)
        for position, entry in enumerate(phase.entry.tolist()):
            if (y := lane.get(entry)) is None:
                continue
            lengths = [getattr(phase, f"{stage}_s")[position] for stage in STAGES]
            starts = phase.start_s + np.cumsum([0.0, *lengths])
            _draw(ax, starts[:-1], np.array(lengths), y, list(STAGES.values()))
            _draw(ax, starts[-1:], np.array([end - starts[-1]]), y, [WAITING])
        if with_server and phase.server_s.size:
            starts = phase.start_s + phase.seconds - phase.server_s.sum() + np.cumsum([0.0, *phase.server_s[:-1]])
            _draw(ax, starts, phase.server_s, len(shown), [SERVER])
    names = [_name(record, entry) for entry in lane]
    ax.set_yticks(range(lanes), [*names, *["server"] * with_server])
    for text, entry in zip(ax.get_yticklabels(), lane, strict=False):
        if record.plan.client[entry] == record.straggler:
            text.set_color(STRAGGLER)
            text.set_fontweight("bold")
    ax.tick_params(axis="y", length=0, labelsize=9)
    ax.set_ylim(max(lanes, 1) - 0.4, -0.6)
    ax.set_xlim(0, record.seconds or 1.0)
    ax.set_xlabel("virtual time of the round, s")
    legend_above(ax, _entries(with_server), title=_title(record, len(shown)))
    return ax


def _draw(ax: "Axes", starts: NDArray[np.float64], lengths: NDArray[np.float64], y: int, colours: list[str]) -> None:
    bars = list(zip(starts.tolist(), lengths.tolist(), strict=True))
    # edges in white keep short exchanges apart
    ax.broken_barh(bars, (y - 0.38, 0.76), facecolors=colours, edgecolors="white", linewidth=0.2)


def _name(record: "RoundRecord", entry: int) -> str:
    client = f"client {record.plan.client[entry]}"
    if np.ptp(record.plan.server) > 0:
        client += f" at {record.plan.server[entry]}"
    return client if record.completed[entry] else f"{client}, lost"


def _title(record: "RoundRecord", shown: int) -> str:
    text = f"round {record.number}: {len(record.plan)} clients, {record.seconds:.4g} s"
    if record.straggler is not None:
        text += f", straggler: client {record.straggler}"
    return text + (f"; shown: the {shown} slowest" if shown < len(record.plan) else "")


def _entries(with_server: bool) -> dict[str, Any]:
    from matplotlib.patches import Patch

    colours = STAGES | {"waiting for the others": WAITING} | ({"server": SERVER} if with_server else {})
    return {name: Patch(color=colour) for name, colour in colours.items()}
