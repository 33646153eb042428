"""What the conformance suites train: every registered algorithm, with codecs where it has a cut, on tiny tasks.

An algorithm is in by being in `ALGORITHMS`, a codec by being in `CODECS`, a planner by a line in `PLANNERS`, a runner by one
in `RUNNERS`.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt import RoundPlan, StaticPlanner
from edgeopt.data.partition import iid
from edgeopt.experiment.planners import RandomPlanner
from edgeopt.models.moe import Experts
from edgeopt.problems import ClientSelection, SplitTraining
from edgeopt.schedule import Planner
from edgeopt.solvers.client_selection import PowerOfChoice, SelectionPlanner
from edgeopt.solvers.split_training.planner import HasflPlanner
from edgeopt.training import (
    Adam,
    Algorithm,
    ArrayData,
    Codec,
    Compressed,
    FedAlignMoe,
    HFedMoe,
    LocalRunner,
    SplitFed,
    Task,
    TopK,
)  # fmt: skip
from edgeopt.training.algorithms import ALGORITHMS
from edgeopt.training.codecs import CODECS
from edgeopt.training.constants import Estimator, GradientEstimator
from tests.training import split_tasks
from tests.training.lora_tasks import lora_task
from tests.training.small_tasks import noisy_model, small_task

ROUNDS = 4
SIZES = (6, 6, 5, 6)  # samples of the clients
BATCH = 2  # the largest: small, so that clients agree and share batches

OPTIONS: dict[str, Any] = {
    "optimizer": Adam(0.02), "batch_size": BATCH, "cut_layer": 1, "num_servers": 2,
    "share": 0.5, "feedback": 0.5, "rank": 1,
}  # fmt: skip
"""What an algorithm or a codec is given, of the fields that it has."""


def make(kind: Any) -> Any:
    return kind(**{name: value for name, value in OPTIONS.items() if has(kind, name)})


def make_algorithm(kind: type[Algorithm], codec: type[Codec] | None) -> Algorithm:
    return make(kind) if codec is None else Compressed(make(kind), make(codec), report_errors=True)


def has(kind: Any, name: str) -> bool:
    return name in {field.name for field in dataclasses.fields(kind)}


def interval(kind: type[Algorithm]) -> int:
    """Return the rounds between two aggregations; algorithms of whole models, and one that folds, take no round without."""
    return 2 if has(kind, "cut_layer") and not has(kind, "rank") else 1


# --- tasks ----------------------------------------------------------------------------------------------------------


@functools.cache
def plain_task() -> Task:
    return small_task(SIZES)


@functools.cache
def noisy_task() -> Task:
    """Batch normalisation and dropout: buffers, and chance in the layers."""
    return small_task(SIZES, noisy_model())


@functools.cache
def turned_task() -> Task:
    """Weights and samples whose axes lie in memory in other orders than usual."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolution = nn.Conv2d(2, 4, 3, padding=1).to(memory_format=torch.channels_last)
        linear = nn.Linear(4 * 16, 3)
        inputs = torch.randn(24, 2, 4, 4).to(memory_format=torch.channels_last)
    linear.weight = nn.Parameter(linear.weight.detach().T.contiguous().T)
    data = ArrayData(inputs, torch.arange(24) % 3, 3, "turned")
    model = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), linear)
    return Task(model=model, train=data, test=data, partition=iid(24, len(SIZES), seed=0))


@functools.cache
def adapted_task() -> Task:
    """Frozen layers with adapters beside them, and a head that is trained as it is."""
    return lora_task(sizes=SIZES)


@functools.cache
def exact_task(sizes: tuple[int, ...] = SIZES, frozen: tuple[int, ...] = ()) -> Task:
    """Four layers in double precision, so that rounding stays small; some layers may be frozen."""
    net = split_tasks.model()
    for layer in frozen:
        net[layer].requires_grad_(False)
    return split_tasks.task(sizes=sizes, **({"model": net} if frozen else {}))


