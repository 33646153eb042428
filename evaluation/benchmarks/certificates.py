"""Measure the bounds of expert caching with `max` and K >= 2: ``python -m edgeopt.evaluation.benchmarks.certificates``.

First `lagrangian` with a time limit: seconds until it has certified a gap. Then, on its placement and side by side, the three
bounds: shares of each set, pairs of distinct experts, and these with the counts of every server.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, percent, seconds
from edgeopt.evaluation.instances.library import load_instance
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import relative_gap
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching import Lagrangian
from edgeopt.solvers.expert_caching.distinct_bound import DistinctBound
from edgeopt.solvers.expert_caching.groups import Groups
from edgeopt.solvers.expert_caching.lagrangian import CLOSE_STEPS
from edgeopt.solvers.expert_caching.max_bound import bound_max

UNSEEN: dict[str, Any] = {
    "num_servers": 8, "num_users": 24, "num_layers": 6, "experts_per_layer": 16, "top_k": 2, "storage": 0.15, "latency": "max",
    "seed": 1,
}  # fmt: skip
QUICK: dict[str, Any] = UNSEEN | {"num_servers": 3, "num_users": 4, "num_layers": 2, "experts_per_layer": 6}
GOALS = {"traces-mixtral8-max": (0.005, 5.0), "random": (0.005, 30.0), "traces-fine64-max": (0.04, 60.0)}
STEPS = 100  # of each bound


def _shares(run: Run[Placement], groups: Groups) -> None:
    bound_max(run, groups, iterations=STEPS)


def _distinct(run: Run[Placement], groups: Groups) -> None:
    DistinctBound(groups).descend(run, STEPS)


def _counts(run: Run[Placement], groups: Groups) -> None:
    bound = DistinctBound(groups)
    bound.descend(run, STEPS)
    bound.close(run, CLOSE_STEPS)


BOUNDS: dict[str, Callable[[Run[Placement], Groups], None]] = {
    "shares": _shares,
    "distinct": _distinct,
    "counts": _counts,
}


def measure(options: argparse.Namespace) -> Row:
    """Measure the instances."""
    names = ["random"] if options.quick else list(GOALS)
    random = ExpertCaching.random(**(QUICK if options.quick else UNSEEN))
    problems = {name: random if name == "random" else load_instance(name) for name in names}
    limit = 2.0 if options.quick else options.limit
    rows = [measure_one(name, problem, limit, options.seed) for name, problem in problems.items()]
    return {
        "limit_s": limit,
        "rows": rows,
        "valid": all(row["valid"] for row in rows),
        "goals": [
            common.goal(
                f"{row['instance']}: seconds to {100 * row['target']:g} %",
                GOALS[row["instance"]][1],
                row["target_s"],
                "s",
            )
            for row in rows
        ],
    }


def measure_one(name: str, problem: Problem, limit: float, seed: int) -> Row:
    """Return what `lagrangian` certifies in time, and what each bound does on its placement."""
    common.say(f"{name}: lagrangian")
    compile_s = common.warm(problem, "lagrangian")
    timed = common.timed_solve(problem, "lagrangian", time_limit=limit, seed=seed)
    assert isinstance(problem, ExpertCaching)
    assert timed.result is not None
    result, placement, target = timed.result, timed.result.solution, GOALS[name][0]
    assert placement is not None
    bounds = {}
    for kind, report in BOUNDS.items():
        common.say(f"{name}: {kind}")
        for _ in range(2):  # kernels are compiled, or loaded, in the first
            start = time.perf_counter()
            with Run[Placement](Lagrangian(), problem, SolveOptions(time_limit=limit)) as run:
                run.offer(placement)
                report(run, Groups(problem))
            bounds[kind] = {"bound": run.bound, "seconds": time.perf_counter() - start}
    return {
        "instance": name,
        "facts": problem.describe(),
        "warm_up_compile_s": compile_s,
        "target": target,
        "target_s": common.first_time(result.history, target),
        "bounds": {kind: row | {"gap": relative_gap(result.objective, row["bound"])} for kind, row in bounds.items()},
        "valid": common.consistent([result.objective], [result.bound, *(row["bound"] for row in bounds.values())]),
    } | timed.to_json()


def show(report: Row, console: Console) -> None:
    """Print the table."""
    common.show_table(
        console, f"certified gaps (lagrangian {report['limit_s']:g} s; each bound {STEPS} steps on its placement)",
        ("instance", "objective", "lagrangian", "seconds", "goal", "reached after",
         *(f"{kind}: gap, seconds" for kind in BOUNDS), "valid"),
        [
            [row["instance"], f"{row['objective']:.6g}", percent(row["gap"]), seconds(row["seconds"]),
             percent(row["target"]), seconds(row["target_s"]),
             *(f"{percent(bound['gap'])}, {seconds(bound['seconds'])}" for bound in row["bounds"].values()),
             "yes" if row["valid"] else "NO"]
            for row in report["rows"]
        ],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--limit", type=float, default=60.0, help="seconds per run")
    parser.add_argument("--seed", type=int, default=0, help="seed of every run")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("certificates", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
