"""Time rounds of systems of split learning beside SplitFed: ``python -m edgeopt.evaluation.benchmarks.split_systems``.

A small CNN on digits, cut after its first convolution, every client in every round, one mini-batch each; clients run as a
batch. Each system trains in turn with SplitFed, and the ratio is that of their median seconds for a round, with drawing the
mini-batches, the ledger and virtual time, and without evaluation. The ratio is what matters: the seconds are those of
the machine.
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console

from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.evaluation.benchmarks.federated_rounds import make_task, make_timing
from edgeopt.schedule import RoundPlan, StaticPlanner
from edgeopt.training import Algorithm, Gapsl, ParallelSplit, Sgd, SplitFed, Task, train

BATCH_SIZE, CUT = 16, 1
OPTIMIZER = Sgd(0.05, momentum=0.9)

SYSTEMS: dict[str, tuple[Callable[[], Algorithm], float]] = {
    "psl": (lambda: ParallelSplit(OPTIMIZER), 1.2),
    "gapsl": (lambda: Gapsl(OPTIMIZER), 1.5),
    "gapsl, exact": (lambda: Gapsl(OPTIMIZER, mode="exact"), 2.5),
}
"""By name, how a system is made, and how many times the seconds of SplitFed a round of it may take: a goal."""


def round_seconds(task: Task, algorithm: Algorithm, rounds: int) -> tuple[float, float]:
    """Return the median seconds of a round, of those after the first, and the last training loss."""
    clients = np.arange(task.num_clients, dtype=np.int32)
    plan = RoundPlan(client=clients, batch_size=np.array(BATCH_SIZE), cut_layer=np.array(CUT))
    ends = [time.perf_counter()]
    history = train(
        task, algorithm, StaticPlanner(plan), make_timing(task.num_clients), rounds=rounds + 1,
        evaluate_every=rounds + 2, on_round=lambda record: ends.append(time.perf_counter()),
    )  # fmt: skip
    each = [end - start for start, end in itertools.pairwise(ends[1:-1])]  # the last one is evaluated
    return statistics.median(each), history.rows[-1]["train_loss"]


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    if options.quick:
        options.clients, options.rounds, options.repeats = 4, 3, 1
    torch.set_num_threads(1)
    task = make_task(options.clients, 2 * BATCH_SIZE)
    rows, goals = [], []
    for name, (make, most) in SYSTEMS.items():
        common.say(name)
        found: dict[str, list[float]] = {name: [], "splitfed": []}
        losses = []
        for _ in range(options.repeats):
            for which, algorithm in ((name, make()), ("splitfed", SplitFed(OPTIMIZER))):
                taken, loss = round_seconds(task, algorithm, options.rounds)
                found[which].append(taken)
                losses.append(loss)
        own, other = (min(taken) for taken in found.values())
        rows.append(
            {"system": name, "round_s": own, "splitfed_s": other, "ratio": own / other,
             "valid": all(map(math.isfinite, losses))}
        )  # fmt: skip
        goals.append(common.goal(f"{name}: a round over one of SplitFed", most, own / other, "x"))
    return {
        "clients": options.clients, "rounds": options.rounds, "rows": rows, "goals": goals,
        "valid": all(row["valid"] for row in rows),
    }  # fmt: skip


def show(report: Row, console: Console) -> None:
    """Print the table."""
    common.show_table(
        console, f"A round of {report['clients']} clients, median of {report['rounds']}, least of the repeats",
        ("system", "round", "SplitFed", "ratio"),
        [[row["system"], seconds(row["round_s"]), seconds(row["splitfed_s"]), f"{row['ratio']:.3g}x"] for row in report["rows"]],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--clients", type=int, default=10, help="clients, all in every round")
    parser.add_argument("--rounds", type=int, default=50, help="rounds of each run")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of every run")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("split_systems", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
