"""How long training takes for how good a model: seconds against the target, several solvers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.evaluation.compare.performance import with_gaps
from edgeopt.evaluation.plots.comparison.objective_against import plot_objective_against
from edgeopt.evaluation.plots.style import GREY, plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgeopt.problems import SplitTraining

MAX_TICKS = 12
FACTORS = (1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


def target_instances(problem: "SplitTraining", factors: Sequence[float] = FACTORS) -> dict[str, "SplitTraining"]:
    """Return the problem with other targets: the factors are in least feasible targets. Input of a comparison."""
    return {f"{factor:g} least targets": problem.replace(target=factor * problem.least_target) for factor in factors}


def plot_split_target(data: Any, ax: "Axes | None" = None) -> "Axes":
    """Draw seconds to the target against the target, for each solver; left of the line no plan reaches it.

    Parameters
    ----------
    data : rows of a comparison on `target_instances`, its data frame, or its folder.
    ax : axes to draw on; a new figure without.
    """
    rows = with_gaps(data)
    ax = plot_objective_against(rows, "target", ax, label="target ε, mean squared gradient norm")
    facts = [row.get("facts") or row for row in rows if row["feasible"]]
    least = [f["least target, gradient noise"] + f["least target, client drift"] for f in facts]
    targets = sorted({f["target"] for f in facts})
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(targets[:: -(-len(targets) // MAX_TICKS)])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    ax.xaxis.minorticks_off()
    plain_log_ticks(ax.yaxis)
    ax.set_ylabel("seconds to reach the target, Θ")
    ax.axvline(min(least), color=GREY, linewidth=1, linestyle="--", zorder=0)
    ax.annotate(
        "least target", (min(least), 0.02), (4, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
        fontsize=8.5, color=GREY,
    )  # fmt: skip
    return ax
