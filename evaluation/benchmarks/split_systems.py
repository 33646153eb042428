"""Time rounds of systems of split learning beside SplitFed: ``python -m edgeopt.evaluation.benchmarks.split_systems``.

A small CNN on digits, cut after its first convolution, every client in every round, one mini-batch each; clients run as a
batch. Each system trains in turn with SplitFed, and the ratio is that of their median seconds for a round, with drawing the
mini-batches, the ledger and virtual time, and without evaluation. The ratio is what matters: the seconds are those of
the machine. Beside them, the probes of HO-SFL at one client: all at once, and one after another.
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
from edgeopt.training import Algorithm, FlexpSfl, Gapsl, HoSfl, ParallelSplit, Sgd, SplitFed, Task, ZoSfl, train
from edgeopt.training.messages import Tensors
from edgeopt.training.rules.probes import Probes

BATCH_SIZE, CUT = 16, 1
PROBES = (5, 20)
OPTIMIZER = Sgd(0.05, momentum=0.9)

SYSTEMS: dict[str, tuple[Callable[[], Algorithm], float]] = {
    "psl": (lambda: ParallelSplit(OPTIMIZER), 1.2),
    "gapsl": (lambda: Gapsl(OPTIMIZER), 1.5),
    "gapsl, exact": (lambda: Gapsl(OPTIMIZER, mode="exact"), 2.5),
    "ho-sfl": (lambda: HoSfl(OPTIMIZER), 2.5),
    "zo-sfl": (lambda: ZoSfl(Sgd(1e-3, momentum=0.9)), 2.5),  # it would diverge with the step size of the others
    "flexp-sfl": (lambda: FlexpSfl(OPTIMIZER), 1.5),
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


def probe_row(task: Task, count: int, repeats: int) -> Row:
    """Return the least seconds of the probes of one mini-batch, all at once and one after another, and how far apart."""
    probes, weights = Probes(count, 1e-3), task.part(task.initial_weights(), 0, CUT)
    inputs = task.train.inputs[:BATCH_SIZE]
    directions = probes.directions(torch.tensor(0), weights)

    def outputs(parameters: Tensors) -> torch.Tensor:
        return task.forward(parameters, inputs, 0, CUT, training=False).outputs

    taken: dict[bool, list[float]] = {True: [], False: []}
    found: dict[bool, torch.Tensor] = {}
    with torch.inference_mode():
        for _ in range(1 + repeats):
            for batched, times in taken.items():
                start = time.perf_counter()
                found[batched] = probes.around(outputs, weights, directions, batched=batched)
                times.append(time.perf_counter() - start)
    at_once, in_turn = (min(times[1:]) for times in taken.values())
    apart = float((found[True] - found[False]).abs().max())
    return {"probes": count, "at_once_s": at_once, "in_turn_s": in_turn, "ratio": in_turn / at_once, "apart": apart}


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
    probed = [probe_row(task, count, 3 if options.quick else 50) for count in PROBES]
    goals += [
        common.goal(f"{row['probes']} probes at once: times faster than in turn", 3.0, row["ratio"], "x", at_least=True)
        for row in probed
    ]
    return {
        "clients": options.clients, "rounds": options.rounds, "rows": rows, "probes": probed, "goals": goals,
        "valid": all(row["valid"] for row in rows) and all(row["apart"] < 1e-5 for row in probed),
    }  # fmt: skip


def show(report: Row, console: Console) -> None:
    """Print the table."""
    common.show_table(
        console, f"A round of {report['clients']} clients, median of {report['rounds']}, least of the repeats",
        ("system", "round", "SplitFed", "ratio"),
        [[row["system"], seconds(row["round_s"]), seconds(row["splitfed_s"]), f"{row['ratio']:.3g}x"] for row in report["rows"]],
    )  # fmt: skip
    common.show_table(
        console, "The probes of a mini-batch at one client, least of many", ("probes", "at once", "in turn", "ratio"),
        [[str(row["probes"]), seconds(row["at_once_s"]), seconds(row["in_turn_s"]), f"{row['ratio']:.3g}x"] for row in report["probes"]],
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