def with_experts(of: Task) -> Task:
    """Return a task with a layer of experts below its last linear layer, in the same child of the model."""
    model = copy.deepcopy(of.model)
    name, last = list(model.named_children())[-1]
    (linear,) = (part for part in last.modules() if isinstance(part, nn.Linear))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        experts = Experts(linear.in_features, 3, experts=4, top_k=2).to(linear.weight.dtype)
        for parameter in experts.parameters():
            nn.init.normal_(parameter, std=0.5)
    setattr(model, name, nn.Sequential(experts, last))
    return of.replace(model=model)


FITTED: dict[type[Algorithm], Callable[[Task], Task]] = {HFedMoe: with_experts, FedAlignMoe: with_experts}
"""Algorithms that train no model that has not what they are for, and what is done to a task to have it."""


@functools.cache
def fitted(kind: type[Algorithm], of: Task) -> Task:
    """Return a task that an algorithm can train: the given one, if it can train that."""
    return FITTED[kind](of) if kind in FITTED else of


# --- planners, new ones for each run, and what measures for them ----------------------------------------------------

Planning = tuple[Planner, Estimator | None]


def static(kind: type[Algorithm]) -> Planning:
    """Several steps, and two cuts where there are any."""
    plan = RoundPlan(
        client=range(len(SIZES)),
        batch_size=BATCH,
        cut_layer=[1, 2, 2, 1],
        local_steps=[2, 1, 2, 2],
        experts=[1, 0, 2, 1],
    )
    return StaticPlanner(plan, interval(kind)), None


def random(kind: type[Algorithm]) -> Planning:
    most = np.full(len(SIZES), BATCH, np.int32)
    return RandomPlanner(max_batch=most, num_layers=4, interval=interval(kind), seed=1), None


def hasfl(kind: type[Algorithm]) -> Planning:
    """Solves again after two rounds, from rates that fade and from gradients."""
    problem = SplitTraining.random(
        num_devices=len(SIZES), num_layers=3, interval=interval(kind), max_batch=BATCH, heterogeneity=0.0, seed=1
    )
    return HasflPlanner(problem, every=2), GradientEstimator(every=2, batch_size=BATCH, num_clients=2)


def selection(kind: type[Algorithm]) -> Planning:
    """Policies with memory and chance of their own pick clients; several servers may pick the same one."""
    servers = OPTIONS["num_servers"] if has(kind, "num_servers") else 1
    problem = ClientSelection.random(num_servers=servers, num_clients=len(SIZES), picks=2, seed=0)
    return SelectionPlanner(problem, [PowerOfChoice().policy(server, seed=4) for server in range(servers)]), None


PLANNERS: dict[str, Callable[[type[Algorithm]], Planning]] = {
    "static": static,
    "random": random,
    "hasfl": hasfl,
    "selection": selection,
}
RUNNERS: dict[str, Callable[[], LocalRunner]] = {
    "sequential": functools.partial(LocalRunner, batched=False),
    "batched": functools.partial(LocalRunner, batched=True),
}

every_algorithm = pytest.mark.parametrize("kind", ALGORITHMS, ids=lambda kind: kind.name)
every_coded = pytest.mark.parametrize(
    ("kind", "codec"),
    [(kind, TopK) for kind in ALGORITHMS if has(kind, "cut_layer")]
    + [(SplitFed, kind) for kind in CODECS if kind != TopK],
    ids=lambda kind: kind.name,
)
"""Every algorithm with the codec that remembers most, and every codec around one algorithm."""
CASES: list[tuple[type[Algorithm], type[Codec] | None]] = [
    *((kind, None) for kind in ALGORITHMS),
    *((kind, TopK) for kind in ALGORITHMS if has(kind, "cut_layer")),
]
every_case = pytest.mark.parametrize(
    ("kind", "codec"), CASES, ids=[kind.name + (f" with {codec.name}" if codec else "") for kind, codec in CASES]
)
"""Every algorithm as it is, and with a codec where it has a cut."""
every_runner = pytest.mark.parametrize("runner", RUNNERS)
