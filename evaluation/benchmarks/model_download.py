"""Time `slide` at scale, beside HiGHS and against the baselines: ``python -m edgeopt.evaluation.benchmarks.model_download``.

Random users with measured models; the band grows with the users, so that about half of them can be served. Clocks
cover the whole call of `edgeopt.solve`, after one untimed run. The generic programme `milp` gets twice as many users
each time until it is not done within its limit; the sizes that it does solve must have the objective of `slide`.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.problems import ModelDownload
from edgeopt.result import Status
from edgeopt.solve import solve
from edgeopt.solvers import solvers_of
from edgeopt.stop import Limit

KIND = "model-download"
SOLVER, GENERIC = "slide", "milp"
CHECKS = (GENERIC, "generic")  # exact programmes are no baselines
HZ_PER_USER = 6e6
NUM_MODELS = 8
FACTOR = 100.0  # how much faster than the generic programme

Options = dict[str, Any]

SCALE: tuple[tuple[str, float, Options], ...] = (  # title, seconds, options of `ModelDownload.random`
    ("no energy limits", 1.0, {"energy": None}),
    ("energy limits", 10.0, {}),
    ("energy limits, weighted users", 10.0, {"weighted": True}),
    ("energy limits, models of different rewards", 10.0, {"rewarded": True}),
    ("energy limits, concave rates", 10.0, {"fixed_power": True}),
)
AGAINST: tuple[tuple[str, int, Options], ...] = (  # title, users to begin with, options
    ("no energy limits", 800, {"energy": None}),
    ("energy limits", 25, {}),
)
VARIANTS: tuple[Options, ...] = (
    {},
    {"energy": None},
    {"weighted": True},
    {"rewarded": True},
    {"fixed_power": True},
    {"resource_block_hz": 720e3},
    {"energy": None, "frequency_levels": (0.25, 0.5, 0.75, 1.0)},
    {"frequency_levels": (0.25, 0.5, 0.75, 1.0)},
    {"weighted": True, "rewarded": True, "fixed_power": True, "resource_block_hz": 720e3},
)


def instance(num_users: int, seed: int, options: Options) -> ModelDownload:
    """Return random users with a band in proportion."""
    band = HZ_PER_USER * num_users
    return ModelDownload.random(num_users=num_users, num_models=NUM_MODELS, seed=seed, bandwidth_hz=band, **options)


def scale_row(title: str, goal_s: float, num_users: int, options: Options, repeats: int) -> Row:
    """Return one row: the whole call at scale."""
    common.say(f"{num_users:,} users, {title}")
    problem = instance(num_users, 1, options)
    compile_s = common.warm(problem, SOLVER)
    result = solve(problem, SOLVER)
    times = common.clock(lambda: solve(problem, SOLVER), repeats)
    return {
        "title": title,
        "users": num_users,
        "models": NUM_MODELS,
        "layers": int(problem.layer_indptr[-1]),
        "goal_s": goal_s,
        "compile_s": compile_s,
        "whole": times.to_json(),
        "status": str(result.status),
        "objective": result.objective,
        "bound": result.bound,
        "valid": result.status in (Status.OPTIMAL, Status.FEASIBLE) and result.feasible,
    }


def against_generic(title: str, first: int, options: Options, limit: float, repeats: int) -> list[Row]:
    """Return one row for each size that the generic programme is given, twice as many users each time."""
    rows: list[Row] = []
    num_users = first
    while True:
        common.say(f"{GENERIC}: {num_users:,} users, {title}, up to {limit:g} s")
        problem = instance(num_users, 2, options)
        common.warm(problem, SOLVER)
        ours = solve(problem, SOLVER)
        times = common.clock(lambda problem=problem: solve(problem, SOLVER), repeats)  # type: ignore[misc]
        common.warm(problem, GENERIC, full=False)
        generic = common.timed_solve(problem, GENERIC, time_limit=limit)
        done = generic.result is not None and generic.result.status is Status.OPTIMAL
        other = generic.to_json()
        bounds, objectives = (ours.bound, other["bound"]), (ours.objective, other["objective"])
        equal = done and abs(ours.objective - other["objective"]) <= common.SLACK * abs(ours.objective)
        rows.append(
            {
                "title": title,
                "users": num_users,
                "ours": times.to_json(),
                "ours_status": str(ours.status),
                "objective": ours.objective,
                "generic": other,
                "done": done,
                "equal": equal,
                "ratio": generic.seconds / times.median,
                "limit_s": limit,
                "valid": common.consistent(objectives, bounds) and (equal or not done),
            }
        )
        if not done:
            return rows
        num_users *= 2


def against_baselines(count: int) -> Row:
    """Solve `count` random instances of all variants by every baseline; count how often one does better than `slide`.

    Where all users are worth the same, better means more users admitted, else more value.
    """
    baselines = [solver for solver in solvers_of(KIND) if solver.name not in (SOLVER, *CHECKS)]
    beaten = {solver.name: 0 for solver in baselines}
    value = {solver.name: 0.0 for solver in baselines}
    users, ours, failures = 0, 0.0, 0
    for seed in range(count):
        if seed % 100 == 0:
            common.say(f"baselines: instance {seed:,} of {count:,}")
        problem = instance(5 + seed % 37, seed, VARIANTS[seed % len(VARIANTS)])
        best = solve(problem, SOLVER)
        users, ours = users + problem.num_users, ours + best.objective
        failures += best.status is Status.ERROR
        for solver in baselines:
            if solver.supports(problem) is not None:
                continue
            found = solve(problem, solver, seed=seed)
            failures += found.status is Status.ERROR
            beaten[solver.name] += found.objective > best.objective * (1 + common.SLACK)
            value[solver.name] += found.objective
    return {
        "instances": count,
        "variants": len(VARIANTS),
        "users": users,
        "value": {SOLVER: ours, **value},
        "beaten": beaten,
        "failures": failures,
        "valid": failures == 0,
    }


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    num_users = 2_000 if options.quick else options.users
    repeats = 2 if options.quick else options.repeats
    limit = min(2.0, options.milp_seconds) if options.quick else options.milp_seconds
    scale = [scale_row(title, goal_s, num_users, given, repeats) for title, goal_s, given in SCALE]
    baselines = against_baselines(16 if options.quick else options.instances)
    generic: list[Row] = []
    for title, first, given in AGAINST:
        generic += against_generic(title, first // 4 if options.quick else first, given, limit, repeats)
    return {
        "rows": scale,
        "baselines": baselines,
        "generic": generic,
        "valid": all(row["valid"] for row in [*scale, baselines, *generic]),
        "goals": _goals(scale, baselines, generic),
    }


def _goals(scale: Sequence[Row], baselines: Row, generic: Sequence[Row]) -> list[Row]:
    goals = []
    for row in scale:
        title = f"{row['users']:,} users x {row['models']} models, {row['title']}: whole call, median"
        goals.append(common.goal(title, row["goal_s"], row["whole"]["median_s"], "s", note=row["status"]))
    for title, _, _ in AGAINST:
        solved = [row for row in generic if row["title"] == title and row["done"]]
        largest = solved[-1] if solved else None
        ratio = largest["ratio"] if largest is not None and largest["equal"] else None
        note = "none solved in time" if largest is None else f"{largest['users']:,} users, equal: {largest['equal']}"
        goals.append(common.goal(f"{title}: faster than {GENERIC}", FACTOR, ratio, "x", at_least=True, note=note))
    title = f"{baselines['instances']:,} random instances: how often a baseline beats {SOLVER}"
    goals.append(common.goal(title, 0.0, float(sum(baselines["beaten"].values())), ""))
    return goals


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    common.show_table(
        console, f"{SOLVER}, whole call",
        ("users", "number", "models", "layers", "compiled before", "min", "median", "objective", "bound", "status"),
        [
            [row["title"], f"{row['users']:,}", str(row["models"]), str(row["layers"]), seconds(row["compile_s"]),
             seconds(row["whole"]["min_s"]), seconds(row["whole"]["median_s"]), f"{row['objective']:.8g}",
             f"{row['bound']:.8g}", row["status"]]
            for row in report["rows"]
        ],
    )  # fmt: skip
    common.show_table(
        console, f"{SOLVER} and the generic programme {GENERIC}",
        ("users", "number", SOLVER, GENERIC, "ratio", "objective", GENERIC, "its status", "same"),
        [
            [row["title"], f"{row['users']:,}", seconds(row["ours"]["median_s"]), seconds(row["generic"]["seconds"]),
             f"{row['ratio']:.4g}x", f"{row['objective']:.8g}", _number(row["generic"]["objective"]),
             _status(row["generic"]), ("yes" if row["equal"] else "NO") if row["done"] else "-"]
            for row in report["generic"]
        ],
    )  # fmt: skip
    table = report["baselines"]
    common.show_table(
        console, f"{table['instances']:,} random instances, {table['users']:,} users, {table['variants']} variants",
        ("solver", "total value", f"of {SOLVER}", f"beats {SOLVER}"),
        [
            [name, f"{value:.6g}", f"{100 * value / table['value'][SOLVER]:.1f} %", str(table["beaten"].get(name, "-"))]
            for name, value in table["value"].items()
        ],
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.8g}"


def _status(row: Row) -> str:
    limit = f", {row['limit']} limit" if row.get("limit") in tuple(map(str, Limit)) else ""
    return f"{row['status']}{limit}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--users", type=int, default=100_000, help="users of the timings at scale")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of every clock, within ten seconds each")
    parser.add_argument("--instances", type=int, default=1000, help="random instances against the baselines")
    parser.add_argument("--milp-seconds", type=float, default=60.0, help="seconds for HiGHS at each size")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("model_download", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
