"""Run all benchmarks, one after another, each in a process of its own: ``python -m edgeopt.evaluation.benchmarks``."""

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from edgeopt import storage
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row

NAMES = (
    "greedy", "kernels", "top_k", "scale", "caching", "model_download", "split_training", "client_selection",
    "expert_balancing", "certificates",
    "federated_rounds", "codecs", "split_systems", "experts", "unequal_ranks", "steering", "selection_quality",
    "selection_training", "time_limits", "rounds", "rounds_choice", "teams", "warm_start", "fountain", "fusion", "vault", "sider",
    "peers",
)  # fmt: skip
# an hour to minutes: only where they are named
LONG = ("selection_quality", "selection_training", "time_limits", "rounds", "rounds_choice")


def run(name: str, options: argparse.Namespace) -> Row:
    """Run one benchmark in a new process and return its report, or one that says what went wrong."""
    python = options.peers_python if name == "peers" else sys.executable
    command = [python, "-m", f"edgeopt.evaluation.benchmarks.{name}", "--json"]
    if options.quick:
        command += ["--time-limit", "0.2"] if name == "kernels" else ["--quick"]
    if name in ("caching", "model_download"):
        command += ["--milp-seconds", f"{options.milp_seconds:g}"]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return _failed(name, str(error))
    lines = done.stdout.strip().splitlines()
    if done.returncode not in (0, 1) or not lines or not lines[-1].startswith("{"):
        said = done.stderr.strip().splitlines()
        return _failed(name, said[-1] if said else f"ended with status {done.returncode}")
    report: Row = json.loads(lines[-1])
    if name == "kernels":
        report |= {"benchmark": name, **common.facts(), "goals": kernel_goals(report), "valid": done.returncode == 0}
    return report | {"wall_s": time.perf_counter() - start}


def _failed(name: str, message: str) -> Row:
    return {"benchmark": name, "goals": [], "valid": False, "failed": message}


def kernel_goals(report: Row) -> list[Row]:
    """Return the goals of the kernels, whose benchmark reports ratios only."""
    other = "divide & conquer ratio"
    least = min(row[other] for row in report["knapsack"] if row["equal"])
    goals = [
        common.goal("knapsack: faster than OR-Tools divide & conquer", 1.0, least, "x", at_least=True, note="least")
    ]
    for row in report["max_plus"]:
        if row["numpy_ms"] is not None:
            ratio = row["numpy_ms"] / row["dense_ms"] if row["equal"] else None
            title = f"(max,+) of {row['size']:,} levels, dense: faster than NumPy"
            goals.append(common.goal(title, 1.0, ratio, "x", at_least=True))
    power = report["growth"]["exponent_of_n_log_n"]
    return [*goals, common.goal("(max,+), concave: power of n log n that fits its times", 1.1, power, "")]


def summary(reports: Sequence[Row]) -> list[Row]:
    """Return all goals; a benchmark that failed is one goal that was not reached, with the reason."""
    goals: list[Row] = []
    for report in reports:
        if "failed" in report:
            goals.append(
                common.goal(f"{report['benchmark']}: runs", 1.0, None, "", at_least=True, note=report["failed"])
            )
            continue
        if not report["valid"]:
            goals.append(common.goal(f"{report['benchmark']}: all results valid", 1.0, 0.0, "", at_least=True))
        goals += report["goals"]
    return goals


def main(arguments: list[str] | None = None) -> int:
    """Run, print the tables and the summary, write everything down; exit status 1 if a result was not valid."""
    parser = argparse.ArgumentParser(prog="python -m edgeopt.evaluation.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small instances and short limits: does everything run?")
    parser.add_argument("--out", metavar="FILE.json", help="write all reports to this file")
    parser.add_argument(
        "--only", metavar="NAMES", help=f"comma-separated, of {', '.join(NAMES)} (default: all but {', '.join(LONG)})"
    )
    parser.add_argument("--milp-seconds", type=float, default=60.0, help="seconds for HiGHS (full protocol: 300)")
    parser.add_argument("--peers-python", default=sys.executable, help="Python of an environment with the peers")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else [name for name in NAMES if name not in LONG]
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"--only {unknown[0]}: expected some of {', '.join(NAMES)}")
    console = common.console()
    common.show_facts(common.facts(), console)
    reports: list[Row] = []
    for name in names:
        common.say(f"benchmark {name}")
        report = run(name, options)
        reports.append(report)
        if "failed" in report:
            console.print(f"{name}: {report['failed']}", markup=False)
        else:
            module: Any = importlib.import_module(f"edgeopt.evaluation.benchmarks.{name}")
            module.show(report, console)
        if options.out:  # after each, so that an interrupt loses one benchmark only
            document = {**common.facts(), "quick": options.quick, "reports": reports, "goals": summary(reports)}
            storage.write_text(options.out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    common.show_goals(summary(reports), console)
    return 0 if all(report["valid"] or report["benchmark"] == "peers" for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
