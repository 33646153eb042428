"""The peer: FedAvg of a small network on Flower's simulation (Ray), timed; one line of JSON on standard output.

Run by an interpreter that has ``flwr[simulation]`` and torch; edgeopt is not needed there, and not imported::

    python evaluation/benchmarks/flower_simulation.py --data federated.npz --learning-rate 0.1

``--data`` is an ``.npz`` without pickles, so that another program can train the very same thing:

=============================  =======  ==========================================================================
``inputs``                     float32  [samples, 1, 8, 8], of all clients
``targets``                    int64    [samples], classes 0 to 9
``batches``                    int64    [rounds, clients, steps, batch size], rows of ``inputs``: the mini-batches of
                                        each client in each round, in order
``client_sizes``               int64    [clients], samples of each client: its weight in the average
``test_inputs``                float32  [test samples, 1, 8, 8]
``test_targets``               int64    [test samples]
``weight_0`` to ``weight_5``   float32  initial weights in the order of the model's ``state_dict``
=============================  =======  ==========================================================================

The model is ``Conv2d(1, 16, 3, padding=1) ReLU MaxPool2d(2) Conv2d(16, 32, 3, padding=1) ReLU MaxPool2d(2) Flatten
Linear(128, 10)``. Every client trains in every round, by plain SGD on the mean cross entropy of each mini-batch.

Seconds are those of the rounds, taken inside the ServerApp around the strategy: Ray, its actors, imports, model and data
are there before the clock starts, and the evaluation comes after it ends.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

_DATA = "EDGEOPT_FLOWER_DATA"  # file that the actors read; Ray hands the environment on


def main(arguments: list[str] | None = None) -> int:
    """Run the simulation and print what it took."""
    parser = argparse.ArgumentParser(description="FedAvg on Flower's simulation", allow_abbrev=False)
    parser.add_argument("--data", required=True, help="the .npz described above")
    parser.add_argument("--rounds", type=int, help="rounds to play (default: all that the file has)")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="of the clients' SGD (default: 0.1)")
    parser.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)), help="for Ray (default: all here)")
    parser.add_argument("--client-cpus", type=float, default=1.0, help="per client: cpus / this = actors (default: 1)")
    parser.add_argument("--pull-interval", type=float, default=0.1, help="of the ServerApp, seconds (default: 0.1)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads per process (default: 1)")
    parser.add_argument("--weights", help="write the final weights to this .npz")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fl-", ignore_cleanup_errors=True) as folder, _output_to_errors():
        os.environ |= {
            "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": folder, "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": folder, "TMPDIR": folder, "OMP_NUM_THREADS": str(options.threads),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "0", _DATA: os.path.abspath(options.data),
        }  # fmt: skip
        report = simulate(options)
    print(json.dumps(report))
    return 0


def simulate(options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds, accuracy and settings of one simulation."""
    import flwr
    import ray
    import torch
    from flwr.simulation import run_simulation

    torch.set_num_threads(options.threads)
    data = load(os.environ[_DATA])
    rounds = len(data["batches"]) if options.rounds is None else options.rounds
    clients, steps, batch_size = data["batches"].shape[1:]
    if not 1 <= rounds <= len(data["batches"]):
        raise SystemExit(f"--rounds {rounds}: expected 1 to {len(data['batches'])}, the rounds of {options.data}")
    found: dict[str, Any] = {}
    started = time.perf_counter()
    run_simulation(
        server_app(rounds, clients, options, found),
        client_app(),
        num_supernodes=clients,
        backend_config={
            "init_args": {"num_cpus": options.cpus, "include_dashboard": False, "log_to_driver": False},
            "client_resources": {"num_cpus": options.client_cpus, "num_gpus": 0.0},
        },
    )
    whole = time.perf_counter() - started
    weights = found.pop("weights", None)
    if weights is None:
        raise SystemExit("the simulation ended without a result; see its messages above")
    if options.weights:
        np.savez(options.weights, **{f"weight_{i}": value for i, value in enumerate(weights)})
    return found | {
        "whole_seconds": whole,
        "accuracy": accuracy(weights, data),
        "settings": {
            "rounds": rounds, "clients": clients, "steps": steps, "batch_size": batch_size,
            "learning_rate": options.learning_rate, "cpus": options.cpus, "client_cpus": options.client_cpus,
            "actors": int(options.cpus / options.client_cpus), "pull_interval": options.pull_interval,
            "threads": options.threads, "flwr": flwr.__version__, "ray": ray.__version__, "torch": torch.__version__,
        },
    }  # fmt: skip


