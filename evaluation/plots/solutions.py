"""Which pictures show a solution of each kind of problem: for the report and the documentation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOLUTION_PICTURES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "expert-caching": (("What the best placement caches where", "placement", "plot_placement"),),
    "model-download": (
        ("When the layers of each user arrive and run", "download_timeline", "plot_download_timeline"),
        ("Bandwidth of the admitted users", "bandwidth_bars", "plot_bandwidth_bars"),
    ),
    "split-training": (
        ("Where a round goes, and whom the others wait for", "split_latency", "plot_split_latency"),
        ("Batch size and cut layer of each device", "split_decisions", "plot_split_decisions"),
    ),
    "client-selection": (
        ("Who is picked when, and by which server", "selection_rounds", "plot_selection_rounds"),
        ("How often each client gets through", "selection_fairness", "plot_selection_fairness"),
    ),
}
"""By kind of problem: caption, module of `edgeopt.evaluation.plots`, and the function in it of problem and solution."""


def draw_solution(module: str, function: str, problem: Any, solution: Any) -> "Axes":
    """Draw one picture of `SOLUTION_PICTURES`; matplotlib loads only now."""
    plots = importlib.import_module(f"edgeopt.evaluation.plots.{module}")
    axes: Axes = getattr(plots, function)(problem, solution)
    return axes
