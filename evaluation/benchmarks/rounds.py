"""Time rounds of FedAvg, small and large, beside a plain loop and other simulators.

``python -m edgeopt.evaluation.benchmarks.rounds --pfl-python PYTHON --flower-python PYTHON``

Every way runs each case in a process of its own, with the same initial weights and the same mini-batches, and must end with
the same weights, up to rounding, or a few times as much as the plain loop is from its own run in double precision where that
is more. Where a maximum falls the other way, weights move by more: the benchmark then says that the result is not valid.
Seconds and CPU seconds are the medians of rounds, memory is the peak of the whole process. Ours includes drawing the mini-batches, the ledger, virtual time and feedback; the others are handed their mini-batches. ``pfl`` (Apple's
simulator) and Flower need an interpreter that has them, see `edgeopt.evaluation.benchmarks.rounds_work` and
`edgeopt.evaluation.benchmarks.flower_simulation`; Flower's simulation runs the digits alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.benchmarks import common, rounds_work
from edgeopt.evaluation.benchmarks.common import Row, seconds
from edgeopt.evaluation.benchmarks.federated_rounds import accounting_clock, make_timing
from edgeopt.rng import stream
from edgeopt.schedule import Feedback, RoundPlan
from edgeopt.training import ArrayData, FedAvg, LocalRunner, Partition, Sgd, Task, train

TOLERANCE = 1e-4  # of weights of size one, in float32
TIMES = 3  # as far as the plain loop is from its run in double precision, where that is more


class Case(NamedTuple):
    """What is trained: who has how many samples, how many clients train in a round, on mini-batches of which size."""

    model: str
    clients: int
    sizes: tuple[int, int]
    cohort: int
    batch_size: int
    rounds: int
    learning_rate: float = 0.05


CASES = {
    "digits": Case("digits", 100, (13, 13), 100, 13, 40),
    "cifar": Case("cifar", 400, (50, 50), 50, 10, 5),
    "ragged": Case("cifar", 400, (20, 50), 50, 10, 5),
    "text": Case("text", 200, (16, 16), 40, 8, 12),
}
GOALS = {"digits": 0.25, "cifar": 0.8, "ragged": 0.8}  # CPU seconds, as a share of pfl's
OURS: dict[str, Row] = {
    "chosen": {}, "one by one": {"batched": False}, "batched": {"batched": True}, "2 workers": {"workers": 2},
}  # fmt: skip


def make_data(case: Case, seed: int = 0) -> Row:
    """Return the arrays of a case, as `edgeopt.evaluation.benchmarks.rounds_work` describes them."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(case.sizes[0], case.sizes[1] + 1, case.clients)
    count, inputs = int(sizes.sum()), {"digits": (1, 8, 8), "cifar": (3, 32, 32), "text": (32,)}[case.model]
    own = np.split(np.arange(count), np.cumsum(sizes)[:-1])
    cohorts = np.array([np.sort(rng.permutation(case.clients)[: case.cohort]) for _ in range(case.rounds)])
    rows = np.full((case.rounds, case.cohort, case.sizes[1]), -1)
    for number, cohort in enumerate(cohorts):
        for entry, client in enumerate(cohort.tolist()):
            order = stream(seed, "batches", client, number).permutation(own[client])
            rows[number, entry, : order.size] = order
    is_text = case.model == "text"
    shape = (count, *inputs)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = [value.numpy() for value in rounds_work.MODELS[case.model]().state_dict().values()]
    return {
        "model": np.array(case.model), "learning_rate": case.learning_rate, "batch_size": case.batch_size,
        "inputs": rng.integers(0, 64, shape) if is_text else rng.standard_normal(shape, np.float32),
        "targets": rng.integers(0, 64, shape) if is_text else rng.integers(0, 10, count),
        "cohorts": cohorts, "rows": rows, "sizes": sizes, **{f"weight_{i}": value for i, value in enumerate(weights)},
    }  # fmt: skip


class Cohorts:
    """A planner that has the clients of each round make one pass over their samples."""

    def __init__(self, cohorts: Any, batch_size: int) -> None:
        self.cohorts, self.batch_size = cohorts, batch_size

    def plan(self, number: int, feedback: Feedback | None) -> RoundPlan:
        """Return the plan of a round."""
        whom = np.asarray(self.cohorts[number], np.int32)
        size, epochs = np.full_like(whom, self.batch_size), np.ones_like(whom)
        return RoundPlan(client=whom, batch_size=size, local_epochs=epochs)


