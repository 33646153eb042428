"""HASFL trained for real: seconds to a target accuracy under five ways to choose batch sizes and cuts.

``edgeopt study split-training --out out/split-training``

Twenty unequal devices train a small CNN by SplitFed, on the digits and on coloured pictures of the shape of CIFAR-10. A
pilot run with a seed of its own measures what the convergence bound speaks of: smoothness, gradient variance and second
moment, and the mean squared gradient norm on the way to the target accuracy, which becomes the target of the bound. With
them, every seed gives a problem of split training; each planner is a solver of it. Two lines are added: ``best-equal``,
the best plan of the bound that treats all devices alike, and ``hasfl-anew``, which plans again with constants that are
measured while the model trains. Time is the problem's own. Beside the planners, all devices train with equal batches,
for the rounds that they take and those that the bound asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import edgeopt
from edgeopt import EdgeNetwork, storage
from edgeopt.evaluation.compare.rows import Row
from edgeopt.evaluation.studies.claims import Claim, Level, Ratio
from edgeopt.evaluation.studies.split_training_setup import (
    SETUPS,
    Constants,
    Setup,
    measured_constants,
    train_equally,
)
from edgeopt.evaluation.studies.study import Found, Picture, Study, StudyCell, finished
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.schedule import Planner
from edgeopt.solve import Solver
from edgeopt.solvers.split_training import AdaptSfl
from edgeopt.solvers.split_training.planner import HasflPlanner
from edgeopt.storage import dumps
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
PLANNERS = (*SOLVERS, ANEW)
EQUAL = {f"batch-{batch}": batch for batch in (1, 2, 4, 8, 16, 32)}
PILOT_SEED = 1000  # no run has it
MAX_BATCH = 32
INTERVALS = (1, 8)
AREA_M, SHADOWING_DB = 300.0, 4.0  # as in `SplitTraining.random`


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common.

    Parameters
    ----------
    devices : who train.
    rounds : at most; None for as many as the data set has.
    every : rounds between two measurements of hasfl-anew.
    rate_sigma : fading of the rates, see `EdgeTiming`.
    """

    devices: int = 20
    rounds: int | None = None
    every: int = 20
    rate_sigma: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One training run under one planner; only ``hasfl-anew`` has another plan at last than at first."""

    problem: SplitTraining
    plan: SplitPlan
    last: SplitPlan
    history: History
    target: float

    def row(self) -> Row:
        """Return what the run took up to the target accuracy, beside what the bound said."""
        reached = self.history.first_reach(self.target)
        at = self.history.rows[-1] if reached is None else reached
        report = self.problem.report(self.plan)
        return {
            "reached": reached is not None,
            "target_seconds": None if reached is None else float(at["seconds"]),
            "seconds": float(at["seconds"]),
            "rounds": int(at["round"]) + 1,
            "megabytes": float(at["bytes_up"] + at["bytes_down"]) / 1e6,
            "joules": float(at["energy_j"]),
            "accuracy": float(self.history.rows[-1]["accuracy"]),
            "bound_s": report.total_s,
            "bound_rounds": report.rounds,
            "rounds_over_bound": (int(at["round"]) + 1) / report.rounds,
            "mean_batch": float(self.plan.batch_size.mean()),
            "mean_cut": float(self.plan.cut_layer.mean()),
            "interval": self.plan.aggregation_interval,
            "last_mean_batch": float(self.last.batch_size.mean()),
            "last_mean_cut": float(self.last.cut_layer.mean()),
        }

    def drawn(self) -> Row:
        """Return what pictures and the table of decisions need."""
        rows = self.history.rows
        return {
            "curve": [{name: row[name] for name in ("seconds", "accuracy")} for row in rows],
            "plan": self.plan.to_json(),
            "last": self.last.to_json(),
            "mflops": self.problem.device_flops / 1e6,
            "up_mbps": self.problem.uplink_bps / 1e6,
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


def run_one(setup: Setup, task: Task, problem: SplitTraining, name: str, seed: int, setting: Setting) -> Run:
    """Train under a planner until the target accuracy is reached, or for the most rounds."""
    planner: Planner
    estimator = None
    if name == ANEW:
        plan = _solved(problem, "hasfl", seed)
        planner = HasflPlanner(problem, every=setting.every, seed=seed)
        estimator = GradientEstimator(every=setting.every)
    else:
        plan = _solved(problem, SOLVERS[name], seed)
        planner = plan.planner()
    history = train(
        task,
        SplitFed(Sgd(setup.step_size), weighting="uniform"),
        planner,
        EdgeTiming.from_problem(problem, rate_sigma=setting.rate_sigma, seed=seed),
        rounds=setup.rounds,
        evaluate_every=setup.evaluate_every,
        until_accuracy=setup.accuracy,
        runner=LocalRunner(),
        estimator=estimator,
    )
    last = planner.split_plan if isinstance(planner, HasflPlanner) else None
    return Run(problem, plan, last or plan, finished(history), setup.accuracy)


def _solved(problem: SplitTraining, solver: str | Solver, seed: int) -> SplitPlan:
    solution: Any = edgeopt.solve(problem, solver, seed=seed).raise_for_status().solution
    plan: SplitPlan = solution
    return plan


def run(cell: StudyCell[Setting]) -> Row:
    """Train under a planner, or with equal batches, until the target accuracy is reached or for the most rounds."""
    setting, seed = cell.setting, cell.seed
    setup = SETUPS[cell.task].shortened(setting.rounds)
    constants = Constants.from_json(
        storage.read_json(cell.keep(f"constants-{setup.name}.json", partial(_measure, setup, setting)))
    )
    task = setup.task(setting.devices, seed)
    found: Row = {"constants": constants.to_json()}
    if cell.variant in EQUAL:
        batch = EQUAL[cell.variant]
        history = train_equally(setup, task, batch)
        bound = constants.rounds(setup, setting.devices, batch)
        reached = history.first_reach(setup.accuracy) is not None
        return found | {"reached": reached, "rounds": len(history.rows), "bound_rounds": bound}
    problem = problem_of(setup, task, constants, seed)
    done = run_one(setup, task, problem, cell.variant, seed, setting)
    return found | done.row() | done.drawn()


def _measure(setup: Setup, setting: Setting, path: Path) -> None:
    pilot = setup.task(setting.devices, PILOT_SEED)
    storage.write_text(path, dumps(measured_constants(setup, pilot).to_json()))


def summary(found: Found[Setting]) -> list[Row]:
    """Return for each data set and planner: medians over seeds, and ratios to `hasfl` seed by seed."""
    rows: list[Row] = []
    for data in found.tasks:
        best = {row["seed"]: row for row in found.of(variant="hasfl", task=data)}
        for planner in (name for name in found.variants(data) if name in PLANNERS):
            own = [row for row in found.of(variant=planner, task=data) if row["seed"] in best]
            if not own:
                continue
            low, middle, high = np.percentile([row["seconds"] for row in own], [20, 50, 80])
            measured = [row["seconds"] / best[row["seed"]]["seconds"] for row in own]
            bound = [row["bound_s"] / best[row["seed"]]["bound_s"] for row in own]
            rows.append(
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
    return rows


def decisions(runs: Sequence[Row]) -> list[Row]:
    """Return batch size and cut of each device under each planner of one data set and seed, slowest device first."""
    rows = []
    for device in np.argsort(runs[0]["mflops"]).tolist():
        row: Row = {"data": runs[0]["task"], "device": device}
        row |= {name: runs[0][name][device] for name in ("mflops", "up_mbps")}
        for run in runs:
            row[run["variant"]] = f"{run['last']['batch_size'][device]} at {run['last']['cut_layer'][device]}"
        rows.append(row)
    return rows


def batch_rows(found: Found[Setting], data: str) -> list[Row]:
    """Return for equal batch sizes the rounds that training takes to the target accuracy, and what the bound says."""
    rows: list[Row] = []
    for name, batch in EQUAL.items():
        if own := found.of(variant=name, task=data):
            low, middle, high = np.percentile([row["rounds"] for row in own], [20, 50, 80])
            row = {"data": data, "batch": batch, "rounds": float(middle), "20 to 80 %": f"{low:.3g} to {high:.3g}"}
            bound = own[0]["bound_rounds"]  # None: the bound lets such batches never get there
            rows.append(row | {"by the bound": "inf" if bound is None else f"{bound:.4g}"})
    return rows


def tables(found: Found[Setting]) -> dict[str, list[Row]]:
    """Return constants, medians, runs, equal batches, and the decisions under the first seed."""
    hidden = ("constants", "curve", "plan", "last", "mflops", "up_mbps")
    constants = {row["task"]: Constants.from_json(row["constants"]) for row in found.rows}
    named = {
        "constants": [{"data": data, **known.row()} for data, known in constants.items()],
        "summary": summary(found),
        "runs": [{name: value for name, value in row.items() if name not in hidden} for row in found.rows],
        "batches": [row for data in found.tasks for row in batch_rows(found, data)],
    }
    firsts = {data: _first_seed(found, data) for data in found.tasks}
    return named | {f"decisions-{data}": decisions(first) for data, first in firsts.items() if first}


def pictures(found: Found[Setting]) -> dict[str, Picture]:
    """Return curves of accuracy and the decisions of the system for each data set."""
    drawn: dict[str, Picture] = {}
    for data in found.tasks:
        if _first_seed(found, data):
            drawn[data] = Picture(f"Accuracy on {data} against virtual seconds", partial(draw_curves, found, data))
        if own := found.of(variant="hasfl", task=data):
            caption = f"Batch size and cut of each device, {data}"
            drawn[f"decisions-{data}"] = Picture(caption, partial(draw_decisions, found.setting, own[0]))
    return drawn


def _first_seed(found: Found[Setting], data: str) -> list[Row]:
    """Return the runs of planners on a data set under the first seed of which there are some."""
    own = [row for row in found.of(task=data) if row["variant"] in PLANNERS]
    return [row for row in own if row["seed"] == own[0]["seed"]]


def draw_curves(found: Found[Setting], data: str) -> Any:
    """Draw accuracy against virtual seconds."""
    from edgeopt.evaluation.plots.training.curves import plot_training_curves

    planners = [name for name in found.variants(data) if name in PLANNERS]
    axes = plot_training_curves(
        {name: [row["curve"] for row in found.of(variant=name, task=data)] for name in planners}
    )
    axes.autoscale(axis="x")
    axes.set_xscale("log")  # planners differ by factors
    return axes


def draw_decisions(setting: Setting, run: Row) -> Any:
    """Draw the plan of a run."""
    from edgeopt.evaluation.plots.split.decisions import plot_split_decisions

    setup = SETUPS[run["task"]]
    task = setup.task(setting.devices, run["seed"])
    problem = problem_of(setup, task, Constants.from_json(run["constants"]), run["seed"])
    return plot_split_decisions(problem, SplitPlan(**run["plan"]))


CLAIMS = (
    *(
        Claim(
            text=f"On the digits, hasfl needs less time to the target accuracy than {name}",
            source="paper",
            test=Ratio(metric="target_seconds", first="hasfl", second=name, below=1.0, task="digits"),
        )
        for name in ("fixed", "random-batch", "random-cut", "adaptsfl")
    ),
    Claim(
        text="On coloured digits, hasfl needs less time to the target accuracy than adaptsfl",
        source="paper",
        test=Ratio(metric="target_seconds", first="hasfl", second="adaptsfl", below=1.0, task="coloured-digits"),
    ),
    Claim(
        text="Unequal batches and cuts are worth more than small equal ones: hasfl needs less time than best-equal",
        source="ours",
        test=Ratio(metric="target_seconds", first="hasfl", second="best-equal", below=1.0, task="digits"),
    ),
    Claim(
        text="Planning anew with constants that are measured while the model trains needs less time still",
        source="ours",
        test=Ratio(metric="target_seconds", first="hasfl-anew", second="hasfl", below=1.0, task="digits"),
    ),
    Claim(
        text="The rounds that the bound asks for are within a factor of two of those that training takes, for hasfl",
        source="ours",
        test=Level(metric="rounds_over_bound", variant="hasfl", above=0.5, below=2.0, task="digits"),
    ),
)

STUDY = Study(
    name="split-training",
    title="HASFL trained for real: seconds to a target accuracy under other ways to choose batch sizes and cuts",
    system="hasfl",
    baselines=("fixed", "random-batch", "random-cut", "adaptsfl"),
    ablations=("best-equal", ANEW, *EQUAL),
    tasks=tuple(SETUPS),
    full=Setting(),
    quick=Setting(devices=4, rounds=3, every=1),
    quick_tasks=("digits",),
    measure=run,
    claims=CLAIMS,
    tables=tables,
    pictures=pictures,
)
