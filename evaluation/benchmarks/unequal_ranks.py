"""Time the training of adapters of unequal rank: ``python -m edgeopt.evaluation.benchmarks.unequal_ranks``.

Clients with ranks from 1 to 16 take local steps on a perceptron with frozen weights. As one batch their adapters are padded to
the largest rank; grouped by rank, each group is a batch of adapters of its own size, without padding; or they run one
after another. All three take the same mini-batches from the same weights, and must end with the same adapters. Timed is
the delivery of the messages of one round, the work of the clients.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Mapping

import numpy as np
import torch
from rich.console import Console

from edgeopt.data import load_data
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.models import add_lora, mlp
from edgeopt.schedule import RoundPlan
from edgeopt.training import Adam, LocalRunner, Message, Partition, Task, ZeroPadLora
from edgeopt.training.messages import Tensors

RANKS = (1, 2, 3, 4, 6, 8, 12, 16)
BATCH_SIZE = 16
TOLERANCE = 1e-4  # of adapters of size one, after ten steps of Adam in float32
FASTER = 2.0


def make_task(num_clients: int, rank: int) -> Task:
    """Return digits dealt out in equal shares, and a perceptron whose two hidden layers have adapters."""
    data = load_data("digits")
    shares = tuple(np.array_split(np.random.default_rng(0).permutation(len(data.train)), num_clients))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mlp((1, 8, 8), (64, 64))
    large, small = (add_lora(model, "hidden*", rank=size) for size in (max(RANKS), rank))
    for name, layer in small.named_parameters():  # the first rows and columns of the largest
        layer.data = large.get_parameter(name).detach()[tuple(slice(size) for size in layer.shape)].clone()
    return Task(model=small, train=data.train, partition=Partition(shares, num_samples=len(data.train)), test=data.test)


def messages_of(task: Task, ranks: Mapping[int, int], steps: int) -> tuple[RoundPlan, dict[int, Message]]:
    """Return the plan of a round for some clients, with ranks by client, and its messages."""
    whom = np.array(list(ranks), np.int32)
    plan = RoundPlan(
        client=whom,
        batch_size=np.full_like(whom, BATCH_SIZE),
        local_steps=np.full_like(whom, steps),
        rank=np.array(list(ranks.values()), np.int32),
    )
    algorithm = ZeroPadLora(Adam(0.01))
    phase = next(algorithm.round(task, algorithm.start(task), plan, 0))
    return plan, dict(phase.messages)


def deliver(task: Task, ranks: Mapping[int, int], steps: int, batched: bool) -> tuple[float, dict[int, Tensors]]:
    """Return the seconds of the clients' work, and their weights by client."""
    plan, messages = messages_of(task, ranks, steps)
    runner = LocalRunner(batched=batched)
    start = time.perf_counter()
    replies = runner.deliver(ZeroPadLora(Adam(0.01)), task, plan, messages)
    taken = time.perf_counter() - start
    return taken, {int(plan.client[entry]): answer["weights"] for entry, answer in replies.items()}


def apart(first: Mapping[int, Tensors], second: Mapping[int, Tensors]) -> float:
    """Return the largest difference of adapters, those of lower rank against the rows and columns that they have."""
    return max(
        float((value[tuple(slice(size) for size in other.shape)] - other).abs().max())
        for client, weights in second.items()
        for name, other in weights.items()
        for value in (first[client][name],)
    )


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    if options.quick:
        options.clients, options.steps, options.repeats = 8, 2, 1
    ranks = {client: RANKS[client % len(RANKS)] for client in range(options.clients)}
    groups = {rank: {client: own for client, own in ranks.items() if own == rank} for rank in RANKS}
    whole, parts = make_task(options.clients, max(RANKS)), {rank: make_task(options.clients, rank) for rank in RANKS}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"one batch": [], "grouped by rank": [], "one by one": []}
    found: dict[str, dict[int, Tensors]] = {}
    try:
        for repeat in range(options.repeats + 1):
            common.say(f"repeat {repeat} of {options.repeats}, the first of them untimed")
            every = {
                "one batch": [deliver(whole, ranks, options.steps, True)],
                "grouped by rank": [deliver(parts[rank], own, options.steps, True) for rank, own in groups.items()],
                "one by one": [deliver(parts[rank], own, options.steps, False) for rank, own in groups.items()],
            }
            for name, runs in every.items():
                found[name] = {client: weights for _, own in runs for client, weights in own.items()}
                if repeat:
                    times[name].append(sum(taken for taken, _ in runs))
    finally:
        torch.set_num_threads(before)
    medians = {name: statistics.median(values) for name, values in times.items()}
    difference = max(apart(found["one batch"], found[name]) for name in ("grouped by rank", "one by one"))
    title = f"{options.clients} clients of {len(RANKS)} ranks, {options.steps} steps: one batch faster than "
    goals = [
        common.goal(title + name, FASTER, medians[name] / medians["one batch"], "x", at_least=True)
        for name in ("grouped by rank", "one by one")
    ]
    return {
        "clients": options.clients,
        "steps": options.steps,
        "round_s": medians,
        "difference": difference,
        "valid": difference <= TOLERANCE,
        "goals": goals,
    }


def show(report: Row, console: Console) -> None:
    """Print the table."""
    common.show_table(
        console, "Local steps of clients of unequal rank, median",
        ("clients", "steps", *report["round_s"], "adapters differ by"),
        [[str(report["clients"]), str(report["steps"]), *(seconds(value) for value in report["round_s"].values()),
          f"{report['difference']:.1e}"]],
    )  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--clients", type=int, default=32, help="clients of the timings")
    parser.add_argument("--steps", type=int, default=10, help="mini-batches of each client")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of every run")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("unequal_ranks", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