def ours(data: Row, threads: int, options: Row) -> tuple[Row, list[torch.Tensor]]:
    """Train a case here; return what it took, and the final weights."""
    torch.set_num_threads(threads)
    shares = tuple(np.split(np.arange(len(data["inputs"])), np.cumsum(data["sizes"])[:-1]))
    train_data = ArrayData(data["inputs"], data["targets"], 64 if str(data["model"]) == "text" else 10, "made up")
    task = Task(
        model=rounds_work.make_model(data), train=train_data, test=train_data.take(np.arange(2)),
        partition=Partition(shares, num_samples=len(train_data)),
    )  # fmt: skip
    planner, rounds = Cohorts(data["cohorts"], int(data["batch_size"])), len(data["cohorts"])
    clock = rounds_work.Clock()
    with accounting_clock() as accounting:
        history = train(
            task, FedAvg(optimizer=Sgd(lr=float(data["learning_rate"]))), planner, make_timing(task.num_clients),
            rounds=rounds, evaluate_every=rounds, runner=LocalRunner(**options), on_round=lambda record: clock.tick(),
        )  # fmt: skip
    found = clock.report()
    share = sum(accounting) / rounds / found["seconds"]
    return found | {"accounting": share, "ways": history.ways}, list(history.models[0].values())


def run_one(way: str, path: Path, threads: int, options: argparse.Namespace, weights: Path) -> Row | None:
    """Run one way in a process of its own; None where its interpreter is not there."""
    if way in OURS:
        module = __spec__.name if __spec__ else __name__
        command = [sys.executable, "-m", module, "--worker", way, str(path), str(threads), str(weights)]
    else:
        if (python := options.pfl_python if way == "pfl" else sys.executable) is None:
            return None
        script = str(Path(rounds_work.__file__))
        command = [python, script, "--way", way, "--data", str(path), "--threads", str(threads)]
        command += ["--weights", str(weights)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise EdgeOptError(f"{way}: {done.stderr.strip()[-600:]}")
    report: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def worker(way: str, path: str, threads: int, weights: str) -> int:
    """Train a case here, print what it took."""
    report, found = ours(rounds_work.load(path), threads, OURS[way])
    arrays: Any = {f"weight_{i}": value.numpy() for i, value in enumerate(found)}
    np.savez(weights, **arrays)
    print(json.dumps(report))
    return 0


def case_row(name: str, options: argparse.Namespace, folder: Path) -> Row:
    """Return what every way took for a case, the ways in turn, and how far their weights are from the plain loop's."""
    case = CASES[name]
    if options.quick:
        case = case._replace(clients=6, cohort=3, rounds=3)
    path = folder / f"{name}.npz"
    np.savez(path, **make_data(case))
    ways = ["plain", "pfl", *OURS]
    reports: dict[str, list[Row]] = {}
    apart: dict[str, float] = {}
    expected: list[Any] = []
    for repeat in range(options.repeats):
        for way in ways:
            common.say(f"{name}: {way}, repeat {repeat + 1} of {options.repeats}")
            weights = folder / "found.npz"
            if (report := run_one(way, path, 1, options, weights)) is None:
                continue
            reports.setdefault(way, []).append(report)
            with np.load(weights, allow_pickle=False) as file:
                found = [file[f"weight_{i}"] for i in range(len(file.files))]
            expected = found if way == "plain" else expected
            apart[way] = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    rows = {
        way: {key: statistics.median(one[key] for one in some) for key in ("seconds", "cpu_seconds", "peak_gib")}
        | {key: some[0][key] for key in ("ways", "accounting") if key in some[0]}
        for way, some in reports.items()
    }
    common.say(f"{name}: plain in double precision")
    run_one("exact", path, 1, options, folder / "exact.npz")
    with np.load(folder / "exact.npz", allow_pickle=False) as file:
        single = max(float(np.abs(a - file[f"weight_{i}"]).max()) for i, a in enumerate(expected))
    valid = max(apart.values()) <= max(TOLERANCE, TIMES * single)
    return {"case": name, "rows": rows, "apart": apart, "single": single, "valid": valid}


def flower_row(options: argparse.Namespace, folder: Path) -> Row | None:
    """Return what Flower's simulation reports of the digits."""
    if options.flower_python is None:
        return None
    common.say("Flower's simulation")
    case = CASES["digits"]._replace(rounds=6)
    data = make_data(case)
    tests = {"test_inputs": data["inputs"][:10], "test_targets": data["targets"][:10]}
    batches = {"batches": data["rows"][:, :, None], "client_sizes": data["sizes"]}
    given, found = folder / "given.npz", folder / "flower.npz"
    np.savez(given, **data, **tests, **batches)
    script = str(Path(__file__).with_name("flower_simulation.py"))
    command = [options.flower_python, script, "--data", str(given), "--weights", str(found), "--threads", "1"]
    command += ["--learning-rate", str(case.learning_rate), "--cpus", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeOptError(f"Flower's simulation: {done.stderr.strip()[-300:]}")
    report: Row = json.loads(done.stdout.strip().splitlines()[-1])
    _, expected = ours(rounds_work.load(str(given)), 1, {"batched": False})
    with np.load(found, allow_pickle=False) as file:
        apart = max(float(np.abs(file[f"weight_{i}"] - value.numpy()).max()) for i, value in enumerate(expected))
    return {"seconds": report["round_seconds"], "difference": apart, "settings": report["settings"]}


def measure(options: argparse.Namespace) -> Row:
    """Measure everything."""
    if options.quick:
        options.repeats = 1
    names = options.cases.split(",") if options.cases else list(CASES)
    with tempfile.TemporaryDirectory() as folder:
        flower = flower_row(options, Path(folder))  # first: it is what another interpreter may lack something for
        rows = [case_row(name, options, Path(folder)) for name in names]
    goals = []
    for row in rows:
        mine, peer = row["rows"]["chosen"], row["rows"].get("pfl")
        if peer is not None:
            share = mine["cpu_seconds"] / peer["cpu_seconds"]
            goals.append(common.goal(f"{row['case']}: CPU, of pfl's", GOALS.get(row["case"], 1.0), share, ""))
            memory = mine["peak_gib"] / peer["peak_gib"]
            goals.append(common.goal(f"{row['case']}: peak memory, of pfl's", 1.0, memory, ""))
            both = row["rows"]["2 workers"]["seconds"] / peer["seconds"]
            goals.append(common.goal(f"{row['case']}: seconds on two cores, of pfl's on one", 0.5, both, ""))
        goals.append(common.goal(f"{row['case']}: share of accounting", 0.01, mine["accounting"], ""))
        if row["case"] == "cifar":
            ratio = mine["seconds"] / row["rows"]["2 workers"]["seconds"]
            goals.append(common.goal("cifar: two workers faster than one", 1.7, ratio, "x", at_least=True))
    valid = all(row["valid"] for row in rows) and (flower is None or flower["difference"] <= TOLERANCE)
    return {"rows": rows, "flower": flower, "valid": valid, "goals": goals}


def show(report: Row, console: Console) -> None:
    """Print the tables."""
    lines = []
    for row in report["rows"]:
        peer = row["rows"].get("pfl")
        for way, found in row["rows"].items():
            share = "-" if peer is None else f"{found['cpu_seconds'] / peer['cpu_seconds']:.2f}"
            lines.append([
                row["case"], way, seconds(found["seconds"]), seconds(found["cpu_seconds"]), share,
                f"{found['peak_gib']:.2f} GiB", f"{row['apart'][way]:.1e}",
                f"{100 * found['accounting']:.2f} %" if "accounting" in found else "", ", ".join(found.get("ways", [])),
            ])  # fmt: skip
        open_ = f"{row['single']:.1e}"
        lines.append([row["case"], "plain in double precision", "", "", "", "", open_, "", ""])
    columns = (
        "case",
        "way",
        "seconds",
        "CPU seconds",
        "of pfl's",
        "peak",
        "weights differ by",
        "accounting",
        "clients",
    )
    common.show_table(console, "A round of FedAvg, one thread of torch per process or worker, median", columns, lines)
    if (flower := report["flower"]) is not None:
        console.print(
            f"Flower's simulation, digits: {seconds(flower['seconds'])} for a round on 2 cores; weights differ by "
            f"{flower['difference']:.1e}; flwr {flower['settings']['flwr']}"
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--cases", help=f"comma-separated, of {', '.join(CASES)} (default: all)")
    parser.add_argument("--pfl-python", help="interpreter with pfl and torch, to measure pfl too")
    parser.add_argument("--flower-python", help="interpreter with flwr[simulation], to measure Flower's simulation too")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of every run")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["--worker"]:  # a process of its own: its peak is nobody else's
        return worker(given[1], given[2], int(given[3]), given[4])
    return common.script("rounds", __doc__, measure, show, add_options, arguments)


if __name__ == "__main__":
    sys.exit(main())
