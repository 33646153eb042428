"""What was planned for the users of a download, and what was measured when they were served."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.evaluation.plots.style import COLOURS, legend_outside, new_axes, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.inference.timeline import LayerTimeline
    from edgeopt.problems import DownloadPlan, ModelDownload

MAX_USERS = 24


def plot_served_timeline(
    problem: "ModelDownload",
    plan: "DownloadPlan",
    measured: "Mapping[int, LayerTimeline]",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw for each user the measured download and inference of its layers, the planned end, and the deadline.

    Parameters
    ----------
    problem, plan : what was decided.
    measured : timelines by user; the first 24 are drawn.
    ax : axes to draw on; a new figure without.
    """
    users = list(measured)[:MAX_USERS]
    ax = new_axes(ax, height=1.6 + 0.28 * max(3, len(users)))
    ax.grid(visible=False, axis="y")
    planned = problem.simulate(plan).completion_s
    drawn: dict[str, Any] = {}
    for y, user in enumerate(users):
        timeline = measured[user]
        for name, begin, end, colour, low in (
            ("download", timeline.download_start_s, timeline.download_finish_s, COLOURS[0], 0.02),
            ("inference", timeline.start_s, timeline.finish_s, COLOURS[1], -0.38),
        ):
            bars = np.stack([begin, end - begin], axis=1).tolist()
            drawn[name] = ax.broken_barh(
                bars, (y + low, 0.36), facecolors=colour, edgecolor="white", linewidth=0.4, label=name
            )
        (drawn["planned end"],) = ax.plot(
            [planned[user]] * 2, [y - 0.42, y + 0.42], color="#222222", linewidth=1.2, label="planned end"
        )
    drawn["deadline"] = ax.scatter(
        problem.deadline_s[users], range(len(users)), marker="|", s=90, color=COLOURS[3], zorder=3, label="deadline"
    )
    names = [f"{user}: {shown(problem.model_names[plan.model[user]])}" for user in users]
    ax.set_yticks(range(len(users)), names, fontsize=8, parse_math=False)
    ax.set_ylim(max(len(users), 1) - 0.4, -0.6)
    ax.set_xlim(left=0.0)
    ax.set_xlabel("seconds after the request, measured")
    if users:
        legend_outside(ax, drawn)
    return ax
