"""Time `lagrangian` to certified gaps, beside HiGHS and all other solvers: ``python -m edgeopt.evaluation.benchmarks.caching``.

Instance T is ``facility-full``: 10 servers, 1,536 experts, 100 users. Every solver runs once untimed before its clock
starts; a clock covers the whole call of `edgeopt.solve` and ends when the solver itself has certified the gap. All
objectives are checked against all bounds found. HiGHS comes last, in the same process.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from edgeopt import storage
from edgeopt.evaluation import best_known, load_instance
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import KIND, Row, percent, seconds
from edgeopt.evaluation.instances import library
from edgeopt.network import EdgeNetwork
from edgeopt.problems import BUNDLED_TRACES, ExpertCaching, bundled_trace
from edgeopt.result import relative_gap
from edgeopt.solvers import get_solver, solvers_of
from edgeopt.stop import TargetGap

SOLVER = "lagrangian"
TARGETS = (2e-4, 5e-5)  # certified gaps
WITHIN_S = (0.6, 10.0)  # when they should be reached
FACTOR = 100.0  # how much sooner than HiGHS
SHARES = (0.05, 0.3)  # storage per server as a share of all experts
NETWORKS = ((6, 48, 1), (8, 72, 2), (10, 100, 3), (10, 100, 4))  # servers, devices, seed: per trace, then all together
BACK_ENDS = ("milp", "cp-sat")  # cannot be interrupted at once: no warm-up on the instance


def storage_instance(prefix: str, share: float) -> ExpertCaching:
    """Return a library instance whose servers each hold a share of all experts' storage."""
    arrays = storage.read_arrays(library.FOLDER / "caching-facility.npz")
    gain, weight, size = (arrays[f"{prefix}_{name}"] for name in ("gain", "weight", "size"))
    return ExpertCaching.from_facility(gain, weight, size, np.full(gain.shape[1], math.floor(share * size.sum())))


def trace_instances(quick: bool) -> Iterator[tuple[str, ExpertCaching]]:
    """Yield (name, problem) of each bundled trace alone, then of all together."""
    sets = [*([name] for name in BUNDLED_TRACES), list(BUNDLED_TRACES)]
    for traces, (servers, devices, seed) in zip(sets[1:2] if quick else sets, NETWORKS, strict=False):
        network = EdgeNetwork.random(servers, devices, seed=seed)
        loaded = [bundled_trace(name) for name in traces]
        yield f"{' + '.join(traces)}, {servers} servers", ExpertCaching.from_traces(loaded, network, latency="sum")


def time_to_gaps(name: str, problem: ExpertCaching, seeds: Sequence[int], repeats: int, limit: float) -> Row:
    """Time `SOLVER` to every target gap, seed by seed; also the gaps it has certified at fixed times."""
    common.say(f"{name}: {SOLVER} to certified gaps")
    compile_s = common.warm(problem, SOLVER, stop=TargetGap(TARGETS[-1]))
    within_s = [min(within, limit) for within in WITHIN_S]
    runs = []
    for seed in seeds:
        for target in TARGETS:
            for _ in range(repeats):
                timed = common.timed_solve(problem, SOLVER, seed=seed, time_limit=limit, stop=TargetGap(target))
                reached = timed.gap <= target
                run = timed.to_json() | {"seed": seed, "target": target, "reached": reached}
                if timed.result is not None:
                    run["gap_at"] = [common.gap_at(timed.result.history, within) for within in within_s]
                runs.append(run)
                if not reached:
                    break
    valid = common.consistent((run["objective"] for run in runs), (run["bound"] for run in runs))
    valid &= all(run["status"] != "error" for run in runs)
    strict = [run for run in runs if run["target"] == TARGETS[-1]]
    return {
        "instance": name,
        "facts": problem.describe(),
        "compile_s": compile_s,
        "targets": [_target(runs, target, seeds) for target in TARGETS],
        "within_s": within_s,
        "gap_at": [_median(run.get("gap_at", (math.inf,) * 2)[k] for run in strict) for k in range(len(WITHIN_S))],
        "worst_gap": max((run["gap"] if run["gap"] is not None else math.inf) for run in strict),
        "valid": valid,
        "message": next((run["message"] for run in runs if run["status"] == "error"), ""),
        "runs": runs,
    }


