"""Time updates of agents that learn together against their number: ``python -m edgeopt.evaluation.benchmarks.teams``.

LEED on a grid of roads with 4, 12, 24 and 48 agents: CPU seconds of an update on one thread, of which demonstrations are played
once in all. The exponent is the slope of a straight line through their logarithms: 1 grows as the number of agents does.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.rl import Demonstrations, Leed, ScriptedPlanner, StepRecord, learn_together
from edgeopt.rl.environments import Routing, grid

AGENTS = (4, 12, 24, 48)
SIDE = 7
GOAL_EXPONENT = 1.2


def team_row(agents: int, updates: int, weight: Any) -> Row:
    """Return the CPU seconds of an update, the median of all but the first two."""
    team, learner = Routing(grid(SIDE), agents, seed=1), Leed(hidden=32, weight=weight, gather_every=1 << 16)
    times = [time.process_time()]

    def tick(record: StepRecord) -> None:
        times.append(time.process_time())

    learn_together(team, learner, Demonstrations(ScriptedPlanner()), updates=updates, seed=0, on_row=tick)
    return {"agents": agents, "weight": weight, "update_s": statistics.median(np.diff(times)[2:].tolist())}


def exponent(rows: list[Row]) -> float:
    """Return the slope of the logarithm of seconds against that of agents.

    Examples
    --------
    >>> round(exponent([{"agents": n, "update_s": 0.1 * n**2} for n in (4, 12, 24)]), 6)
    2.0
    """
    return float(np.polyfit(np.log([row["agents"] for row in rows]), np.log([row["update_s"] for row in rows]), 1)[0])


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for weight in ("decay", "distance", "none"):
            for agents in AGENTS[:2] if options.quick else AGENTS:
                common.say(f"{agents} agents, weight {weight}")
                rows.append(team_row(agents, 4 if options.quick else options.updates, weight))
    finally:
        torch.set_num_threads(before)
    goals = [
        common.goal(
            f"exponent of the seconds of an update against agents, weight {weight}", GOAL_EXPONENT,
            exponent([row for row in rows if row["weight"] == weight]), "",
        )
        for weight in ("decay", "distance", "none")
    ]  # fmt: skip
    return {"rows": rows, "valid": True, "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the table."""
    lines = [
        [str(row["agents"]), row["weight"], seconds(row["update_s"]), seconds(row["update_s"] / row["agents"])]
        for row in report["rows"]
    ]
    common.show_table(console, "CPU seconds of an update", ("agents", "weight", "update", "per agent"), lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--updates", type=int, default=12, help="updates of every run")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("teams", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
