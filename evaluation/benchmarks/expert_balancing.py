"""Time and quality of expert balancing at the size of servers: ``python -m edgeopt.evaluation.benchmarks.expert_balancing``.

256 experts and 288 slots on 32 devices, loads with logarithms of standard deviation 1; CPU time of a whole `edgeopt.solve`,
compiled before, the median over seeds and repeats.
"""

import argparse
import statistics
import sys
import time

from rich.console import Console

import edgeopt
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.problems import ExpertBalancing

GOAL_S = 0.02


def measure(options: argparse.Namespace) -> Row:
    """Measure both quick solvers."""
    sizes = {"num_devices": 4, "num_experts": 16} if options.quick else {"num_devices": 32, "num_experts": 256}
    rows: list[Row] = []
    for name in ("eplb", "local-search"):
        times, gaps = [], []
        for seed in range(2 if options.quick else options.seeds):
            problem = ExpertBalancing.random(**sizes, seed=seed)
            edgeopt.solve(problem, name)  # compiled
            start = time.process_time()
            result = edgeopt.solve(problem, name)
            times.append(time.process_time() - start)
            gaps.append(result.objective / problem.lower_bound - 1)
        rows.append(
            {"solver": name, "seconds": statistics.median(times), "gap": statistics.mean(gaps), "worst": max(gaps)}
        )
    goals = [common.goal(row["solver"], GOAL_S, row["seconds"], " s") for row in rows]
    return {"sizes": sizes, "rows": rows, "valid": min(row["gap"] for row in rows) >= 0, "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the table."""
    lines = [
        [row["solver"], seconds(row["seconds"]), f"{100 * row['gap']:.3f} %", f"{100 * row['worst']:.3f} %"]
        for row in report["rows"]
    ]
    title = "{num_experts} experts on {num_devices} devices, an eighth more slots".format(**report["sizes"])
    common.show_table(console, title, ("solver", "CPU", "above the bound, mean", "worst"), lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--seeds", type=int, default=20, help="random problems")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("expert_balancing", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