def server_app(rounds: int, clients: int, options: argparse.Namespace, found: dict[str, Any]) -> "ServerApp":
    """Return the ServerApp: FedAvg as Flower has it; it leaves seconds and weights in `found`."""
    from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    app = ServerApp()

    def serve(grid: "Grid", context: "Context") -> None:
        setattr(grid, "pull_interval", options.pull_interval)  # noqa: B010  (of the simulation's grid, not of every grid)
        while len(nodes := list(grid.get_node_ids())) < clients:
            time.sleep(0.05)
        ready = [Message(RecordDict({"config": ConfigRecord({"ready": True})}), node, "query") for node in nodes]
        answers = list(grid.send_and_receive(ready))  # actors are there, with torch, model and data
        assert not any(answer.has_error() for answer in answers)
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        model = make_model()
        start = ArrayRecord(dict(zip(model.state_dict(), initial_weights(load(os.environ[_DATA])), strict=True)))
        config = ConfigRecord({"learning-rate": options.learning_rate})
        ends: list[float] = [time.perf_counter()]
        aggregate = strategy.aggregate_train

        def timed(number: int, replies: Any) -> Any:
            result = aggregate(number, replies)
            ends.append(time.perf_counter())
            return result

        setattr(strategy, "aggregate_train", timed)  # noqa: B010
        result = strategy.start(grid, start, num_rounds=rounds, train_config=config)
        found["seconds"] = ends[-1] - ends[0]
        found["round_seconds"] = float(np.median(np.diff(ends)))
        found["weights"] = [value.numpy() for value in result.arrays.to_torch_state_dict().values()]

    app.main()(serve)
    return app


def client_app() -> "ClientApp":
    """Return the ClientApp: SGD on the mini-batches of the file."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def ready(message: "Message", context: "Context") -> "Message":
        prepared(os.environ[_DATA])
        return Message(RecordDict(), reply_to=message)

    def train(message: "Message", context: "Context") -> "Message":
        import torch

        model, data = prepared(os.environ[_DATA])
        config, client = message.content["config"], int(context.node_config["partition-id"])
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=config["learning-rate"])
        losses = []
        for rows in data["batches"][config["server-round"] - 1, client]:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(data["inputs"][rows]), data["targets"][rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach())
        metrics = {"num-examples": int(data["client_sizes"][client]), "loss": float(torch.stack(losses).mean())}
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    app.query()(ready)
    app.train()(train)
    return app


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the arrays of the file; the samples as tensors."""
    import torch

    with np.load(path, allow_pickle=False) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files}
    return arrays | {
        name: torch.from_numpy(arrays[name]) for name in ("inputs", "targets", "batches", "test_inputs", "test_targets")
    }


def make_model() -> Any:
    """Return the network."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def initial_weights(data: dict[str, Any]) -> list[Any]:
    """Return the weights that training starts from, in the order of the model's ``state_dict``."""
    import torch

    return [torch.from_numpy(data[f"weight_{i}"]) for i in range(6)]


@functools.cache
def prepared(path: str) -> tuple[Any, dict[str, Any]]:
    """Return network and data, once per process."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return make_model(), load(path)


def accuracy(weights: list[np.ndarray], data: dict[str, Any]) -> float:
    """Return the share of test samples that are classified right."""
    import torch

    model = make_model()
    model.load_state_dict(dict(zip(model.state_dict(), map(torch.from_numpy, weights), strict=True)))
    with torch.inference_mode():
        right = model(data["test_inputs"]).argmax(dim=1) == data["test_targets"]
    return float(right.float().mean())


@contextlib.contextmanager
def _output_to_errors() -> Iterator[None]:
    """Send what Flower and Ray print on standard output to standard error: only the result belongs there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


if __name__ == "__main__":
    # Under its own name the module is found by the actors, and what it caches there outlives a message.
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(importlib.import_module("flower_simulation").main())
