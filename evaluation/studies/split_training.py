"""HASFL trained for real: seconds to a target accuracy under five ways to choose batch sizes and cuts.

``python -m edgeopt.evaluation.studies.split_training --out out/split-training``

Twenty unequal devices train a small CNN by SplitFed, on the digits and on coloured pictures of the shape of CIFAR-10. A
pilot run with a seed of its own measures what the convergence bound speaks of: smoothness, gradient variance and second
moment, and the mean squared gradient norm on the way to the target accuracy, which becomes the target of the bound. With
them, every seed gives a problem of split training; each planner is a solver of it. Two lines are added: ``best-equal``,
the best plan of the bound that treats all devices alike, and ``hasfl-anew``, which plans again with constants that are
measured while the model trains. Time is the problem's own.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import edgeopt
from edgeopt import EdgeNetwork
from edgeopt.evaluation.studies.common import Row, parser, quiet_threads, write
from edgeopt.evaluation.studies.split_training_setup import (
    SETUPS,
    Constants,
    Setup,
    measured_constants,
    train_equally,
)
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.schedule import Planner
from edgeopt.solve import Solver
from edgeopt.solvers.split_training import AdaptSfl
from edgeopt.solvers.split_training.planner import HasflPlanner
from edgeopt.training import EdgeTiming, History, LocalRunner, Sgd, Task, train
from edgeopt.training.algorithms import SplitFed
from edgeopt.training.constants import GradientEstimator

SOLVERS: dict[str, str | Solver] = {
    "fixed": "fixed",
    "random-batch": "random-batch",
    "random-cut": "random-cut",
    "adaptsfl": "adaptsfl",
    "best-equal": AdaptSfl(batch=1),
    "hasfl": "hasfl",
}
ANEW = "hasfl-anew"
PILOT_SEED = 1000  # no run has it
MAX_BATCH = 32
INTERVALS = (1, 8)
AREA_M, SHADOWING_DB = 300.0, 4.0  # as in `SplitTraining.random`


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One training run under one planner."""

    data: str
    planner: str
    seed: int
    problem: SplitTraining
    plan: SplitPlan
    """The first plan; only ``hasfl-anew`` has others."""
    last: SplitPlan
    history: History
    target: float

    def row(self) -> Row:
        """Return what the run took up to the target accuracy, beside what the bound said."""
        reached = self.history.first_reach(self.target)
        at = self.history.rows[-1] if reached is None else reached
        report = self.problem.report(self.plan)
        return {
            "data": self.data,
            "planner": self.planner,
            "seed": self.seed,
            "reached": reached is not None,
            "seconds": float(at["seconds"]),
            "rounds": int(at["round"]) + 1,
            "megabytes": float(at["bytes_up"] + at["bytes_down"]) / 1e6,
            "joules": float(at["energy_j"]),
            "accuracy": float(self.history.rows[-1]["accuracy"]),
            "bound_s": report.total_s,
            "bound_rounds": report.rounds,
            "mean_batch": float(self.plan.batch_size.mean()),
            "mean_cut": float(self.plan.cut_layer.mean()),
            "interval": self.plan.aggregation_interval,
            "last_mean_batch": float(self.last.batch_size.mean()),
            "last_mean_cut": float(self.last.cut_layer.mean()),
        }


def problem_of(setup: Setup, task: Task, constants: Constants, seed: int) -> SplitTraining:
    """Return the problem of a seed: unequal devices around one server, the model as it was measured."""
    network = EdgeNetwork.random(
        1, task.num_clients, seed=seed, area_m=AREA_M, shadowing_db=SHADOWING_DB, fading=False,
        uplink_bandwidth_hz=setup.bandwidth_hz, downlink_bandwidth_hz=2 * setup.bandwidth_hz,
        device_flops=setup.device_flops, server_flops=setup.server_flops,
    )  # fmt: skip
    return SplitTraining.from_profile(
        task.profile,
        network,
        max_batch=np.minimum(MAX_BATCH, task.partition.sizes),  # a device cannot draw more samples than it has
        smoothness=constants.smoothness,
        gradient_variance=constants.gradient_variance,
        gradient_second_moment=constants.gradient_second_moment,
        initial_gap=constants.initial_gap,
        step_size=setup.step_size,
        target=constants.target,
        interval=INTERVALS,
    )


