"""How often each client's updates get through."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.evaluation.plots.style import (
    COLOURS,
    GREY,
    curve_styles,
    legend_outside,
    new_axes,
    title_left,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import ClientSelection, SelectionPlan


def plot_selection_fairness(
    problem: "ClientSelection", plans: "SelectionPlan | Mapping[str, SelectionPlan]", ax: "Axes | None" = None
) -> "Axes":
    """Draw the deliveries of each client, most first, with their mean and Jain's index; a line for each of several plans.

    Parameters
    ----------
    problem : a client-selection problem.
    plans : a plan, or several by name.
    ax : axes to draw on; a new figure without.
    """
    several = isinstance(plans, Mapping)
    named: dict[str, SelectionPlan] = dict(plans) if isinstance(plans, Mapping) else {"": plans}
    ax = new_axes(ax, height=3.6)
    clients, styles = np.arange(problem.num_clients), curve_styles(named)
    drawn: dict[str, Any] = {}
    for name, plan in named.items():
        report = problem.report(plan)
        ordered = np.sort(report.deliveries)[::-1]
        if several:
            label = f"{name}: {report.jain_index:.2f}"
            (drawn[label],) = ax.step(clients, ordered, where="mid", label=label, **styles[name])
            continue
        ax.bar(
            clients,
            ordered,
            width=1.0,
            color=COLOURS[0],
            edgecolor="white",
            linewidth=0.4 if clients.size <= 120 else 0,
        )
        mean = float(ordered.mean())
        label = f"mean {mean:.1f}"
        drawn[label] = ax.axhline(mean, color=GREY, linestyle="--", linewidth=1, label=label)
        without = int((ordered == 0).sum())
        title_left(ax, f"Jain's index {report.jain_index:.2f}, {without} of {clients.size} clients never get through")
    ax.grid(visible=False, axis="x")
    ax.set_xlim(-0.6, clients.size - 0.4)
    ax.set_ylim(bottom=0)
    whole_ticks(ax.xaxis, ax.yaxis)
    ax.set_xlabel(f"{clients.size} clients, most deliveries first")
    ax.set_ylabel(f"deliveries in {problem.rounds} rounds")
    legend_outside(ax, drawn, title="solver: Jain's index" if several else None)
    return ax
