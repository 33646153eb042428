"""Tasks in double precision for split learning, and the same training written anew with torch's own modules."""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgeopt import EdgeNetwork, RoundPlan
from edgeopt.models import mlp, small_cnn
from edgeopt.problems import SplitTraining
from edgeopt.profile import ModelProfile
from edgeopt.schedule import Feedback
from edgeopt.training import Algorithm, ArrayData, Batches, EdgeTiming, History, Partition, Task, train
from edgeopt.training.messages import Tensors

CLASSES = 4


def model(kind: str = "mlp", seed: int = 0) -> nn.Sequential:
    """Return four layers (``mlp``) or three (``cnn``), in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "mlp":
            return mlp((1, 4, 4), (7, 6, 5), CLASSES).double()
        return small_cnn(image_size=4, channels=(2, 3), num_classes=CLASSES).double()


@functools.cache
def profile(kind: str) -> ModelProfile:
    """Return the profile of a model in single precision; measuring it takes longer than training it."""
    return ModelProfile.from_module(model(kind).float(), images(1, 0, torch.float32).inputs)


def task(
    kind: str = "mlp", sizes: Sequence[int] = (9, 7, 8), dtype: torch.dtype = torch.float64, **options: Any
) -> Task:
    """Return a task of images whose clients have so many samples."""
    ends = np.cumsum(sizes)
    rows = tuple(np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True))
    net = options.pop("model", None)
    if net is None:
        options.setdefault("profile", profile(kind))
    return Task(
        model=model(kind).to(dtype) if net is None else net,
        train=images(int(ends[-1]), 0, dtype),
        partition=Partition(rows, num_samples=int(ends[-1])),
        test=images(11, 1, dtype),
        **options,
    )


def images(count: int, seed: int, dtype: torch.dtype) -> ArrayData:
    """Return random images, whose class depends on them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64)
    return ArrayData(inputs.to(dtype), inputs.flatten(1)[:, :CLASSES].argmax(1), CLASSES, "random")


def problem_of(of: Task, seed: int = 0) -> SplitTraining:
    """Return the problem of planning a task, with devices that differ."""
    network = EdgeNetwork.random(1, of.num_clients, seed=seed)
    problem = SplitTraining.from_profile(of.profile, network, fed_rate_bps=2e6)
    rank = np.arange(1, of.num_clients + 1)
    return problem.replace(device_flops=1e5 * rank, uplink_bps=1e5 / rank, downlink_bps=3e5 / rank, server_flops=2e5)


class Plans:
    """A planner with a list of plans, the last of which is repeated."""

    def __init__(self, *plans: RoundPlan) -> None:
        self.plans = plans

    def plan(self, round: int, feedback: Feedback | None = None) -> RoundPlan:
        """Return the plan of a round."""
        return self.plans[min(round, len(self.plans) - 1)]


def run(of: Task, algorithm: Algorithm, *plans: RoundPlan, rounds: int | None = None, **options: Any) -> History:
    """Train with some plans; devices are those of `problem_of` unless a timing is given."""
    timing = options.pop("timing", None) or EdgeTiming.from_problem(problem_of(of))
    return train(of, algorithm, Plans(*plans), timing, rounds=len(plans) if rounds is None else rounds, **options)


# --- the same with torch's modules and optimisers ----------------------------------------------------------------


class Replica:
    """A whole model with `torch.optim.SGD`: what split training of one client should be."""

    def __init__(self, of: Task, lr: float, momentum: float = 0.0, net: nn.Sequential | None = None) -> None:
        self.task, self.net = of, copy.deepcopy(of.model if net is None else net)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=lr, momentum=momentum)

    def step(self, client: int, round: int, step: int, batch_size: int) -> float:
        """Take one step on a mini-batch of a client, and return its loss before it."""
        inputs, targets = (x[0] for x in self.task.batch(client, Batches(round, step, 1, batch_size)))
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.net(inputs), targets)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    @property
    def weights(self) -> Tensors:
        """Its parameters."""
        return {name: value.detach() for name, value in self.net.state_dict().items()}


def set_to_mean(replicas: Sequence[Replica], shares: Sequence[float], first: int, last: int) -> None:
    """Give layers `first` to before `last` of all replicas their weighted mean."""
    for tensors in zip(*(list(replica.net[first:last].parameters()) for replica in replicas), strict=True):
        mean = sum(share * tensor.detach() for share, tensor in zip(shares, tensors, strict=True)) / sum(shares)
        for tensor in tensors:
            tensor.data.copy_(mean)


def set_momentum_to_mean(replicas: Sequence[Replica], shares: Sequence[float], layer: int) -> None:
    """Give the velocities of a layer of all replicas their weighted mean."""
    for tensors in zip(*(list(replica.net[layer].parameters()) for replica in replicas), strict=True):
        states = [replica.optimizer.state[tensor] for replica, tensor in zip(replicas, tensors, strict=True)]
        mean = sum(s * state["momentum_buffer"] for s, state in zip(shares, states, strict=True)) / sum(shares)
        for state in states:
            state["momentum_buffer"] = mean.clone()
