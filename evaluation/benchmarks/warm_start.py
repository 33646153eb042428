"""Solving again after a change of data, from the last solution: ``python -m edgeopt.evaluation.benchmarks.warm_start``.

Each problem is solved, one of its numbers is changed by two per cent, and it is solved again twice: cold, and from the last
solution. What is compared is when the warm solve has a solution as good as the cold one ends with, up to 0.1 %, and how long the cold
one takes in all; both from the call on, compiled before, the median over repeats.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

import edgeopt
from edgeopt import EdgeNetwork
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.evaluation.compare.worker import warm_up
from edgeopt.problems import (
    ClientSelection,
    ExpertBalancing,
    ExpertCaching,
    ModelDownload,
    SplitTraining,
    bundled_trace,
)
from edgeopt.result import Result
from edgeopt.solvers import get_solver

GOAL = 0.1
AS_GOOD = 1e-3  # relative
MORE = 1.02

Change = Callable[[Any], Any]


def cases(quick: bool) -> dict[str, tuple[Any, str, Change]]:
    """Return problems with the solver and what changes."""
    network = EdgeNetwork.random(4 if quick else 10, 20 if quick else 100, seed=0)
    devices = 4 if quick else 20
    return {
        "expert-caching, storage": (
            ExpertCaching.from_traces(bundled_trace("switch32"), network, storage=0.05),
            "lagrangian",
            lambda problem: problem.replace(storage_bytes=MORE * problem.storage_bytes),
        ),
        "model-download, bandwidth": (
            ModelDownload.random(num_users=200 if quick else 20_000, bandwidth_hz=1e8 if quick else 5e9, seed=1),
            "slide",
            lambda problem: problem.replace(bandwidth_hz=MORE * problem.bandwidth_hz),
        ),
        "split-training, target": (
            SplitTraining.random(num_devices=devices, seed=1),
            "exact",
            lambda problem: problem.replace(target=MORE * problem.target),
        ),
        "split-training, uplink": (
            SplitTraining.random(num_devices=5 * devices, seed=1),
            "hasfl",
            lambda problem: problem.replace(uplink_bps=MORE * problem.uplink_bps),
        ),
        "client-selection, time-out": (
            ClientSelection.random(num_servers=2 if quick else 5, num_clients=20 if quick else 100, seed=1),
            "reservation",
            lambda problem: problem.replace(timeout_s=MORE * problem.timeout_s),
        ),
        "expert-balancing, loads": (
            ExpertBalancing.random(num_devices=4 if quick else 32, num_experts=16 if quick else 256, seed=1),
            "local-search",
            lambda problem: problem.replace(load=problem.load * [MORE if e % 2 else 1.0 for e in range(problem.num_experts)]),
        ),
    }  # fmt: skip


def as_good_s(result: Result[Any], objective: float) -> float:
    """Return when a run first had a solution as good as an objective, up to `AS_GOOD`; inf for never."""
    sign = 1.0 if result.sense == "max" else -1.0
    worst = objective - sign * AS_GOOD * abs(objective)
    good = (one.seconds for one in result.history if one.objective is not None and sign * (one.objective - worst) >= 0)
    return next(good, math.inf)


def measure(options: argparse.Namespace) -> Row:
    """Measure every case."""
    rows: list[Row] = []
    valid = True
    for name, (problem, solver_name, change) in cases(options.quick).items():
        solver, changed = get_solver(problem.kind, solver_name), change(problem)
        warm_up(problem, solver)
        before = edgeopt.solve(problem, solver, time_limit=options.seconds)
        start = before.solution if changed.is_feasible(before.solution) else None
        cold_s, warm_s, whole_s = [], [], []
        for _ in range(1 if options.quick else options.repeats):
            cold = edgeopt.solve(changed, solver, time_limit=options.seconds)
            warm = edgeopt.solve(changed, solver, time_limit=options.seconds, initial_solution=start)
            valid &= cold.feasible and warm.feasible
            cold_s.append(cold.seconds.total)
            warm_s.append(as_good_s(warm, cold.objective))
            whole_s.append(warm.seconds.total)
        row: Row = {"case": name, "solver": solver_name, "cold_s": statistics.median(cold_s)}
        row |= {"warm_s": statistics.median(warm_s), "warm_whole_s": statistics.median(whole_s)}
        rows.append(row | {"share": row["warm_s"] / row["cold_s"] if math.isfinite(row["warm_s"]) else None})
    goals = [common.goal(f"{row['case']}: as good, of a cold solve", GOAL, row["share"], "x") for row in rows]
    return {"rows": rows, "valid": valid, "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the table."""
    lines = []
    for row in report["rows"]:
        share = "-" if row["share"] is None else f"{row['share']:.3f}"
        lines.append(
            [row["case"], row["solver"], *(seconds(row[f"{name}_s"]) for name in ("cold", "warm", "warm_whole")), share]
        )
    columns = ("changed by 2 %", "solver", "cold", "warm, as good", "warm, to its end", "as good / cold")
    common.show_table(console, "Solved again from the last solution", columns, lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=5, help="of each solve")
    parser.add_argument("--seconds", type=float, default=20.0, help="time limit of each solve")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("warm_start", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