def _target(runs: Sequence[Row], target: float, seeds: Sequence[int]) -> Row:
    """Return the median over seeds of each seed's median; infinite where a seed does not get there."""
    of_seed, clocks = [], []
    for seed in seeds:
        own = [run for run in runs if run["seed"] == seed and run["target"] == target]
        clocks += [run["seconds"] for run in own if run["reached"]]
        of_seed.append(_median(run["seconds"] if run["reached"] else math.inf for run in own))
    return {
        "target": target,
        "median_s": _median(of_seed),
        "max_s": max(of_seed),
        "min_s": min(clocks, default=math.inf),
        "seeds_reached": sum(map(math.isfinite, of_seed)),
        "seeds": len(seeds),
    }


def _median(values: Any) -> float:
    return float(statistics.median(list(values)))


def solver_table(problem: ExpertCaching, limit: float) -> list[Row]:
    """Run every solver but HiGHS once under a time limit."""
    rows = []
    for solver in solvers_of(KIND):
        if solver.name == "milp":
            continue
        common.say(f"all solvers: {solver.name}")
        row: Row = {"solver": solver.name, "limit_s": limit}
        if (reason := solver.supports(problem)) is not None:
            rows.append(
                row | {"status": "unsupported", "objective": None, "bound": None, "gap": None, "message": reason}
            )
            continue
        common.warm(problem, solver, full=solver.name not in BACK_ENDS)
        rows.append(row | common.timed_solve(problem, solver, time_limit=limit).to_json())
    return rows


def run_milp(problem: ExpertCaching, limit: float) -> tuple[Row, Any]:
    """Run HiGHS once; return its row and its history."""
    row: Row = {"solver": "milp", "limit_s": limit, "objective": None, "bound": None, "gap": None, "status": "missing"}
    if not common.available(["milp"]):
        return row | {"message": "there is no solver 'milp'"}, None
    common.say(f"milp: HiGHS, up to {limit:g} s")
    solver = get_solver(KIND, "milp")
    common.warm(problem, solver, full=False)
    timed = common.timed_solve(problem, solver, time_limit=limit)
    return row | timed.to_json(), None if timed.result is None else timed.result.history


def compare_milp(row: Row, history: Any, ours_s: float, bound: float) -> Row:
    """Return when HiGHS had certified the first target gap itself, when it had a placement that good, and the ratios."""
    row = row | {"ours_s": ours_s, "target": TARGETS[0]}
    for key, reference in (("certified", None), ("incumbent", bound)):
        first = None if history is None else common.first_time(history, TARGETS[0], reference)
        row[f"{key}_s"] = first
        lasted = min(row["limit_s"], row.get("seconds", 0.0))
        known = history is not None and math.isfinite(ours_s)
        row[f"{key}_ratio"] = (lasted if first is None else first) / ours_s if known else None
        row[f"{key}_at_least"] = first is None
        row[f"{key}_gap"] = math.inf if history is None else common.gap_at(history, math.inf, reference)
    return row


def measure(options: argparse.Namespace) -> Row:
    """Measure everything; HiGHS last."""
    name = "small" if options.quick else "full"
    instance, limit = f"facility-{name}", 2.0 if options.quick else options.limit
    seeds = range(2 if options.quick else options.seeds)
    repeats = 1 if options.quick else options.repeats
    problem: Any = load_instance(instance)
    rows = [time_to_gaps(f"T ({instance})", problem, seeds, repeats, limit)]
    for share in SHARES:
        rows.append(time_to_gaps(f"T, storage {share:.0%}", storage_instance(name, share), seeds, repeats, limit))
    for title, traced in trace_instances(options.quick):
        rows.append(time_to_gaps(title, traced, seeds, repeats, limit))
    table = solver_table(problem, limit)
    milp, history = run_milp(problem, 2.0 if options.quick else options.milp_seconds)

    known = best_known(instance)
    found = [*rows[0]["runs"], *table, milp]
    objectives, bounds = ([row[key] for row in found if row[key] is not None] for key in ("objective", "bound"))
    if known.objective is not None and known.bound is not None:
        objectives.append(known.objective - known.rounded_to)
        bounds.append(known.bound + known.rounded_to)
    bound = min(bounds)
    milp = compare_milp(milp, history, rows[0]["targets"][0]["median_s"], bound)
    table.append(milp)
    for row in table:
        row["gap_to_best_bound"] = relative_gap(row["objective"], bound)
    valid = common.consistent(objectives, bounds) and all(row["valid"] for row in rows)
    valid &= all(row["status"] != "error" for row in table)
    return {
        "rows": rows,
        "solvers": table,
        "milp": milp,
        "best_bound": bound,
        "best_objective": max(objectives),
        "valid": valid,
        "goals": _goals(rows, milp),
    }


