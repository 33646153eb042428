"""What training adds to `reservation`: ``python -m edgeopt.evaluation.benchmarks.selection_training``.

`rl-crp` is trained on the default problem, once per seed, without demonstrations and with those of `matching` in its first
iterations. Each policy plays held-out episodes of the problem that it was trained on, and of one with 20 servers and
1,000 clients that it never saw; `reservation`, from which training starts, plays the same. Figures are means over seeds
with 95 % intervals, and the difference to `reservation` seed by seed.
"""

import argparse
import sys
from collections.abc import Iterator

from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row
from edgeopt.evaluation.benchmarks.held_out_selection import difference, play_held_out
from edgeopt.evaluation.benchmarks.selection_quality import NAMES, QUICK, cell, values
from edgeopt.evaluation.statistics import intervals
from edgeopt.problems import ClientSelection
from edgeopt.solve import Solver
from edgeopt.solvers.client_selection import Reservation, RlCrp, TrainedPolicy

SHOWN = ("conflict_rate", "collision_rate", "busy_rate", "jain_index", "mean_reward")
LARGE: Row = {"num_servers": 20, "num_clients": 1000, "picks": 10}
LARGE_EPISODES = 4


def make_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each problem, player and seed."""
    small = ClientSelection.random(**(QUICK if options.quick else {}))
    large = ClientSelection.random(**({**QUICK, "num_clients": 12} if options.quick else LARGE))
    for seed in range(options.seeds):
        players: dict[str, Solver | TrainedPolicy] = {"reservation": Reservation()}
        for shown in options.demonstrations:
            learner = RlCrp(iterations=2, episodes=2) if options.quick else RlCrp()
            common.say(f"rl-crp, {shown} iterations with demonstrations, seed {seed}")
            policy = type(learner)(
                iterations=learner.iterations, episodes=learner.episodes, demonstrations=shown
            ).train(small, seed=seed)
            players[f"rl-crp, {shown} shown"] = policy
        for name, player in players.items():
            for problem, episodes in ((small, options.episodes), (large, min(options.episodes, LARGE_EPISODES))):
                case = f"{problem.num_servers} x {problem.num_clients}"
                found = play_held_out(problem, player, seed, episodes)
                yield {"case": case, "solver": name, "seed": seed, **found}


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    if options.quick:
        options.seeds, options.episodes = 2, 2
    rows = list(make_rows(options))
    table = intervals(rows, SHOWN, ("case", "solver"))
    found = []
    for row in table:
        own = [other for other in rows if other["case"] == row["case"]]
        against = {
            name: difference(own, row["solver"], "reservation", name) for name in ("conflict_rate", "mean_reward")
        }
        found.append({
            "case": row["case"], "solver": row["solver"], "seeds": row["seeds"],
            **{name: values(row[name]) for name in SHOWN},
            "against_reservation": {name: values(value) for name, value in against.items()},
        })  # fmt: skip
    return {"rows": found, "valid": all(0 <= row["conflict_rate"] <= 1 for row in rows), "goals": []}


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    lines = []
    for row in report["rows"]:
        against = row["against_reservation"]
        lines.append([
            row["case"], row["solver"], str(row["seeds"]), *(cell(name, row[name]) for name in SHOWN),
            *(cell(name, against[name]) for name in against),
        ])  # fmt: skip
    names = ("case", "solver", "seeds", *(NAMES[name] for name in SHOWN), "conflicts, more", "reward, more")
    common.show_table(console, "held-out episodes: mean and 95 % interval over seeds", names, lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--seeds", type=int, default=10, help="seeds of training")
    parser.add_argument("--episodes", type=int, default=20, help="held-out episodes per seed")
    parser.add_argument(
        "--demonstrations",
        type=int,
        nargs="+",
        default=[0, 20],
        help="iterations with demonstrations, one training for each",
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("selection_training", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
