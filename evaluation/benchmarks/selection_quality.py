"""Judge the solvers of client selection: ``python -m edgeopt.evaluation.benchmarks.selection_quality``.

Learners are trained once per seed and played on held-out episodes, the same ones for every solver under that seed;
figures are means over seeds with 95 % intervals. Four parts: the default problem; others, one without memory in who is
busy; the weight of fairness; and size. Then the forecasts of the hidden Markov model by their loss. Training is
timed on the default problem. The whole takes about an hour on one core; ``--rows FILE`` keeps what is done.
"""

import argparse
import json
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row
from edgeopt.evaluation.benchmarks.held_out_selection import (
    METRICS,
    SETTINGS,
    difference,
    evaluate,
    gapped_forecasts,
    played_forecasts,
)
from edgeopt.evaluation.statistics import Interval, intervals, log_loss
from edgeopt.problems import ClientSelection
from edgeopt.solve import Solver
from edgeopt.solvers import solvers_of
from edgeopt.solvers.client_selection import (
    BlindMatching,
    Matching,
    RandomPicks,
    Reservation,
    RlCrp,
    RlCrpPlain,
    RlNoCrp,
)
from edgeopt.storage import dumps

GOAL_TRAINING_S = 180.0
LIMITS = {"conflict_rate": 0.22, "jain_index": 0.67, "mean_reward": -0.5}
"""Goals on the default problem for servers that decide alone."""
PARTS = ("default", "settings", "size", "frontier")
FEW_SEEDS = 3  # of all parts but the first
WEIGHTS = (0.5, 1.0, 2.0)  # of fairness; `rl-no-fairness` is trained with 0
SIZES = ((3, 30, 4), (5, 60, 4), (10, 200, 6), (20, 1000, 10))  # servers, clients, picks
QUICK: Row = {"num_servers": 2, "num_clients": 8, "picks": 2, "rounds": 10}
LARGE = 100  # clients from which learners are trained on one seed, and by fewer iterations
LARGE_ITERATIONS = 40
SHOWN = ("conflict_rate", "collision_rate", "busy_rate", "mean_round_s", "tail_round_s", "jain_index", "mean_reward")
NAMES = {
    "conflict_rate": "conflicts", "collision_rate": "collisions", "busy_rate": "busy", "mean_round_s": "round, s",
    "tail_round_s": "95th, s", "jain_index": "Jain", "mean_staleness": "staleness", "max_staleness": "worst",
    "bytes_sent": "sent, MB", "bytes_wasted": "wasted, MB", "mean_reward": "reward",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """One row to make: a solver on a problem under a seed."""

    part: str
    case: str
    problem: ClientSelection
    solver: Solver
    seed: int

    @property
    def key(self) -> str:
        """What tells a task from the others."""
        return f"{self.part}, {self.case}, {self.solver.name}, {self.seed}"


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    """Yield all tasks, the default problem first."""
    quick, few = options.quick, min(FEW_SEEDS, options.seeds)
    small = QUICK if quick else {}
    problem = ClientSelection.random(**small)
    for seed in range(options.seeds):
        for solver in solvers_of(problem.kind):
            yield Task("default", "fail", problem, _learner(solver, options), seed)
    learners = [_learner(solver, options) for solver in (RlCrp(), RlCrpPlain(), RlNoCrp())]
    for case, changes in SETTINGS.items():
        other = ClientSelection.random(**(small | changes))
        for seed in range(few):
            for solver in (*learners, Reservation(), BlindMatching(), Matching(), RandomPicks()):
                yield Task("settings", case, other, solver, seed)
    for servers, clients, picks in SIZES[:1] if quick else SIZES:
        large = clients >= LARGE
        other = ClientSelection.random(num_servers=servers, num_clients=clients, picks=picks, rounds=problem.rounds)
        for seed in range(1 if large else few):
            learner = _learner(RlCrp(), options, LARGE_ITERATIONS if large else None)
            for solver in (learner, Reservation(), BlindMatching(), Matching(), RandomPicks()):
                yield Task("size", f"{servers} x {clients}", other, solver, seed)
    for weight in WEIGHTS[1:3] if quick else WEIGHTS:
        for seed in range(few):
            for solver in (*learners, Matching()):
                yield Task("frontier", f"{weight:g}", problem.replace(fairness_weight=weight), solver, seed)


def _learner(solver: Solver, options: argparse.Namespace, iterations: int | None = None) -> Solver:
    """Return a learner with the iterations asked for, any other solver as it is."""
    if not isinstance(solver, RlCrp):
        return solver
    if options.quick:
        return type(solver)(iterations=2, episodes=2)
    return type(solver)(iterations=min(solver.iterations, iterations or solver.iterations))


def make_rows(options: argparse.Namespace, parts: Collection[str] = PARTS) -> list[Row]:
    """Return the rows of all tasks of some parts; those that are in the file are not made again, nor are equal ones."""
    known = _read(options.rows)
    made: list[Row] = []
    alike: dict[str, Row] = {}
    for task in tasks(options):
        if task.part not in parts:
            continue
        same = f"{task.problem.fingerprint()}, {task.solver!r}, {task.seed}, {options.episodes}"
        row = known.get(task.key)
        if row is None or row["same"] != same:
            if same not in alike:
                common.say(task.key)
                alike[same] = evaluate(task.problem, task.solver, task.seed, episodes=options.episodes)
            row = alike[same] | {"part": task.part, "case": task.case, "key": task.key, "same": same}
            if options.rows is not None:
                with options.rows.open("a", encoding="utf-8") as file:
                    file.write(dumps(row) + "\n")
        alike[same] = row
        made.append(row)
    return made


def _read(path: Path | None) -> dict[str, Row]:
    if path is None or not path.exists():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row["key"]: row for row in rows}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise EdgeOptError(f"{path}: expected the rows of this benchmark, one object a line: {error}") from None