def _goals(rows: Sequence[Row], milp: Row) -> list[Row]:
    goals = []
    for row in rows:
        for k, (target, within) in enumerate(zip(row["targets"], WITHIN_S, strict=True)):
            note = f"{target['seeds_reached']} of {target['seeds']} seeds"
            if target["seeds_reached"] < target["seeds"]:
                note += f"; at {row['within_s'][k]:g} s the median gap is {percent(row['gap_at'][k])}"
            title = f"{row['instance']}: certified gap {100 * target['target']:g} %, median seconds"
            goals.append(common.goal(title, within, target["median_s"], "s", note=note))
    for key, title in (("certified", "its own certified gap"), ("incumbent", "its best placement's gap")):
        goals.append(
            common.goal(
                f"sooner than HiGHS at {100 * milp['target']:g} %, {title}",
                FACTOR,
                milp[f"{key}_ratio"],
                "x",
                at_least=True,
                note=milp_text(milp, key),
            )
        )
    return goals


def milp_text(milp: Row, key: str) -> str:
    """Say how HiGHS fared."""
    ratio = milp[f"{key}_ratio"]
    if ratio is None:
        return milp.get("message") or f"HiGHS {seconds(milp[f'{key}_s'])}, {SOLVER} not on most seeds"
    if milp[f"{key}_at_least"]:
        return f"not within {milp['limit_s']:g} s ({percent(milp[f'{key}_gap'])}): at least {ratio:.4g}x"
    return f"HiGHS {seconds(milp[f'{key}_s'])}, ours {seconds(milp['ours_s'])}"


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    lines = []
    for row in report["rows"]:
        cells = [row["instance"], seconds(row["compile_s"])]
        for target in row["targets"]:
            cells += [seconds(target["min_s"]), seconds(target["median_s"]), seconds(target["max_s"])]
            cells.append(f"{target['seeds_reached']}/{target['seeds']}")
        lines.append([*cells, *map(percent, row["gap_at"]), row["message"] or ("yes" if row["valid"] else "NO")])
    columns = ["instance", "compiled before"]
    for gap in TARGETS:
        columns += [f"{100 * gap:g} %: min", "median", "max", "seeds"]
    columns += [*(f"gap at {within:g} s" for within in report["rows"][0]["within_s"]), "valid"]
    common.show_table(console, f"{SOLVER}: seconds to a certified gap", columns, lines)
    title = f"all solvers on T: best bound {report['best_bound']:.6g}, best objective {report['best_objective']:.6g}"
    common.show_table(
        console, title, ("solver", "objective", "gap to best bound", "certified gap", "seconds", "compiled in it", ""),
        [
            [
                row["solver"], "-" if row["objective"] is None else f"{row['objective']:.6g}",
                percent(row["gap_to_best_bound"]), percent(row["gap"]), seconds(row.get("seconds")),
                seconds(row.get("compile_seconds")), row.get("message") or row["status"],
            ]
            for row in report["solvers"]
        ],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--limit", type=float, default=10.0, help="seconds per run, HiGHS excepted")
    parser.add_argument("--milp-seconds", type=float, default=60.0, help="seconds for HiGHS (full protocol: 300)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... of every timing")
    parser.add_argument("--repeats", type=int, default=3, help="repeats per seed and target")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("caching", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
