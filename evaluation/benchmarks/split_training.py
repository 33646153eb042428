"""Time `hasfl` and `exact`, and measure how far `hasfl` is from the optimum: ``python -m edgeopt.evaluation.benchmarks.split_training``.

Whole calls of `edgeopt.solve` on random problems of 50 layers, with the aggregation interval given and with it free;
the gap of `hasfl` to the proved optimum over random problems of many shapes; and both solvers beside `generic`,
the problem's own programmes in cvxpy, on problems small enough for it. Times count when the objectives agree.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence

from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, percent, seconds
from edgeopt.problems import SplitTraining
from edgeopt.result import Status
from edgeopt.rng import stream

SOLVERS = ("hasfl", "exact")
GOAL_S = {("hasfl", 100): 0.2, ("exact", 100): 5.0, ("hasfl", 1000): 5.0}
GIVEN, FREE = 8, (1, 20)  # aggregation intervals
AGREE = 1e-6  # relative: HiGHS's tolerance


def timing_row(solver: str, seeds: Sequence[int], limit: float, *, devices: int, layers: int, free: bool) -> Row:
    """Time one solver on random problems, one per seed."""
    name = f"{devices:,} devices, {layers} layers, interval {'free' if free else 'given'}"
    common.say(f"{solver}: {name}")
    runs = []
    for seed in seeds:
        interval = FREE if free else GIVEN
        problem = SplitTraining.random(num_devices=devices, num_layers=layers, interval=interval, seed=seed)
        compile_s = common.warm(problem, solver, full=False)
        runs.append(common.timed_solve(problem, solver, time_limit=limit).to_json() | {"compile_s": compile_s})
    times = [run["seconds"] for run in runs]
    return {
        "solver": solver,
        "instance": name,
        "devices": devices,
        "free": free,
        "median_s": statistics.median(times),
        "max_s": max(times),
        "proved": sum(run["status"] == "optimal" for run in runs),
        "compile_s": sum(run["compile_s"] for run in runs),
        "valid": all(run["status"] in ("optimal", "feasible") for run in runs),
        "runs": runs,
    }


def random_problem(seed: int) -> SplitTraining:
    """Return a problem of random size, heterogeneity and target, its interval given or free."""
    rng = stream(seed, "benchmark", "split-training")
    problem = SplitTraining.random(
        num_devices=int(rng.integers(4, 41)),
        num_layers=int(rng.integers(4, 31)),
        heterogeneity=float(rng.uniform(0.0, 2.0)),
        interval=GIVEN if rng.random() < 0.5 else FREE,
        seed=seed,
    )
    return problem.replace(target=problem.least_target * float(rng.uniform(1.5, 15.0)))


def gap_row(count: int, limit: float) -> Row:
    """Return the gap of `hasfl` to the proved optimum over random problems, and how many were proved."""
    common.say(f"gap of hasfl over {count} random problems")
    gaps, valid, proved = [], True, 0
    for seed in range(count):
        problem = random_problem(seed)
        hasfl, exact = (common.timed_solve(problem, solver, time_limit=limit).result for solver in SOLVERS)
        if hasfl is None or exact is None:
            valid = False
            continue
        valid &= max(exact.bound, exact.objective) <= hasfl.objective * (1 + common.SLACK)
        if exact.status == "optimal":
            proved += 1
            gaps.append(hasfl.objective / exact.objective - 1.0)
    return {
        "problems": count,
        "proved": proved,
        "mean": statistics.fmean(gaps) if gaps else None,
        "median": statistics.median(gaps) if gaps else None,
        "worst": max(gaps, default=None),
        "optimal": sum(gap <= common.SLACK for gap in gaps),
        "valid": valid,
    }


def generic_row(limit: float, *, devices: int, layers: int, max_batch: int, seed: int) -> Row:
    """Solve one small problem by the generic model and by both solvers."""
    name = f"{devices} devices, {layers} layers, batch at most {max_batch}"
    common.say(f"generic model: {name}")
    problem = SplitTraining.random(num_devices=devices, num_layers=layers, max_batch=max_batch, seed=seed)
    row: Row = {"instance": name}
    for solver in SOLVERS:
        common.warm(problem, solver)
        timed = common.timed_solve(problem, solver)
        row[solver] = timed.to_json()
    common.warm(random_problem(0), "generic")  # loads cvxpy
    generic = common.timed_solve(problem, "generic", time_limit=limit)
    finished = generic.result is not None and generic.result.status is Status.OPTIMAL
    row["generic"] = generic.to_json() | {"finished": finished}
    value = math.inf if row["generic"]["objective"] is None else row["generic"]["objective"]
    optimum = row["exact"]["objective"]
    row["equal"] = value >= optimum * (1 - AGREE) and (value <= optimum * (1 + AGREE) or not finished)
    for solver in SOLVERS:
        same = row[solver]["objective"] <= value * (1 + AGREE)
        row[f"{solver}_ratio"] = row["generic"]["seconds"] / row[solver]["seconds"] if same else None
    return row


def measure(options: argparse.Namespace) -> Row:
    """Measure everything; the generic model last."""
    quick = options.quick
    seeds = range(1 if quick else options.seeds)
    limit = 20.0 if quick else options.limit
    layers = 12 if quick else 50
    sizes = (15, 40) if quick else (100, 1000)
    rows = [
        timing_row(solver, seeds, limit, devices=sizes[0], layers=layers, free=free)
        for free in (False, True)
        for solver in SOLVERS
    ]
    rows.append(timing_row("hasfl", seeds, limit, devices=sizes[1], layers=layers, free=False))
    gap = gap_row(3 if quick else options.problems, limit)
    shapes = ((3, 4, 4),) if quick else ((5, 5, 16), (8, 6, 16), (10, 8, 32))
    generic = [
        generic_row(10.0 if quick else options.generic_seconds, devices=n, layers=k, max_batch=b, seed=1)
        for n, k, b in shapes
    ]
    return {
        "rows": rows,
        "gap": gap,
        "generic": generic,
        "valid": all(row["valid"] for row in rows) and gap["valid"] and all(row["equal"] for row in generic),
        "goals": _goals(rows, gap, generic),
    }


def _goals(rows: Sequence[Row], gap: Row, generic: Sequence[Row]) -> list[Row]:
    goals = []
    for row in rows:
        if row["free"] and row["solver"] == "hasfl":
            continue
        target = GOAL_S.get((row["solver"], row["devices"]), 5.0)
        note = f"median; worst {seconds(row['max_s'])}"
        reached = row["median_s"]
        if row["solver"] == "exact":
            note += f"; proved {row['proved']} of {len(row['runs'])}"
            reached = row["median_s"] if row["proved"] == len(row["runs"]) else None
        goals.append(common.goal(f"{row['solver']}: {row['instance']}", target, reached, "s", note=note))
    share = gap["proved"] / gap["problems"]
    note = f"gap of hasfl: mean {percent(gap['mean'])}, worst {percent(gap['worst'])}"
    goals.append(common.goal("exact: share of random problems proved", 1.0, share, "", at_least=True, note=note))
    for row in generic:
        for solver in SOLVERS:
            note = "" if row["generic"]["finished"] else "the generic model did not finish: at least"
            if row[f"{solver}_ratio"] is None:
                note = "its objective is worse"
            title = f"{solver}: faster than the generic model, {row['instance']}"
            goals.append(common.goal(title, 1.0, row[f"{solver}_ratio"], "x", at_least=True, note=note))
    return goals


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    common.show_table(
        console, "seconds of whole calls", ("instance", "solver", "compiled before", "median", "worst", "proved"),
        [
            [row["instance"], row["solver"], seconds(row["compile_s"]), seconds(row["median_s"]),
             seconds(row["max_s"]), f"{row['proved']}/{len(row['runs'])}"]
            for row in report["rows"]
        ],
    )  # fmt: skip
    gap = report["gap"]
    common.show_table(
        console, "gap of hasfl to the proved optimum", ("random problems", "proved", "hasfl optimal", "mean", "median",
        "worst"),
        [[str(gap["problems"]), str(gap["proved"]), str(gap["optimal"]), percent(gap["mean"]), percent(gap["median"]),
          percent(gap["worst"])]],
    )  # fmt: skip
    common.show_table(
        console, "beside the generic model", ("instance", "generic", "hasfl", "exact", "ratio hasfl",
        "ratio exact", "same optimum"),
        [
            [row["instance"], seconds(row["generic"]["seconds"]),
             seconds(row["hasfl"]["seconds"]), seconds(row["exact"]["seconds"]), _ratio(row["hasfl_ratio"]),
             _ratio(row["exact_ratio"]), "yes" if row["equal"] else "NO"]
            for row in report["generic"]
        ],
    )  # fmt: skip


def _ratio(value: float | None) -> str:
    return "worse objective" if value is None else f"{value:.4g}x"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--limit", type=float, default=60.0, help="seconds per run")
    parser.add_argument("--generic-seconds", type=float, default=300.0, help="seconds for the generic model")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... of every timing")
    parser.add_argument("--problems", type=int, default=200, help="random problems for the gap")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("split_training", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