# --- the report --------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    if options.quick:
        options.seeds, options.episodes = 2, 2
    rows = make_rows(options)
    of = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    small = QUICK if options.quick else {}
    common.say("forecasts")
    forecasts = {"two regimes, gapped": gapped_forecasts(*((20, 60) if options.quick else (200, 400)))}
    for case, changes in SETTINGS.items():
        forecasts[f"random picks, {case}"] = played_forecasts(ClientSelection.random(**(small | changes)))
    table = {row["solver"]: row for row in intervals(of["default"], METRICS)}
    training = [row["train_s"] for row in of["default"] if row["solver"] == "rl-crp"]
    return {
        "default": [_plain(row) for row in table.values()],
        "settings": [_plain(row) for row in intervals(of["settings"], METRICS, ("case", "solver"))],
        "frontier": [_plain(row) for row in intervals(of["frontier"], METRICS, ("case", "solver"))],
        "size": [_plain(row) for row in intervals(of["size"], METRICS, ("case", "solver"))],
        "differences": {
            case: {name: values(difference(own, "rl-crp-plain", "rl-no-crp", name)) for name in SHOWN}
            for case, own in _cases(of)
        },
        "losses": {
            case: {name: log_loss(*found) for name, found in kinds.items()} for case, kinds in forecasts.items()
        },
        "training": {
            "median_s": float(np.median(training)),
            "cpu_s": float(np.median([row["train_cpu_s"] for row in of["default"] if row["solver"] == "rl-crp"])),
        },
        "valid": all(0 <= row["conflict_rate"] <= 1 for row in rows),
        "goals": goals(table, float(np.median(training))),
    }


