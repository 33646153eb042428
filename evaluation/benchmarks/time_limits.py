"""Measure how well time limits are kept: ``python -m edgeopt.evaluation.benchmarks.time_limits``.

Every solver on every instance of the library that it supports, under a few time limits: by how many seconds the whole
call of `solve` is over its limit, by an outside clock. Kernels are compiled before. A busy machine adds its own waiting,
so the load is told beside the figures.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.evaluation.instances.library import library_names, load_instance
from edgeopt.solvers import solvers_of

LIMITS = (0.1, 1.0)  # seconds
QUICK_INSTANCES = ("facility-tiny", "download-small", "split-tiny", "selection-tiny")
QUICK_LIMITS = (0.05,)
GOAL_S = 0.2


def load() -> float | None:
    """Return how many processes wanted to run in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def measure(options: argparse.Namespace) -> Row:
    """Run every solver on every instance under every limit."""
    names = options.instances.split(",") if options.instances else QUICK_INSTANCES if options.quick else library_names()
    limits = QUICK_LIMITS if options.quick else [float(limit) for limit in options.limits.split(",")]
    wanted = options.solvers.split(",") if options.solvers else None
    before = load()
    rows: list[Row] = []
    for name in names:
        problem = load_instance(name)
        for solver in solvers_of(problem.kind):
            if solver.supports(problem) is not None or (wanted is not None and solver.name not in wanted):
                continue
            common.say(f"{name}: {solver.name}")
            common.warm(problem, solver, full=not options.quick)
            for limit in limits:
                timed = common.timed_solve(problem, solver, time_limit=limit, seed=options.seed)
                row = {"instance": name, "solver": solver.name, "time_limit": limit, "over_s": timed.seconds - limit}
                rows.append(row | timed.to_json())
    return {
        "load": [before, load()],
        "rows": rows,
        "valid": all(row["status"] in ("optimal", "feasible") for row in rows),
        "goals": [_goal(limit, [row for row in rows if row["time_limit"] == limit]) for limit in limits],
    }


def _goal(limit: float, rows: Sequence[Row]) -> Row:
    worst = max(rows, key=lambda row: row["over_s"])
    where = f"{worst['solver']} on {worst['instance']}"
    return common.goal(f"time limit of {limit:g} s: most seconds over it", GOAL_S, worst["over_s"], "s", note=where)


def show(report: Row, console: Console) -> None:
    """Print the calls that were over their limit, the longest first."""
    before, after = ("-" if load is None else f"{load:.1f}" for load in report["load"])
    console.print(f"load before and after: {before}, {after}", highlight=False)
    over = sorted((row for row in report["rows"] if row["over_s"] > 0), key=lambda row: -row["over_s"])
    common.show_table(
        console, f"over the limit: {len(over)} of {len(report['rows'])} calls",
        ("instance", "solver", "limit", "over", "status", "message"),
        [
            [row["instance"], row["solver"], seconds(row["time_limit"]), seconds(row["over_s"]), row["status"],
             row["message"]]
            for row in over
        ],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--instances", help="names of the library with commas between (default: all)")
    parser.add_argument("--solvers", help="names with commas between (default: all)")
    parser.add_argument("--limits", default=",".join(map(str, LIMITS)), help="seconds with commas between")
    parser.add_argument("--seed", type=int, default=0, help="seed of every run")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("time_limits", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
