"""FedAvg and FedProx: plain torch loops give the same models."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt import RoundPlan, StaticPlanner
from edgeopt.errors import InvalidProblemError
from edgeopt.rng import stream
from edgeopt.training import (
    Adam,
    Batches,
    FedAvg,
    FedProx,
    LocalRunner,
    Message,
    Sgd,
    Task,
    TrainingError,
    reply,
    train,
)
from edgeopt.training.messages import State, Tensors
from edgeopt.training.rules.local import minimise
from tests.training.small_tasks import (
    assert_near,
    assert_same,
    noisy_model,
    small_model,
    small_plan,
    small_task,
    small_timing,
)  # fmt: skip


def plain_training(task: Task, weights: Tensors, client: int, batches: Batches, make: Any, mu: float = 0.0) -> Tensors:
    """Train a copy of the module as everyone does: zero_grad, backward, step."""
    module = copy.deepcopy(task.model).train()
    module.load_state_dict(weights)
    start = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = make(module.parameters())
    for inputs, targets in zip(*task.batch(client, batches), strict=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(inputs), targets)
        for parameter, first in zip(module.parameters(), start, strict=True):
            loss = loss + 0.5 * mu * ((parameter - first) ** 2).sum()
        loss.backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def run(task: Task, algorithm: Any, rounds: int = 3, plan: RoundPlan | None = None, **options: Any) -> Tensors:
    planner = StaticPlanner(small_plan(task.num_clients) if plan is None else plan)
    return train(task, algorithm, planner, small_timing(task.num_clients), rounds=rounds, **options).models[0]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        (Sgd(0.3), lambda p: torch.optim.SGD(p, 0.3)),
        (Sgd(0.1, momentum=0.9, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01)),
        (Adam(0.02), lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0)),
    ],
)
def test_one_client_is_plain_training(optimizer: Any, make: Any, batched: bool):
    """With one client, FedAvg is a loop over its mini-batches; the optimiser starts anew in each round."""
    task = small_task((7,))
    found = run(task, FedAvg(optimizer), runner=LocalRunner(batched=batched))
    expected = task.initial_weights()
    for round in range(3):
        expected = plain_training(task, expected, 0, Batches(round, 0, 2, 2), make)
    assert_near(found, expected)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("mu", [None, 0.7])
def test_several_clients_are_an_average(weighting: Any, mu: float | None, batched: bool):
    """Clients of different sizes, plans of different lengths: the model is numpy.average of plainly trained ones."""
    task = small_task((7, 5, 1))
    algorithm = FedAvg(Sgd(0.3), weighting=weighting) if mu is None else FedProx(mu, Sgd(0.3), weighting=weighting)
    plan = small_plan(client=[2, 0, 1], batch_size=[2, 3, 2], local_steps=[2, 4, 2])
    found = run(task, algorithm, plan=plan, runner=LocalRunner(batched=batched))
    expected = task.initial_weights()
    for round in range(3):
        models = [
            plain_training(
                task,
                expected,
                entry.client,
                Batches(round, 0, entry.local_steps, entry.batch_size),
                lambda p: torch.optim.SGD(p, 0.3),
                mu or 0.0,
            )
            for entry in plan
        ]
        shares = [task.partition.sizes[entry.client] for entry in plan] if weighting == "samples" else None
        expected = {
            name: torch.tensor(np.average([model[name].numpy() for model in models], axis=0, weights=shares)).float()
            for name in expected
        }
    assert_near(found, expected)


def test_buffers_of_a_round():
    """With batch normalisation, running means are averaged by samples and the counter is the largest."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    task = small_task((8, 4), model=model)
    plan = small_plan(2, local_steps=[3, 1])
    found = run(task, FedAvg(Sgd(0.1)), rounds=1, plan=plan)
    weights = task.initial_weights()
    models = [
        plain_training(task, weights, client, Batches(0, 0, steps, 2), lambda p: torch.optim.SGD(p, 0.1))
        for client, steps in ((0, 3), (1, 1))
    ]
    assert int(found["1.num_batches_tracked"]) == 3
    for name in ("1.running_mean", "1.running_var"):
        np.testing.assert_allclose(
            found[name], np.average([m[name] for m in models], axis=0, weights=[8, 4]), atol=1e-6
        )


