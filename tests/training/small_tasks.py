"""Tasks, networks and plans that are small enough to be checked by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeopt import RoundPlan
from edgeopt.training import ArrayData, EdgeTiming, Partition, Task
from edgeopt.training.messages import Tensors

FEATURES, CLASSES = 4, 3


def small_model(seed: int = 0) -> nn.Sequential:
    """Return three layers, 4 -> 5 -> 3."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def noisy_model(seed: int = 0) -> nn.Sequential:
    """Return layers with buffers and with randomness of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, CLASSES)
        )


def samples(count: int, seed: int = 0) -> ArrayData:
    """Return random samples whose class depends on the features."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, FEATURES)).astype(np.float32)
    return ArrayData(torch.tensor(inputs), torch.tensor(inputs[:, :CLASSES].argmax(axis=1)), CLASSES, "small")


def small_task(sizes: Sequence[int] = (7, 5, 6), model: nn.Sequential | None = None, **options: Any) -> Task:
    """Return a task whose clients have so many samples."""
    ends = np.cumsum(sizes)
    partition = Partition(
        tuple(np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)), num_samples=int(ends[-1])
    )
    model = small_model() if model is None else model
    return Task(model=model, train=samples(int(ends[-1])), partition=partition, test=samples(9, seed=1), **options)


def small_timing(count: int = 3, **options: Any) -> EdgeTiming:
    """Return devices of different speeds and rates."""
    rank = np.arange(1, count + 1)
    fields: dict[str, Any] = {
        "device_flops": 1e6 * rank,
        "uplink_bps": 1e6 / rank,
        "downlink_bps": 4e6 / rank,
        "fed_uplink_bps": 5e5 / rank,
        "fed_downlink_bps": 2e6 / rank,
        "server_flops": 1e7,
        "server_fed_uplink_bps": 1e7,
        "server_fed_downlink_bps": 2e7,
        "device_power_w": 0.1 * rank,
    }
    return EdgeTiming(**(fields | options))


def small_plan(count: int = 3, **options: Any) -> RoundPlan:
    """Return a plan in which all clients train."""
    fields: dict[str, Any] = {"client": range(count), "batch_size": 2, "local_steps": 2}
    return RoundPlan(**(fields | options))


def assert_same(first: Tensors, second: Tensors) -> None:
    """Bit for bit."""
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def assert_near(first: Tensors, second: Tensors, tolerance: float = 1e-6) -> None:
    """Up to rounding."""
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=tolerance, atol=tolerance, msg=name)
