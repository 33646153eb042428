"""Measure a large instance: ``python -m edgeopt.evaluation.benchmarks.scale``.

50 servers, 2,000 users, 4 models, 20,000 experts: seconds to build it, peak memory of the process, seconds of the
greedy solvers, the gap that `lagrangian` certifies in a minute, and by how much every solver is over a limit of a second, by an
outside clock. Run it in a process of its own: peak memory is that since the process started.
"""

import argparse
import math
import sys
import time

from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, percent, seconds
from edgeopt.problems import ExpertCaching
from edgeopt.solvers import solvers_of

SIZE: Row = {"num_servers": 50, "num_users": 2000, "num_models": 4, "num_layers": 10, "experts_per_layer": 500}
QUICK: Row = {"num_servers": 16, "num_users": 40, "num_models": 2, "num_layers": 2, "experts_per_layer": 20}
WARM: Row = {"num_users": 40, "num_models": 1, "num_layers": 2, "experts_per_layer": 10}  # with as many servers
GREEDY = ("greedy", "density-greedy")
SOLVER = "lagrangian"
CHECKPOINTS = (1 / 6, 1 / 2, 1.0)  # of the time limit
GOAL_GIB = 4.0
GOAL_GAP = 0.003
SHORT, QUICK_SHORT = 1.0, 0.05  # limits, in seconds, that every solver is to keep
GOAL_OVER_S = 0.2


def peak_gib() -> float:
    """Return the largest memory this process has had in RAM so far; NaN where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (1 << 30 if sys.platform == "darwin" else 1 << 20)  # bytes there, KiB elsewhere


def measure(options: argparse.Namespace) -> Row:
    """Build, then solve."""
    size, limit = (QUICK, 2.0) if options.quick else (SIZE, options.limit)
    memory = {"import": peak_gib()}
    small = ExpertCaching.random(**(WARM | {"num_servers": size["num_servers"]}), seed=options.seed)
    compile_s = {name: common.warm(small, name) for name in common.available((*GREEDY, SOLVER))}
    memory["warm-up"] = peak_gib()
    common.say(f"building {size}")
    start = time.perf_counter()
    problem = ExpertCaching.random(**size, seed=options.seed)
    build_s = time.perf_counter() - start
    memory["build"] = peak_gib()
    rows = []
    for name in (*GREEDY, SOLVER):
        common.say(f"{name}, up to {limit:g} s")
        timed = [
            common.timed_solve(problem, name, time_limit=limit)
            for _ in range(1 if name == SOLVER or options.quick else options.repeats)
        ]
        times = common.Times(tuple(one.seconds for one in timed))
        row: Row = {"solver": name, **timed[-1].to_json(), **times.to_json()}
        row |= {"warm_up_compile_s": compile_s.get(name), "peak_gib": peak_gib()}
        if timed[-1].result is not None:
            row["gap_at"] = [common.gap_at(timed[-1].result.history, part * limit) for part in CHECKPOINTS]
        memory[name] = row["peak_gib"]
        rows.append(row)
    short = _short_runs(problem, small, QUICK_SHORT if options.quick else SHORT, options.seed)
    last = rows[-1]
    gap = last["gap_at"][-1] if "gap_at" in last else None
    valid = common.consistent((row["objective"] for row in rows), (row["bound"] for row in rows))
    return {
        "size": size,
        "facts": problem.describe(),
        "limit_s": limit,
        "build_s": build_s,
        "memory_gib": memory,
        "rows": rows,
        "short": short,
        "valid": valid and all(row["status"] != "error" for row in rows),
        "goals": [
            common.goal("scale: peak memory", GOAL_GIB, memory[SOLVER], "GiB"),
            common.goal(
                f"scale: certified gap of {SOLVER} at {limit:g} s", 100 * GOAL_GAP,
                None if gap is None else 100 * gap, "%", note=last["message"],
            ),
            common.goal(
                f"scale: most seconds over a limit of {short[0]['time_limit']:g} s", GOAL_OVER_S, short[0]["over_s"], "s",
                note=short[0]["solver"],
            ),
        ],
    }  # fmt: skip


def _short_runs(problem: ExpertCaching, small: ExpertCaching, limit: float, seed: int) -> list[Row]:
    """Return how far every solver is over a short limit, the furthest first; those that refuse the size are left out."""
    rows: list[Row] = []
    for solver in solvers_of(problem.kind):
        if solver.supports(problem) is not None:
            continue
        common.say(f"{solver.name}, up to {limit:g} s")
        common.warm(small, solver)
        common.timed_solve(small, solver, time_limit=0.0)  # compiles what only runs that are stopped call
        timed = common.timed_solve(problem, solver, time_limit=limit, seed=seed)
        if timed.result is not None:
            row: Row = {"solver": solver.name, "time_limit": limit, "over_s": timed.seconds - limit}
            rows.append(row | {"objective": timed.result.objective})
    return sorted(rows, key=lambda row: -row["over_s"])


def show(report: Row, console: Console) -> None:
    """Print the table."""
    console.print(f"{report['facts']}; built in {seconds(report['build_s'])}", highlight=False)
    peaks = ", ".join(
        f"{'-' if gib is None else f'{gib:.2f}'} after {name}" for name, gib in report["memory_gib"].items()
    )
    console.print(f"peak memory of the process, GiB: {peaks}", highlight=False)
    at = [f"gap at {part * report['limit_s']:g} s" for part in CHECKPOINTS]
    common.show_table(
        console, "scale", ("solver", "compiled before", "min", "median", "repeats", "objective", *at, "message"),
        [
            [row["solver"], seconds(row["warm_up_compile_s"]), seconds(row["min_s"]), seconds(row["median_s"]),
             str(row["repeats"]), "-" if row["objective"] is None else f"{row['objective']:.6g}",
             *(percent(gap) for gap in row.get("gap_at", [None] * len(CHECKPOINTS))), row["message"] or row["status"]]
            for row in report["rows"]
        ],
    )  # fmt: skip

    common.show_table(
        console, f"a limit of {report['short'][0]['time_limit']:g} s", ("solver", "over it", "objective"),
        [[row["solver"], seconds(row["over_s"]), f"{row['objective']:.6g}"] for row in report["short"]],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--limit", type=float, default=60.0, help="seconds per run")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the greedy solvers")
    parser.add_argument("--seed", type=int, default=0, help="seed of the instance")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("scale", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