def test_fedprox_without_its_term_is_fedavg():
    """``mu = 0`` gives FedAvg's weights, bit for bit."""
    task = small_task()
    assert_same(run(task, FedProx(0.0, Sgd(0.3))), run(task, FedAvg(Sgd(0.3))))


def test_a_large_term_holds_clients_back():
    """The stronger the term, the nearer the model stays to where it started."""
    task = small_task()
    start = task.initial_weights()

    def distance(mu: float) -> float:
        found = run(task, FedProx(mu, Sgd(0.05)), rounds=1, plan=small_plan(local_steps=20))
        return sum(float(((found[name] - start[name]) ** 2).sum()) for name in start)

    near, middle, far = distance(15.0), distance(1.0), distance(0.0)
    assert near < 0.5 * middle < middle < far


def test_the_gradient_of_the_proximal_term():
    """The second step of local training follows autograd's gradient of loss plus mu / 2 ||w - start||^2."""
    task = small_task((6,))
    batch, start, mu = task.batch(0, Batches(0, 0, 2, 3)), task.initial_weights(), 0.8
    near = FedProx(mu).local_loss(task, start)
    after = minimise(task, near, start, batch, Sgd(1.0)).weights
    first = minimise(task, near, start, type(batch)(*(x[:1] for x in batch)), Sgd(1.0)).weights
    leaves = {name: value.clone().requires_grad_() for name, value in first.items()}
    loss = nn.functional.cross_entropy(
        torch.func.functional_call(small_model(), leaves, batch.inputs[1]), batch.targets[1]
    )
    penalty = sum(((leaf - start[name]) ** 2).sum() for name, leaf in leaves.items())
    gradients = torch.autograd.grad(loss + 0.5 * mu * penalty, list(leaves.values()))
    assert_near(after, {name: first[name] - g for name, g in zip(leaves, gradients, strict=True)})


def test_the_loss_is_the_mean_over_steps_without_the_term():
    """Training loss is the data's: the mean over clients of their mean over local steps."""
    task = small_task((6,))
    history = train(task, FedProx(5.0, Sgd(0.3)), StaticPlanner(small_plan(1)), small_timing(1), rounds=1)
    batch, weights, losses = task.batch(0, Batches(0, 0, 2, 2)), task.initial_weights(), []
    for step in range(2):
        losses.append(float(task.batch_loss(weights, batch.inputs[step], batch.targets[step])[0]))
        near = FedProx(5.0).local_loss(task, task.initial_weights())
        weights = minimise(
            task, near, task.initial_weights(), type(batch)(*(x[: step + 1] for x in batch)), Sgd(0.3)
        ).weights
    assert history.rows[0]["train_loss"] == pytest.approx(np.mean(losses))


def test_open_batch_sizes_are_the_algorithms():
    """Where the plan leaves the batch size open, the algorithm's counts."""
    task = small_task((8, 8))
    left = run(task, FedAvg(Sgd(0.3), batch_size=4), plan=small_plan(2, batch_size=[0, 2]))
    assert_same(left, run(task, FedAvg(Sgd(0.3)), plan=small_plan(2, batch_size=[4, 2])))


def test_epochs_of_whole_mini_batches_are_steps():
    """Two epochs of clients with 8 and 6 samples in batches of 2 are eight and six steps: weights, bytes and time."""
    task, timing = small_task((8, 6)), small_timing(2)
    epochs, steps = small_plan(2, local_epochs=2), small_plan(2, local_steps=[8, 6])
    first, second = (train(task, FedAvg(Sgd(0.3)), StaticPlanner(p), timing, rounds=2) for p in (epochs, steps))
    assert_same(first.models[0], second.models[0])
    assert str(first.rows) == str(second.rows)


