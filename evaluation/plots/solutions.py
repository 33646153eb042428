"""Which pictures show a solution of each kind of problem: for the report and the documentation."""

from typing import TYPE_CHECKING, Any

from edgeopt.evaluation import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOLUTION_PICTURES: dict[str, tuple[tuple[str, str], ...]] = {
    "expert-caching": (("What the best placement caches where", "plot_placement"),),
    "model-download": (
        ("When the layers of each user arrive and run", "plot_download_timeline"),
        ("Bandwidth of the admitted users", "plot_bandwidth_bars"),
    ),
    "split-training": (
        ("Where a round goes, and whom the others wait for", "plot_split_latency"),
        ("Batch size and cut layer of each device", "plot_split_decisions"),
    ),
    "client-selection": (
        ("Who is picked when, and by which server", "plot_selection_rounds"),
        ("How often each client gets through", "plot_selection_fairness"),
    ),
    "expert-balancing": (("Load of each device, in the layer that is balanced worst", "plot_balance"),),
}
"""By kind of problem: caption, and the function of `edgeopt.evaluation.plots` that takes problem and solution."""


def draw_solution(function: str, problem: Any, solution: Any) -> "Axes":
    """Draw one picture of `SOLUTION_PICTURES`; matplotlib loads only now."""
    axes: Axes = getattr(plots, function)(problem, solution)
    return axes