def goals(table: dict[str, Row], training_s: float) -> list[Row]:
    """Return the goals: less conflicts with intervals apart, figures of the servers that decide alone, and the time of training."""
    found = [common.goal("training on the default problem, median", GOAL_TRAINING_S, training_s, "s")]
    for better, worse in (
        ("rl-crp-plain", "rl-no-crp"),
        ("rl-crp", "rl-crp-plain"),
        ("reservation", "rl-crp-plain"),
        ("rl-no-crp", "random"),
    ):
        limit, reached = table[worse]["conflict_rate"].low, table[better]["conflict_rate"].high
        title = f"conflict rate of {better}: upper end below the lower end of {worse}"
        found.append(common.goal(title, limit, reached, "", note=f"{table[better]['seeds']} seeds, 95 %"))
    for solver in ("reservation", "rl-crp"):
        for metric, limit in LIMITS.items():
            title = f"{NAMES[metric]} of {solver}, mean"
            found.append(common.goal(title, limit, table[solver][metric].mean, "", at_least=metric != "conflict_rate"))
    return found


def _cases(of: dict[str, list[Row]]) -> list[tuple[str, list[Row]]]:
    cases = [("default", of["default"])]
    for part in ("settings", "frontier"):
        for case in dict.fromkeys(row["case"] for row in of[part]):
            cases.append((f"{part}, {case}", [row for row in of[part] if row["case"] == case]))
    return cases


def _plain(row: Row) -> Row:
    return {name: values(value) if isinstance(value, Interval) else value for name, value in row.items()}


def values(found: Interval) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in (found.mean, found.low, found.high)]


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    rest = tuple(name for name in METRICS if name not in SHOWN)
    for names in (SHOWN, rest):
        common.show_table(
            console, "default problem, held-out episodes: mean and 95 % interval over seeds",
            ("solver", "seeds", *(NAMES[name] for name in names)),
            [[row["solver"], str(row["seeds"]), *(cell(name, row[name]) for name in names)] for row in report["default"]],
        )  # fmt: skip
    for part, title in (
        ("settings", "other problems"),
        ("frontier", "weight of fairness"),
        ("size", "servers x clients"),
    ):
        common.show_table(
            console, title, ("case", "solver", "seeds", *(NAMES[name] for name in SHOWN)),
            [
                [row["case"], row["solver"], str(row["seeds"]), *(cell(name, row[name]) for name in SHOWN)]
                for row in report[part]
            ],
        )  # fmt: skip
    common.show_table(
        console, "rl-crp-plain minus rl-no-crp, seed by seed", ("case", *(NAMES[name] for name in SHOWN)),
        [[case, *(cell(name, row[name]) for name in SHOWN)] for case, row in report["differences"].items()],
    )  # fmt: skip
    names = ("oracle", "fitted", "counted", "base rate")
    common.show_table(
        console, "loss of forecasts", ("case", *names),
        [[case, *(f"{row[name]:.4f}" if name in row else "" for name in names)] for case, row in report["losses"].items()],
    )  # fmt: skip
    training = report["training"]
    console.print(
        f"training: median {common.seconds(training['median_s'])}, of which computing {training['cpu_s']:.4g} s"
    )


def cell(name: str, values: list[float | None]) -> str:
    """Return mean and half width of an interval for people.

    Examples
    --------
    >>> cell("conflict_rate", [0.25, 0.24, 0.26]), cell("bytes_sent", [3e6, None, None])
    ('25.0 ± 1.0 %', '3.00')
    """
    mean, low, _ = values
    assert mean is not None
    factor, digits, unit = (100.0, 1, " %") if name.endswith("_rate") else (1.0, 3, "")
    if name.startswith("bytes"):
        factor, digits = 1e-6, 2
    if name.endswith(("_s", "staleness")):
        digits = 2
    width = "" if low is None else f" ± {factor * (mean - low):.{digits}f}"
    return f"{factor * mean:.{digits}f}{width}{unit}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--seeds", type=int, default=10, help="seeds of training on the default problem")
    parser.add_argument("--episodes", type=int, default=20, help="held-out episodes per seed")
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FILE",
        help="keep the rows in this file, and go on from it; a new file for new code",
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("selection_quality", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