def run_one(
    setup: Setup, task: Task, problem: SplitTraining, name: str, seed: int, *, every: int, rate_sigma: float
) -> Run:
    """Train under a planner until the target accuracy is reached, or for the most rounds."""
    planner: Planner
    estimator = None
    if name == ANEW:
        plan = _solved(problem, "hasfl", seed)
        planner = HasflPlanner(problem, every=every, seed=seed)
        estimator = GradientEstimator(every=every)
    else:
        plan = _solved(problem, SOLVERS[name], seed)
        planner = plan.planner()
    history = train(
        task,
        SplitFed(Sgd(setup.step_size), weighting="uniform"),
        planner,
        EdgeTiming.from_problem(problem, rate_sigma=rate_sigma, seed=seed),
        rounds=setup.rounds,
        evaluate_every=setup.evaluate_every,
        until_accuracy=setup.accuracy,
        runner=LocalRunner(),
        estimator=estimator,
    )
    last = planner.split_plan if isinstance(planner, HasflPlanner) else None
    return Run(setup.name, name, seed, problem, plan, last or plan, history, setup.accuracy)


def _solved(problem: SplitTraining, solver: str | Solver, seed: int) -> SplitPlan:
    solution: Any = edgeopt.solve(problem, solver, seed=seed).raise_for_status().solution
    plan: SplitPlan = solution
    return plan


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return for each data set and planner: medians over seeds, and ratios to `hasfl` seed by seed."""
    found: list[Row] = []
    for data, planner in dict.fromkeys((row["data"], row["planner"]) for row in rows):
        own = [row for row in rows if (row["data"], row["planner"]) == (data, planner)]
        best = {row["seed"]: row for row in rows if (row["data"], row["planner"]) == (data, "hasfl")}
        low, middle, high = np.percentile([row["seconds"] for row in own], [20, 50, 80])
        measured = [row["seconds"] / best[row["seed"]]["seconds"] for row in own]
        bound = [row["bound_s"] / best[row["seed"]]["bound_s"] for row in own]
        found.append(
            {
                "data": data,
                "planner": planner,
                "reached": f"{sum(row['reached'] for row in own)} of {len(own)}",
                "seconds": float(middle),
                "20 to 80 %": f"{low:.3g} to {high:.3g}",
                "rounds": float(np.median([row["rounds"] for row in own])),
                "MB": float(np.median([row["megabytes"] for row in own])),
                "J": float(np.median([row["joules"] for row in own])),
                "times hasfl": float(np.median(measured)),
                "by the bound": float(np.median(bound)),
                "batch": float(np.mean([row["mean_batch"] for row in own])),
                "cut": float(np.mean([row["mean_cut"] for row in own])),
            }
        )
    return found


def decisions(runs: Sequence[Run]) -> list[Row]:
    """Return batch size and cut of each device under each planner, slowest device first."""
    rows = []
    for device in np.argsort(runs[0].problem.device_flops).tolist():
        row: Row = {"data": runs[0].data, "device": device}
        row["mflops"] = float(runs[0].problem.device_flops[device]) / 1e6
        row["up_mbps"] = float(runs[0].problem.uplink_bps[device]) / 1e6
        for run in runs:
            row[run.planner] = f"{run.last.batch_size[device]} at {run.last.cut_layer[device]}"
        rows.append(row)
    return rows


def batch_rows(setup: Setup, constants: Constants, tasks: Sequence[Task], batches: Sequence[int]) -> list[Row]:
    """Return for equal batch sizes the rounds that training takes to the target accuracy, and what the bound says."""
    rows: list[Row] = []
    for batch in batches:
        rounds = [len(train_equally(setup, task, batch).rows) for task in tasks]
        low, middle, high = np.percentile(rounds, [20, 50, 80])
        bound = constants.rounds(setup, tasks[0].num_clients, batch)
        row = {"data": setup.name, "batch": batch, "rounds": float(middle), "20 to 80 %": f"{low:.3g} to {high:.3g}"}
        rows.append(row | {"by the bound": bound})
    return rows


def experiment(arguments: argparse.Namespace) -> tuple[list[Run], list[Row], list[Row]]:
    """Measure the constants of each data set, train under every planner and seed, and with equal batches if asked."""
    runs: list[Run] = []
    constants: list[Row] = []
    batches: list[Row] = []
    for name in arguments.data:
        setup = SETUPS[name]
        if arguments.rounds is not None:
            setup = setup.shortened(arguments.rounds)
        pilot = setup.task(arguments.devices, PILOT_SEED)
        known = measured_constants(setup, pilot)
        constants.append({"data": name, **known.row()})
        for seed in range(arguments.seeds):
            task = setup.task(arguments.devices, seed)
            problem = problem_of(setup, task, known, seed)
            for planner in (*SOLVERS, ANEW):
                run = run_one(
                    setup, task, problem, planner, seed, every=arguments.every, rate_sigma=arguments.rate_sigma
                )
                runs.append(run)
                row = run.row()
                print(
                    f"{name}, seed {seed}, {planner}: {row['seconds']:.4g} s, {row['rounds']} rounds, "
                    f"accuracy {row['accuracy']:.3f}", file=sys.stderr, flush=True,
                )  # fmt: skip
        tasks = [setup.task(arguments.devices, seed) for seed in range(arguments.seeds)]
        batches += batch_rows(setup, known, tasks, arguments.batches)
    return runs, constants, batches


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, train, and write tables and pictures."""
    arguments = parser(__doc__, argv, options=_options)
    quiet_threads()
    runs, constants, batches = experiment(arguments)
    rows = [run.row() for run in runs]
    tables: dict[str, Sequence[Row]] = {"constants": constants, "summary": summary(rows), "runs": rows}
    if batches:
        tables["batches"] = batches
    pictures: dict[str, Any] = {}
    for name in arguments.data:
        own = [run for run in runs if run.data == name]
        first = [run for run in own if run.seed == 0]
        tables[f"decisions-{name}"] = decisions(first)
        histories = {run.planner: [other.history for other in own if other.planner == run.planner] for run in first}
        pictures[f"split-rounds-{name}"] = partial(_draw_curves, histories)
        hasfl = next(run for run in first if run.planner == "hasfl")
        pictures[f"split-rounds-decisions-{name}"] = partial(_draw_decisions, hasfl)
    write(arguments, tables, pictures)


def _options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--data", nargs="+", choices=list(SETUPS), default=list(SETUPS), help="data sets")
    options.add_argument("--seeds", type=int, default=5, help="runs of each planner")
    options.add_argument("--devices", type=int, default=20)
    options.add_argument("--rounds", type=int, default=None, help="most rounds; default: by data set")
    options.add_argument("--every", type=int, default=20, help="rounds between two measurements of hasfl-anew")
    options.add_argument("--batches", type=int, nargs="*", default=[], help="also train with these batch sizes for all")
    options.add_argument("--rate-sigma", type=float, default=0.0, help="fading of the rates, see EdgeTiming")


def _draw_curves(histories: Mapping[str, Sequence[History]]) -> Any:
    from edgeopt.evaluation.plots.training.curves import plot_training_curves

    axes = plot_training_curves(histories)
    axes.autoscale(axis="x")
    axes.set_xscale("log")  # planners differ by factors
    return axes


def _draw_decisions(run: Run) -> Any:
    from edgeopt.evaluation.plots.split.decisions import plot_split_decisions

    return plot_split_decisions(run.problem, run.plan)


if __name__ == "__main__":
    main()
