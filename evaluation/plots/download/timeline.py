"""When each user's layers arrive and run."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.plots.style import COLOURS, legend_above, new_axes, shown
from edgeopt.validate import int_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import DownloadPlan, DownloadTimeline, ModelDownload

MAX_LANES = 24
MAX_COUNTS = 4  # plans whose counts have room in a title
DOWNLOAD = (COLOURS[0], "#7FB8DC")  # the layers take turns between two tints
INFERENCE = (COLOURS[1], "#EFA876")
DEADLINE = "#222222"
TEXT = "#555555"


def plot_download_timeline(
    problem: "ModelDownload",
    plans: "DownloadPlan | Mapping[str, DownloadPlan]",
    ax: "Axes | None" = None,
    *,
    users: Collection[int] | None = None,
    one_after_another: Collection[str] = ("download-then-infer",),
) -> "Axes":
    """Draw a Gantt chart: per user the download of the layers above, their inference below, and the deadline.

    Parameters
    ----------
    problem : a model-download problem.
    plans : a plan, or several by name, one lane of each user for every plan.
    ax : axes to draw on; a new figure without.
    users : whom to show; default: the first that any plan admits, up to 24 lanes.
    one_after_another : names of plans whose users run nothing before the whole model is there.
    """
    named = dict(plans) if isinstance(plans, Mapping) else {"": plans}
    if not named:
        raise EdgeOptError("plans: expected at least one plan")
    admitted = np.flatnonzero(np.any([plan.admitted for plan in named.values()], axis=0))
    if users is None:
        shown = admitted[: max(1, MAX_LANES // len(named))].tolist()
    else:
        shown = int_array("users", list(users), (None,), low=0, high=problem.num_users - 1).tolist()
    lanes = [(user, name) for user in shown for name in named]
    timelines = {name: problem.simulate(plan) for name, plan in named.items()}
    spacing = [i + 0.5 * (i // len(named)) * (len(named) > 1) for i in range(len(lanes))]  # users apart, plans together
    ax = new_axes(ax, height=1.5 + 0.3 * max(3.0, *spacing, 0.0) if spacing else 2.4)
    ax.grid(visible=False, axis="y")
    for y, (user, name) in zip(spacing, lanes, strict=True):
        plan = named[name]
        if plan.model[user] < 0:
            ax.text(0.0, y, " refused", va="center", fontsize=8, style="italic", color=TEXT)
            continue
        bars = _bars(timelines[name], user, sequential=name in one_after_another)
        _draw(ax, bars[0], y - 0.42, DOWNLOAD)
        _draw(ax, bars[1], y + 0.02, INFERENCE)
    for y, (user, _) in zip(spacing, lanes, strict=True):
        ax.plot([problem.deadline_s[user]] * 2, [y - 0.5, y + 0.5], color=DEADLINE, linewidth=2, solid_capstyle="butt")
    ax.set_yticks(spacing, _labels(lanes, named), parse_math=False)
    ax.tick_params(axis="y", length=0)
    if spacing:
        ax.set_ylim(spacing[-1] + 0.7, -0.7)
    ax.set_xlim(left=0)
    ax.set_xlabel("time, s")
    part = f"; shown: {len(shown)}" if len(shown) < admitted.size else ""
    legend_above(ax, _entries(), title=_title(problem, named) + part)
    return ax


def _bars(timeline: "DownloadTimeline", user: int, *, sequential: bool) -> list[NDArray[np.float64]]:
    """Return start and length [2][L, 2] of the downloads and of the inferences of one user."""
    own = slice(timeline.indptr[user], timeline.indptr[user + 1])
    arrived, start, finish = timeline.download_finish_s[own], timeline.start_s[own], timeline.finish_s[own]
    seconds = finish - start
    if sequential:
        start = arrived[-1] + np.concatenate([[0.0], np.cumsum(seconds)[:-1]])
    asked = timeline.download_start_s[own]
    return [np.column_stack([asked, arrived - asked]), np.column_stack([start, seconds])]


def _draw(ax: "Axes", bars: NDArray[np.float64], y: float, tints: tuple[str, str]) -> None:
    colours = [tints[layer % 2] for layer in range(len(bars))]
    ax.broken_barh(
        [tuple(bar) for bar in bars.tolist()], (y, 0.4), facecolors=colours, edgecolors=colours, linewidth=0.3
    )


def _labels(lanes: list[tuple[int, str]], named: Mapping[str, Any]) -> list[str]:
    first = next(iter(named))
    if len(named) == 1:
        return [f"user {user}" for user, _ in lanes]
    return [f"user {user}   {shown(name)}" if name == first else shown(name) for user, name in lanes]


def _title(problem: "ModelDownload", named: "Mapping[str, DownloadPlan]") -> str:
    if len(named) == 1:
        return f"{next(iter(named.values())).num_admitted} of {problem.num_users} users done in time"
    if len(named) > MAX_COUNTS:
        done = [plan.num_admitted for plan in named.values()]
        return f"{min(done)} to {max(done)} of {problem.num_users} users done in time, under {len(named)} plans"
    counts = ", ".join(f"{shown(name)} {plan.num_admitted}" for name, plan in named.items())
    return f"done in time, of {problem.num_users} users: {counts}"


def _entries() -> dict[str, Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return {
        "download, layer by layer": Patch(color=DOWNLOAD[0]),
        "inference": Patch(color=INFERENCE[0]),
        "deadline": Line2D([], [], color=DEADLINE, linewidth=2, marker=""),
    }
