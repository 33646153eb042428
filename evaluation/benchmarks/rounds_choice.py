"""Time rounds one after another and in batches of several sizes: ``python -m edgeopt.evaluation.benchmarks.rounds_choice``.

What the rule of `edgeopt.training.runners.choice` is fitted to, over networks of several kinds and sizes. CPU seconds of a
client's round of two mini-batches on one thread, as a multiple of those one after another, for batches of some sizes; and what
the rule chooses, as a multiple of the best. All ways of a network run in turn in one process.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from edgeopt.data.partition import iid
from edgeopt.evaluation.benchmarks import common, rounds_work
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.schedule import RoundPlan
from edgeopt.training import ArrayData, FedAvg, LocalRunner, Sgd, Task

CLIENTS, STEPS = 48, 2
CHUNKS = (1, 2, 4, 8, 16, 48)
REGRET = 1.25  # how much more than the best the rule may take


def narrow(width: int, size: int, fully: int) -> Callable[[], nn.Sequential]:
    """Return a network of two convolutions and two linear layers."""
    return lambda: nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * (size // 4) ** 2, fully), nn.ReLU(), nn.Linear(fully, 10),
    )  # fmt: skip


IMAGE, SMALL, TINY = (3, 32, 32), (3, 16, 16), (1, 8, 8)
NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], int]] = {
    "mlp 64-32, batch 8": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), TINY, 8),
    "mlp 64-256-256, batch 16": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)),
        TINY, 16,
    ),
    "mlp 3072-512, batch 16": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 512), nn.ReLU(), nn.Linear(512, 10)), IMAGE, 16),
    "digits, batch 4": (rounds_work.digits, TINY, 4),
    "digits, batch 13": (rounds_work.digits, TINY, 13),
    "digits, batch 64": (rounds_work.digits, TINY, 64),
    "cnn 8, 16 x 16, batch 8": (narrow(8, 16, 64), SMALL, 8),
    "cnn 16, 16 x 16, batch 16": (narrow(16, 16, 64), SMALL, 16),
    "cnn 8, 32 x 32, batch 10": (narrow(8, 32, 64), IMAGE, 10),
    "cnn 32, 32 x 32, batch 4": (narrow(32, 32, 128), IMAGE, 4),
    "cifar, batch 2": (rounds_work.cifar, IMAGE, 2),
    "cifar, batch 10": (rounds_work.cifar, IMAGE, 10),
    "text, batch 1": (rounds_work.text, (32,), 1),
    "text, batch 8": (rounds_work.text, (32,), 8),
    "text, batch 32": (rounds_work.text, (32,), 32),
}  # fmt: skip


def make_task(name: str) -> tuple[Task, int]:
    """Return a task of random samples, and the size of a mini-batch."""
    make, shape, batch_size = NETWORKS[name]
    rng, count, is_text = np.random.default_rng(0), CLIENTS * STEPS * batch_size, len(shape) == 1
    inputs = rng.integers(0, 64, (count, *shape)) if is_text else rng.standard_normal((count, *shape), np.float32)
    targets = rng.integers(0, 64, (count, *shape)) if is_text else rng.integers(0, 10, count)
    data = ArrayData(torch.from_numpy(inputs), torch.from_numpy(targets), 64 if is_text else 10, "made up")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    return Task(
        model=model, train=data, test=data.take(np.arange(2)), partition=iid(count, CLIENTS, seed=0)
    ), batch_size


def network_row(name: str, repeats: int) -> Row:
    """Return the CPU seconds of a client's round, by clients in a batch, and what is chosen."""
    task, batch_size = make_task(name)
    algorithm = FedAvg(Sgd(lr=0.01))
    whom = np.arange(CLIENTS, dtype=np.int32)
    plan = RoundPlan(client=whom, batch_size=np.full_like(whom, batch_size), local_steps=np.full_like(whom, STEPS))
    ways = {chunk: LocalRunner(batched=chunk > 1, chunk=chunk) for chunk in CHUNKS}
    chosen = LocalRunner()
    taken: dict[int, list[float]] = {chunk: [] for chunk in CHUNKS}

    def deliver(runner: LocalRunner) -> None:
        phase = next(algorithm.round(task, algorithm.start(task), plan, 0))
        runner.deliver(algorithm, task, plan, phase.messages, phase.take)

    deliver(chosen)
    for repeat in range(repeats + 1):
        for chunk, runner in ways.items():
            start = time.process_time()
            deliver(runner)
            if repeat:
                taken[chunk].append((time.process_time() - start) / CLIENTS)
    found = {chunk: statistics.median(values) for chunk, values in taken.items()}
    way = chosen.ways[0].removeprefix("train: ").removesuffix(" at once")
    size = 1 if way == "one after another" else int(way)
    nearest = min(CHUNKS, key=lambda chunk: abs(np.log(chunk / size)))
    weights = sum(value.nbytes for value in task.initial_weights().values())
    return {
        "network": name, "cpu_s": {str(chunk): value for chunk, value in found.items()}, "chosen": size,
        "flops": task.flops(batch_size), "layers": len(task.parameters), "weights_bytes": weights,
        "regret": found[nearest] / min(found.values()),
    }  # fmt: skip


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for name in list(NETWORKS)[:2] if options.quick else NETWORKS:
            common.say(name)
            rows.append(network_row(name, 1 if options.quick else options.repeats))
            common.say(f"    {rows[-1]['cpu_s']}")
    finally:
        torch.set_num_threads(before)
    worst = max(row["regret"] for row in rows)
    goals = [common.goal("CPU seconds of the choice, of the best of all ways", REGRET, worst, "x", note="worst")]
    return {"rows": rows, "valid": True, "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the table."""
    lines: list[list[Any]] = []
    for row in report["rows"]:
        alone = row["cpu_s"]["1"]
        shares = [f"{row['cpu_s'][str(chunk)] / alone:.2f}" for chunk in CHUNKS[1:]]
        lines.append([
            row["network"], f"{row['flops']:.2g}", f"{row['weights_bytes'] / 4:.2g}", seconds(alone), *shares,
            str(row["chosen"]), f"{row['regret']:.2f}",
        ])  # fmt: skip
    columns = (
        "network",
        "FLOPs of a step",
        "weights",
        "one after another",
        *map(str, CHUNKS[1:]),
        "chosen",
        "of the best",
    )
    common.show_table(console, "CPU seconds of a client's round; in batches, as a multiple", columns, lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=5, help="repeats of every run")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    return common.script("rounds_choice", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
