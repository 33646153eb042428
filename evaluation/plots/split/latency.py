"""Where a round of split training goes: every device's stages, and whom the others wait for."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.evaluation.plots.style import COLOURS, legend_above, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import SplitPlan, SplitReport, SplitTraining

MAX_DEVICES = 40
LABELS = {
    "device forward": COLOURS[0],
    "uplink": COLOURS[5],
    "server": COLOURS[2],
    "downlink": COLOURS[4],
    "device backward": COLOURS[1],
}
STRAGGLER = "#222222"


def plot_split_latency(problem: "SplitTraining", solution: "SplitPlan", ax: "Axes | None" = None) -> "Axes":
    """Draw one round as a chart of time: per device its five stages, with the two stragglers outlined.

    The server starts when the slowest device is up, works through the devices one after another, and then all go down
    at once. White space is waiting.

    Parameters
    ----------
    problem, solution : a split-training problem and a plan for it. Of more than 40 devices those are shown that keep
        others waiting the most.
    ax : axes to draw on; a new figure without.
    """
    report = problem.report(solution)
    shown = _shown(report)
    ax = new_axes(ax, height=float(np.clip(1.7 + 0.22 * shown.size, 2.6, 9.0)))
    ax.grid(visible=False, axis="y")
    start, drawn = _starts(report), {}
    for stage, (name, colour) in enumerate(LABELS.items()):
        width = report.stage_s[shown, stage]
        bars: dict[str, Any] = {"left": start[shown, stage], "height": 0.72, "color": colour, "label": name}
        drawn[name] = ax.barh(np.arange(shown.size), width, **bars)
    forward, server = report.forward_s, report.forward_s + report.server_s
    for device, left, width in (
        (report.forward_straggler, 0.0, report.forward_s),
        (report.backward_straggler, server, report.backward_s),
    ):
        if (row := np.flatnonzero(shown == device)).size:
            drawn["straggler"] = ax.barh(
                row, width, left=left, height=0.9, fill=False, edgecolor=STRAGGLER, linewidth=1.6, label="straggler"
            )
    for at in (forward, server):
        ax.axvline(at, color=STRAGGLER, linewidth=0.9, linestyle="--", zorder=0)
    ax.set_yticks(np.arange(shown.size), [str(device) for device in shown], fontsize=9 if shown.size <= 25 else 7)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(shown.size - 0.4, -0.6)
    ax.set_xlim(0.0, 1.01 * report.round_s)
    some = "" if shown.size == problem.num_devices else f" ({shown.size} slowest of {problem.num_devices})"
    ax.set_ylabel("device" + some)
    ax.set_xlabel("time in the round, s")
    legend_above(ax, drawn, title=_title(report, solution))
    return ax


def _shown(report: "SplitReport") -> NDArray[np.int64]:
    """Return the devices to draw, in their order: those nearest to being a straggler on the way up or down."""
    up, down = report.stage_s[:, :2].sum(axis=1), report.stage_s[:, 3:].sum(axis=1)
    late = np.maximum(up / max(report.forward_s, 1e-300), down / max(report.backward_s, 1e-300))
    return np.sort(np.argsort(-late, kind="stable")[:MAX_DEVICES])


def _starts(report: "SplitReport") -> NDArray[np.float64]:
    """Return [N, 5]: when each stage of each device begins."""
    stage = report.stage_s
    start = np.zeros_like(stage)
    start[:, 1] = stage[:, 0]
    start[:, 2] = report.forward_s + np.cumsum(stage[:, 2]) - stage[:, 2]
    start[:, 3] = report.forward_s + report.server_s
    start[:, 4] = start[:, 3] + stage[:, 3]
    return start


def _title(report: "SplitReport", plan: "SplitPlan") -> str:
    each = plan.aggregation_interval
    every = "every round" if each == 1 else f"every {each} rounds"
    return (
        f"round {report.round_s:.3g} s: up {report.forward_s:.3g} + server {report.server_s:.3g} + down "
        f"{report.backward_s:.3g};  aggregation {report.aggregation_s:.3g} s {every}"
    )
