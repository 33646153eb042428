"""The pictures of docs/client-selection.md, for docs/make_images.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edgeopt
from edgeopt.evaluation.benchmarks.held_out_selection import played_forecasts
from edgeopt.evaluation.benchmarks.selection_quality import make_rows
from edgeopt.evaluation.plots import (
    plot_forecast_calibration,
    plot_selection_fairness,
    plot_selection_frontier,
    plot_selection_rounds,
    plot_selection_training,
)
from edgeopt.problems import ClientSelection
from edgeopt.solvers.client_selection import RlCrp, RlCrpPlain, RlNoCrp, RlNoFairness, TrainedPolicy
from edgeopt.solvers.client_selection.learner import Iteration, Learner, LearnerSettings
from edgeopt.solvers.client_selection.rl import play_policy

LEARNERS = (RlCrp(), RlCrpPlain(), RlNoCrp(), RlNoFairness())
BASELINES = ("matching", "reservation", "round-robin", "fastest", "random")
FRONTIER_SEEDS = 3


def draw_client_selection(out: Path, rows: Path | None = None) -> None:
    """Draw rounds, training, fairness, frontier and calibration, as PNG files.

    Parameters
    ----------
    out : folder of the pictures.
    rows : rows that ``python -m edgeopt.evaluation.benchmarks.selection_quality --rows FILE`` kept. Without, the frontier
        alone takes about a quarter of an hour.
    """
    small = ClientSelection.random(num_servers=3, num_clients=24, picks=3, rounds=40, seed=2)
    plan = play_policy(small.replace(seed=1000), RlCrp().train(small))
    _save(plot_selection_rounds(small.replace(seed=1000), plan), out / "client-selection-rounds.png")
    problem = ClientSelection.random()
    trained = {solver.name: train(solver, problem) for solver in LEARNERS}
    runs = {name: played for name, (_, played) in trained.items() if name != "rl-no-fairness"}
    _save(plot_selection_training(runs), out / "client-selection-training.png")
    held_out = problem.replace(seed=1000)
    plans = {name: play_policy(held_out, policy) for name, (policy, _) in trained.items()}
    plans |= {name: edgeopt.solve(held_out, name).solution for name in BASELINES}
    _save(plot_selection_fairness(held_out, plans), out / "client-selection-fairness.png")
    _save(plot_forecast_calibration(played_forecasts(problem)), out / "client-selection-calibration.png")
    draw_frontier(out, rows)


def draw_frontier(out: Path, rows: Path | None) -> None:
    """Draw conflicts against fairness; makes the rows that are not in the file."""
    options = argparse.Namespace(quick=False, seeds=FRONTIER_SEEDS, episodes=20, rows=rows)
    made = make_rows(options, ("frontier", "default"))
    weighted = [row for row in made if row["part"] == "frontier" and row["solver"] != "matching"]
    others = [row for row in made if row["part"] == "default" and row["solver"] not in ("rl-crp", "rl-no-crp")]
    _save(plot_selection_frontier([*weighted, *others]), out / "client-selection-frontier.png")


def train(solver: RlCrp, problem: ClientSelection) -> tuple[TrainedPolicy, Sequence[Iteration]]:
    """Train as the solver does, and return the policy and what every iteration played."""
    settings = LearnerSettings(
        episodes=solver.episodes, hidden=solver.hidden, epochs=solver.epochs, minibatches=solver.minibatches,
        learning_rate=solver.learning_rate, forecasts=solver.forecasts, reserves=solver.reserves,
    )  # fmt: skip
    learner = Learner(problem if solver.fair else problem.replace(fairness_weight=0.0), settings, 0)
    played = [learner.step() for _ in range(solver.iterations)]
    return learner.policy(), played


def _save(axes: Any, path: Path) -> None:
    axes.get_figure(root=True).savefig(path, dpi=110, metadata={"Software": None})
    print(f"wrote {path}")
