"""Pictures: one function per file, `plot_x(data, ax=None) -> Axes`, no pyplot state; a folder for each subject.

Every function is an attribute of this package, and loads matplotlib when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.evaluation.plots.balancing import plot_balance as plot_balance
    from edgeopt.evaluation.plots.caching.inference_latency import plot_inference_latency as plot_inference_latency
    from edgeopt.evaluation.plots.caching.placement import plot_placement as plot_placement
    from edgeopt.evaluation.plots.comparison.bounds import plot_bounds as plot_bounds
    from edgeopt.evaluation.plots.comparison.gap_against_time import plot_gap_against_time as plot_gap_against_time
    from edgeopt.evaluation.plots.comparison.objective_against import plot_objective_against as plot_objective_against
    from edgeopt.evaluation.plots.comparison.performance_profile import (
        plot_performance_profile as plot_performance_profile,
    )
    from edgeopt.evaluation.plots.download.bandwidth_bars import plot_bandwidth_bars as plot_bandwidth_bars
    from edgeopt.evaluation.plots.download.rolling import plot_rolling as plot_rolling
    from edgeopt.evaluation.plots.download.served_timeline import plot_served_timeline as plot_served_timeline
    from edgeopt.evaluation.plots.download.throughput import download_throughput as download_throughput
    from edgeopt.evaluation.plots.download.throughput import plot_download_throughput as plot_download_throughput
    from edgeopt.evaluation.plots.download.timeline import plot_download_timeline as plot_download_timeline
    from edgeopt.evaluation.plots.fusion.reliability import plot_reliability as plot_reliability
    from edgeopt.evaluation.plots.fusion.uncertainty import plot_uncertainty as plot_uncertainty
    from edgeopt.evaluation.plots.fusion.weights import plot_modality_weights as plot_modality_weights
    from edgeopt.evaluation.plots.network import plot_network as plot_network
    from edgeopt.evaluation.plots.selection.fairness import plot_selection_fairness as plot_selection_fairness
    from edgeopt.evaluation.plots.selection.forecast_calibration import (
        plot_forecast_calibration as plot_forecast_calibration,
    )
    from edgeopt.evaluation.plots.selection.frontier import plot_selection_frontier as plot_selection_frontier
    from edgeopt.evaluation.plots.selection.rounds import plot_selection_rounds as plot_selection_rounds
    from edgeopt.evaluation.plots.selection.training import plot_selection_training as plot_selection_training
    from edgeopt.evaluation.plots.solutions import draw_solution as draw_solution
    from edgeopt.evaluation.plots.split.decisions import plot_split_decisions as plot_split_decisions
    from edgeopt.evaluation.plots.split.descent import descent_paths as descent_paths
    from edgeopt.evaluation.plots.split.descent import plot_split_descent as plot_split_descent
    from edgeopt.evaluation.plots.split.heterogeneity import heterogeneity_rows as heterogeneity_rows
    from edgeopt.evaluation.plots.split.heterogeneity import plot_split_heterogeneity as plot_split_heterogeneity
    from edgeopt.evaluation.plots.split.latency import plot_split_latency as plot_split_latency
    from edgeopt.evaluation.plots.split.target import plot_split_target as plot_split_target
    from edgeopt.evaluation.plots.split.target import target_instances as target_instances
    from edgeopt.evaluation.plots.training.curves import plot_training_curves as plot_training_curves
    from edgeopt.evaluation.plots.training.data_partition import plot_data_partition as plot_data_partition
    from edgeopt.evaluation.plots.training.round_timeline import plot_round_timeline as plot_round_timeline
    from edgeopt.evaluation.plots.what_if import plot_what_if as plot_what_if

_LAZY = {
    "plot_balance": "balancing",
    "plot_inference_latency": "caching.inference_latency",
    "plot_placement": "caching.placement",
    "plot_bounds": "comparison.bounds",
    "plot_gap_against_time": "comparison.gap_against_time",
    "plot_objective_against": "comparison.objective_against",
    "plot_performance_profile": "comparison.performance_profile",
    "plot_bandwidth_bars": "download.bandwidth_bars",
    "plot_rolling": "download.rolling",
    "plot_served_timeline": "download.served_timeline",
    "download_throughput": "download.throughput",
    "plot_download_throughput": "download.throughput",
    "plot_download_timeline": "download.timeline",
    "plot_reliability": "fusion.reliability",
    "plot_uncertainty": "fusion.uncertainty",
    "plot_modality_weights": "fusion.weights",
    "plot_network": "network",
    "plot_selection_fairness": "selection.fairness",
    "plot_forecast_calibration": "selection.forecast_calibration",
    "plot_selection_frontier": "selection.frontier",
    "plot_selection_rounds": "selection.rounds",
    "plot_selection_training": "selection.training",
    "draw_solution": "solutions",
    "plot_split_decisions": "split.decisions",
    "descent_paths": "split.descent",
    "plot_split_descent": "split.descent",
    "heterogeneity_rows": "split.heterogeneity",
    "plot_split_heterogeneity": "split.heterogeneity",
    "plot_split_latency": "split.latency",
    "plot_split_target": "split.target",
    "target_instances": "split.target",
    "plot_training_curves": "training.curves",
    "plot_data_partition": "training.data_partition",
    "plot_round_timeline": "training.round_timeline",
    "plot_what_if": "what_if",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgeopt.evaluation.plots' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgeopt.evaluation.plots.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
