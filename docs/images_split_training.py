"""The pictures of docs/split-training.md, for docs/make_images.py."""

from pathlib import Path
from typing import Any

import edgeopt
from edgeopt.evaluation import comparison_rows
from edgeopt.evaluation.plots import (
    descent_paths,
    heterogeneity_rows,
    plot_split_decisions,
    plot_split_descent,
    plot_split_heterogeneity,
    plot_split_latency,
    plot_split_target,
    target_instances,
)
from edgeopt.problems import SplitTraining
from edgeopt.solvers import solvers_of


def draw_split_training(out: Path) -> None:
    """Draw latency, decisions, descent, seconds against the target and against heterogeneity, as PNG files."""
    problem = SplitTraining.random(num_devices=20, model="resnet18", seed=1)
    plan = edgeopt.solve(problem, "hasfl").solution
    _save(plot_split_latency(problem, plan), out / "split-training-latency.png")
    _save(plot_split_decisions(problem, plan), out / "split-training-decisions.png")
    _save(plot_split_descent(descent_paths(problem)), out / "split-training-descent.png")
    names = [solver.name for solver in solvers_of(problem.kind) if solver.name != "exact"]
    rows, _ = comparison_rows(target_instances(problem), names, executor="serial")
    _save(plot_split_target(rows), out / "split-training-target.png")
    _save(plot_split_heterogeneity(heterogeneity_rows()), out / "split-training-heterogeneity.png")


def _save(axes: Any, path: Path) -> None:
    axes.get_figure(root=True).savefig(path, dpi=110, metadata={"Software": None})
    print(f"wrote {path}")