@pytest.mark.parametrize("batched", [True, False])
def test_epochs_take_the_last_partial_batch(batched: bool):
    """In plans of epochs every sample is trained on: 5 samples in batches of 2 are two of 2 and one of 1, in plain torch."""
    task, timing = small_task((5, 8, 5)), small_timing(3)
    plan = small_plan(3, local_epochs=2)
    history = train(task, FedAvg(Sgd(0.3)), StaticPlanner(plan), timing, rounds=1, runner=LocalRunner(batched=batched))
    total = {name: torch.zeros_like(value) for name, value in task.initial_weights().items()}
    work = []
    for client, size in enumerate((5, 8, 5)):
        model = copy.deepcopy(task.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        order = stream(task.seed, "batches", client, 0)
        for _ in range(2):
            rows = torch.tensor(order.permutation(task.partition.indices[client]))
            for some in rows.split(2):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(task.train.inputs[some]), task.train.targets[some]).backward()
                optimizer.step()
        for name, value in model.state_dict().items():
            total[name] += size / 18 * value
        work.append(2 * size * task.flops(1))
    assert_near(history.models[0], total)
    assert history.last is not None
    computed = np.array(work) / timing.device_flops
    sent = 8 * sum(v.nbytes for v in total.values()) * (1 / timing.uplink_bps + 1 / timing.downlink_bps)
    np.testing.assert_allclose(history.last.phases[0].client_s, computed + sent, rtol=1e-9)


@pytest.mark.parametrize("batched", [True, False])
def test_weights_of_the_wrong_shape_are_told_of_their_client(batched: bool):
    """An average of unequal models says in which round, of which client, which tensor, and what was expected."""

    @dataclass(frozen=True, slots=True)
    class Cutting(FedAvg):
        def client(self, task: Task, message: Message, state: State, batch: Any) -> tuple[Message, State]:
            answer, state = FedAvg.client(self, task, message, state, batch)
            weights = {**answer["weights"]}
            if batch.inputs.shape[1] == 1:
                weights["0.bias"] = weights["0.bias"][:2]
            return reply(weights=weights, scalars=answer["scalars"]), state

    plan = StaticPlanner(small_plan(batch_size=[2, 2, 1]))
    expected = r"^round 0, fedavg, client 2: 0.bias: shape \[2\], expected \[5\] as of client 0$"
    with pytest.raises(TrainingError, match=expected):
        train(small_task(), Cutting(), plan, small_timing(), rounds=1, runner=LocalRunner(batched=batched))


def test_random_layers_need_no_care():
    """A model with batch normalisation and dropout trains the same way twice, whatever the global seed."""
    task = small_task(model=noisy_model())
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(run(task, FedAvg(Sgd(0.3))))
        assert torch.equal(torch.get_rng_state(), before)
    assert_same(*found)


@pytest.mark.parametrize("make", [FedAvg, FedProx])
def test_bad_fields_are_refused(make: Any):
    """The message names the field."""
    with pytest.raises(InvalidProblemError, match="batch_size"):
        make(batch_size=0)
    with pytest.raises(InvalidProblemError, match="weighting = 'loss': expected 'samples' or 'uniform'"):
        make(weighting="loss")
    with pytest.raises(InvalidProblemError, match="mu"):
        FedProx(mu=-1.0)


@pytest.mark.parametrize("algorithm", [FedAvg(), FedProx()])
def test_a_plan_without_aggregation_is_refused(algorithm: Any):
    """FedAvg without averaging is no algorithm; the message names the round and the remedy."""
    with pytest.raises(InvalidProblemError, match=r"round 0: a plan without aggregation.*local_steps"):
        train(small_task(), algorithm, StaticPlanner(small_plan(), interval=2), small_timing(), rounds=1)
