"""The peers of the benchmark `rounds`: FedAvg as a plain loop and on ``pfl``, timed; one line of JSON on standard output.

Run by an interpreter that has torch, and ``pfl`` for that way; edgeopt is not needed there, and not imported::

    python evaluation/benchmarks/rounds_work.py --way pfl --data case.npz --weights found.npz

``--data`` is an ``.npz`` without pickles, so that every way trains the very same thing:

=====================  =======  ==================================================================================
``model``              text     name of a model in `MODELS`
``learning_rate``      float    of the clients' plain SGD, on the mean cross entropy of each mini-batch
``batch_size``         int      samples of a mini-batch; the last one of a client may be smaller
``inputs``             any      [samples, ...]
``targets``            int64    [samples], or [samples, context] for text
``cohorts``            int64    [rounds, cohort]: the clients of each round
``rows``               int64    [rounds, cohort, most]: the samples of each in the order of the round, then -1
``weight_0``, ...      float32  initial weights in the order of the model's ``state_dict``
=====================  =======  ==================================================================================

Every client of a round makes one pass over its samples, and counts by their number. Seconds are those of the rounds but
the first, taken from one end to the next: imports, model and data are there before.
"""

import argparse
import copy
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Causal self-attention with residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of x (B, T, C)."""
        parts = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        query, key, value = parts  # (B, H, T, D)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (B, H, T, T)
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value
        found: torch.Tensor = x + self.out(mixed.transpose(-2, -3).flatten(-2))
        return found


class FeedForward(nn.Module):
    """Two layers with residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) of x (B, T, C)."""
        found: torch.Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return found


def digits() -> nn.Sequential:
    """Return a network for images of 8 x 8, 6,090 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def cifar() -> nn.Sequential:
    """Return a network for images of 3 x 32 x 32, 1.6 million parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(12544, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def text() -> nn.Sequential:
    """Return a decoder of two blocks for 64 kinds of tokens, 0.11 million parameters."""
    blocks = [layer for _ in range(2) for layer in (Attention(64, 4), FeedForward(64))]
    return nn.Sequential(nn.Embedding(64, 64), *blocks, nn.LayerNorm(64), nn.Linear(64, 64))


MODELS: dict[str, Callable[[], nn.Sequential]] = {"digits": digits, "cifar": cifar, "text": text}


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of class scores [..., K] and classes [...]."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


class Clock:
    """Seconds and CPU seconds of rounds."""

    def __init__(self) -> None:
        self.ends = [(time.perf_counter(), time.process_time())]

    def tick(self) -> None:
        """Note the end of a round."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def report(self) -> dict[str, float]:
        """Return medians over the rounds but the first, and the peak memory of this process so far."""
        wall, cpu = (np.diff([end[i] for end in self.ends])[1:].tolist() for i in (0, 1))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu), "peak_gib": peak}


def load(path: str) -> dict[str, Any]:
    """Return the arrays of the file; the samples as tensors."""
    with np.load(path, allow_pickle=False) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files}
    return arrays | {name: torch.from_numpy(arrays[name]) for name in ("inputs", "targets")}


def make_model(data: dict[str, Any]) -> nn.Sequential:
    """Return the model with its initial weights."""
    model = MODELS[str(data["model"])]()
    weights = (torch.from_numpy(data[f"weight_{i}"]) for i in range(len(model.state_dict())))
    model.load_state_dict(dict(zip(model.state_dict(), weights, strict=True)))
    return model


def samples(data: dict[str, Any], number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the samples of the clients of a round, in the order of the round."""
    for rows in data["rows"][number]:
        own = torch.from_numpy(rows[rows >= 0])
        yield data["inputs"][own], data["targets"][own]


def plain(data: dict[str, Any], clock: Clock) -> nn.Module:
    """Train as everyone does: for each client a copy of the module, and an ordinary backward pass."""
    model, size, rate = make_model(data), int(data["batch_size"]), float(data["learning_rate"])
    for number in range(len(data["cohorts"])):
        average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        total = int((data["rows"][number] >= 0).sum())
        for inputs, targets in samples(data, number):
            local = copy.deepcopy(model)
            optimizer = torch.optim.SGD(local.parameters(), lr=rate)
            for some, classes in zip(torch.split(inputs, size), torch.split(targets, size), strict=True):
                optimizer.zero_grad()
                cross_entropy(local(some), classes).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            for name, value in local.state_dict().items():
                average[name] += len(inputs) / total * value
        model.load_state_dict(average)
        clock.tick()
    return model


def on_pfl(data: dict[str, Any], clock: Clock) -> nn.Module:
    """Train with ``pfl``, which evaluates in the first round alone."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = make_model(data)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.layers(x)
            return found

        def loss(self, inputs: torch.Tensor, targets: torch.Tensor, **_: Any) -> torch.Tensor:
            self.train()
            return cross_entropy(self(inputs), targets)

        def metrics(self, inputs: torch.Tensor, targets: torch.Tensor, **_: Any) -> Any:
            return {"samples": Weighted(len(inputs), 1)}  # of the first round only, which is not measured

    class Users:
        """The cohorts of the file."""

        round = 0

        def get_cohort(self, size: int) -> Iterator[tuple[Any, int]]:
            for client, pair in zip(data["cohorts"][self.round], samples(data, self.round), strict=True):
                yield Dataset(raw_data=list(pair), user_id=str(client)), 0
            self.round += 1

    class Ticking(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            clock.tick()
            return False, Metrics()

    rounds, cohort = data["cohorts"].shape
    model = Model()
    learner = PyTorchModel(model, torch.optim.SGD, torch.optim.SGD(model.parameters(), lr=1.0))
    users = Users()
    backend = SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByDatapoints()])
    parameters = NNAlgorithmParams(
        central_num_iterations=rounds, evaluation_frequency=10**6, train_cohort_size=cohort, val_cohort_size=None
    )
    FederatedAveraging().run(
        algorithm_params=parameters, backend=backend, model=learner,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=float(data["learning_rate"]), local_batch_size=int(data["batch_size"])
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None), callbacks=[Ticking()],
    )  # fmt: skip
    return model.layers


def main(arguments: list[str] | None = None) -> int:
    """Train, print what it took, write the weights."""
    parser = argparse.ArgumentParser(description="FedAvg as a plain loop or on pfl", allow_abbrev=False)
    parser.add_argument("--way", choices=("plain", "pfl"), required=True)
    parser.add_argument("--data", required=True, help="the .npz described above")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--weights", help="write the final weights to this .npz")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    data = load(options.data)
    clock = Clock()
    model = (plain if options.way == "plain" else on_pfl)(data, clock)
    report = clock.report()
    if options.weights:
        state: Any = {f"weight_{i}": value.numpy() for i, value in enumerate(model.state_dict().values())}
        np.savez(options.weights, **state)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
