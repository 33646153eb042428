"""Time rounds of FedAvg of many clients: ``python -m edgeopt.evaluation.benchmarks.federated_rounds``.

A small CNN on digits, every client in every round. Beside it, the loop that everyone writes: for each client a copy of
the module, `torch.optim.SGD`, an ordinary backward pass; then the average. Both take the same mini-batches from the same
initial weights, and must end with the same weights. Ours includes drawing the mini-batches, the ledger, virtual time and
feedback; the loop is handed its mini-batches. Both run in turn, in one process for each number of threads.

With ``--flower-python`` the same training runs on Flower's simulation too, by an interpreter that has
``flwr[simulation]``; see `edgeopt.evaluation.benchmarks.flower_simulation`.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console

from edgeopt.data import load_data
from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.benchmarks import common
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.models import small_cnn
from edgeopt.schedule import RoundPlan, StaticPlanner
from edgeopt.training import Batches, EdgeTiming, FedAvg, Ledger, LocalRunner, Partition, Sgd, Task, train
from edgeopt.training.messages import Tensors

LEARNING_RATE = 0.1
BATCH_SIZE = 13
TOLERANCE = 1e-4  # of weights of size one, after fifty rounds in float32
FASTER, FASTER_THAN_FLOWER, SHARE, MEMORY_GIB = 3.0, 10.0, 0.03, 4.0


def make_task(num_clients: int, samples_each: int) -> Task:
    """Return digits dealt out in equal shares; they are used again where there are not enough."""
    data = load_data("digits")
    rows = np.resize(np.random.default_rng(0).permutation(len(data.train)), num_clients * samples_each)
    inputs = type(data.train)(data.train.inputs[rows], data.train.targets[rows], data.train.num_classes, "digits")
    shares = tuple(np.split(np.arange(rows.size), num_clients))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_cnn()
    return Task(model=model, train=inputs, partition=Partition(shares, num_samples=rows.size), test=data.test)


def make_timing(num_clients: int) -> EdgeTiming:
    """Return equal devices: what they are does not change the cost of the accounting."""
    fast = np.full(num_clients, 1e9)
    return EdgeTiming(
        device_flops=fast, uplink_bps=fast, downlink_bps=fast, fed_uplink_bps=fast, fed_downlink_bps=fast,
        server_flops=1e12, server_fed_uplink_bps=1e9, server_fed_downlink_bps=1e9,
    )  # fmt: skip


def ours(task: Task, rounds: int, local_steps: int, batched: bool) -> tuple[float, Tensors]:
    """Return the seconds of a run of `train`, and the final weights."""
    whom = np.arange(task.num_clients, dtype=np.int32)
    plan = RoundPlan(
        client=whom, batch_size=np.full_like(whom, BATCH_SIZE), local_steps=np.full_like(whom, local_steps)
    )
    timing = make_timing(task.num_clients)
    start = time.perf_counter()
    history = train(
        task, FedAvg(optimizer=Sgd(lr=LEARNING_RATE)), StaticPlanner(plan), timing,
        rounds=rounds, evaluate_every=rounds, runner=LocalRunner(batched=batched),
    )  # fmt: skip
    return time.perf_counter() - start, history.models[0]


def plain_loop(task: Task, rounds: int, local_steps: int) -> tuple[float, Tensors]:
    """Return the seconds of the loop that everyone writes, and the final weights."""
    drawn = [
        [task.batch(client, Batches(number, 0, local_steps, BATCH_SIZE)) for client in range(task.num_clients)]
        for number in range(rounds)
    ]
    share = task.partition.sizes / task.partition.sizes.sum()
    model = copy.deepcopy(task.model).train()
    start = time.perf_counter()
    for batches in drawn:
        average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        for client, batch in enumerate(batches):
            local = copy.deepcopy(model)
            optimizer = torch.optim.SGD(local.parameters(), lr=LEARNING_RATE)
            for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(local(inputs), targets).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            for name, value in local.state_dict().items():
                average[name] += share[client] * value
        model.load_state_dict(average)
    task.evaluate(model.state_dict())
    return time.perf_counter() - start, {name: value.detach() for name, value in model.state_dict().items()}


@contextmanager
def accounting_clock() -> Iterator[list[float]]:
    """Collect the seconds spent in ledger, virtual time and rates, by wrapping their methods for a while."""
    spent: list[float] = []
    owners = [(Ledger, "charge"), (EdgeTiming, "phase"), (EdgeTiming, "rates"), (EdgeTiming, "lost")]
    before = [(owner, name, getattr(owner, name)) for owner, name in owners]

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - start)

        return call

    try:
        for owner, name, method in before:
            setattr(owner, name, timed(method))
        yield spent
    finally:
        for owner, name, method in before:
            setattr(owner, name, method)


def threads_row(threads: int, options: argparse.Namespace) -> Row:
    """Return one row: the ways in turn, with so many threads."""
    torch.set_num_threads(threads)
    task = make_task(options.clients, BATCH_SIZE * options.local_steps)
    given = (task, options.rounds, options.local_steps)
    ours(task, 1, options.local_steps, True)
    plain_loop(task, 1, options.local_steps)
    times: dict[str, list[float]] = {"batched": [], "one by one": [], "plain loop": []}
    spent = 0.0
    for repeat in range(options.repeats):
        common.say(f"{threads} threads: repeat {repeat + 1} of {options.repeats}")
        taken, weights = ours(*given, True)
        times["batched"].append(taken)
        taken, singly = ours(*given, False)
        times["one by one"].append(taken)
        taken, expected = plain_loop(*given)
        times["plain loop"].append(taken)
    with accounting_clock() as parts:
        taken, _ = ours(*given, True)
        spent = sum(parts) / taken
    apart = [max(float((model[n] - value).abs().max()) for n, value in expected.items()) for model in (weights, singly)]
    scores = [task.evaluate(model).accuracy for model in (weights, singly, expected)]
    rows = {name: statistics.median(values) / options.rounds for name, values in times.items()}
    return {
        "threads": threads,
        "clients": options.clients,
        "rounds": options.rounds,
        "round_s": rows,
        "ratio": rows["plain loop"] / rows["batched"],
        "accounting": spent,
        "difference": max(apart),
        "accuracy": dict(zip(times, scores, strict=True)),
        "valid": max(apart) <= TOLERANCE,
    }


def flower(options: argparse.Namespace, threads: int) -> Row:
    """Return what Flower's simulation reports of the same training, and how far its weights are from the loop's."""
    task = make_task(options.clients, BATCH_SIZE * options.local_steps)
    _, expected = plain_loop(task, options.rounds, options.local_steps)
    drawn = [
        [task.rows(c, Batches(r, 0, options.local_steps, BATCH_SIZE)) for c in range(options.clients)]
        for r in range(options.rounds)
    ]
    arrays: dict[str, Any] = {
        "inputs": task.train.inputs, "targets": task.train.targets, "batches": np.array(drawn),
        "client_sizes": task.partition.sizes, "test_inputs": task.test.inputs, "test_targets": task.test.targets,
    }  # fmt: skip
    arrays |= {f"weight_{i}": value for i, value in enumerate(task.initial_weights().values())}
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "given.npz"), Path(folder, "found.npz")
        plain: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
        np.savez(given, **plain)
        script = str(Path(__file__).with_name("flower_simulation.py"))
        command = [options.flower_python, script, "--data", str(given), "--weights", str(found)]
        command += ["--learning-rate", str(LEARNING_RATE), "--threads", "1", "--cpus", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EdgeOptError(f"Flower's simulation: {done.stderr.strip()[-300:]}")
        report: Row = json.loads(done.stdout.strip().splitlines()[-1])
        with np.load(found, allow_pickle=False) as weights:
            apart = [np.abs(weights[f"weight_{i}"] - value.numpy()).max() for i, value in enumerate(expected.values())]
    return report | {"difference": float(max(apart))}


def peak_gib(num_clients: int) -> float:
    """Return the peak memory of a new process that trains two rounds, in GiB."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--memory-of", str(num_clients)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeOptError(f"memory of {num_clients} clients: {done.stderr.strip()[-300:]}")
    return float(done.stdout) / 2**20


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    if options.quick:
        options.clients, options.rounds, options.repeats = 10, 2, 1
    before = torch.get_num_threads()
    try:
        rows = [threads_row(threads, options) for threads in (1, 2)]
    finally:
        torch.set_num_threads(before)
    peer = None
    if options.flower_python is not None:
        common.say("Flower's simulation")
        peer = flower(options, threads=2)
    many = 20 if options.quick else 1000
    common.say(f"memory of {many:,} clients")
    memory = peak_gib(many)
    goals = []
    for row in rows:
        title = f"{row['clients']} clients, {row['rounds']} rounds, {row['threads']} threads"
        goals.append(common.goal(f"{title}: faster than a plain loop", FASTER, row["ratio"], "x", at_least=True))
        goals.append(common.goal(f"{title}: share of accounting", SHARE, row["accounting"], ""))
    goals.append(common.goal(f"{many:,} clients: peak memory", MEMORY_GIB, memory, "GiB"))
    valid = all(row["valid"] for row in rows)
    if peer is not None:
        for row in rows:
            ratio = peer["seconds"] / options.rounds / row["round_s"]["batched"]
            title = f"{row['clients']} clients, {row['threads']} threads: faster than Flower's simulation on 2 cores"
            goals.append(common.goal(title, FASTER_THAN_FLOWER, ratio, "x", at_least=True))
        valid = valid and peer["difference"] <= TOLERANCE
    return {"rows": rows, "flower": peer, "memory_gib": memory, "valid": valid, "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    common.show_table(
        console, "A round of FedAvg, median",
        ("threads", "clients", "batched", "one by one", "plain loop", "ratio", "accounting", "weights differ by", "accuracy"),
        [
            [str(row["threads"]), str(row["clients"]), *(seconds(value) for value in row["round_s"].values()),
             f"{row['ratio']:.3g}x", f"{100 * row['accounting']:.2f} %", f"{row['difference']:.1e}",
             " ".join(f"{value:.3f}" for value in row["accuracy"].values())]
            for row in report["rows"]
        ],
    )  # fmt: skip
    if (peer := report["flower"]) is not None:
        console.print(
            f"Flower's simulation: {seconds(peer['round_seconds'])} for a round (median), rounds alone "
            f"{seconds(peer['seconds'])}, whole {seconds(peer['whole_seconds'])}; accuracy {peer['accuracy']:.3f}; "
            f"weights differ by {peer['difference']:.1e}; {peer['settings']['actors']} actors, flwr "
            f"{peer['settings']['flwr']}"
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--clients", type=int, default=100, help="clients of the timings")
    parser.add_argument("--rounds", type=int, default=50, help="rounds of each run")
    parser.add_argument("--local-steps", type=int, default=1, help="mini-batches of each client in a round")
    parser.add_argument("--flower-python", help="interpreter with flwr[simulation], to measure Flower's simulation too")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of every run")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["--memory-of"]:  # a process of its own: its peak is nobody else's
        ours(make_task(int(given[1]), BATCH_SIZE), 2, 1, True)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return 0
    return common.script("federated_rounds", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
