"""Padded averages of adapters: one round written anew with layers of each client's own size; what crosses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeopt import RoundPlan
from edgeopt.models import LoraLinear, lora_layers
from edgeopt.training import Algorithm, Batches, FedAvg, HetLora, LocalRunner, Sgd, Task, ZeroPadLora
from tests.training.lora_tasks import ADAPTED, RANK, lora_task
from tests.training.recording import Recording
from tests.training.small_tasks import assert_near, assert_same
from tests.training.split_tasks import run

RANKS, STEPS, BATCH = [1, 2, 4], 3, 4
both = pytest.mark.parametrize("kind", [ZeroPadLora, HetLora])


def plan(**options: object) -> RoundPlan:
    return RoundPlan(client=range(3), rank=RANKS, batch_size=BATCH, local_steps=STEPS, **options)


def small(task: Task, weights: dict[str, torch.Tensor], rank: int) -> nn.Sequential:
    """Return the model of a client: layers that have its rank and no more."""
    net = copy.deepcopy(task.model)
    net.load_state_dict(weights)
    for name, layer in lora_layers(net).items():
        own = LoraLinear(layer.weight, layer.bias, rank=rank, alpha=layer.scale * rank)
        own.lora_a.data, own.lora_b.data = layer.lora_a.data[:rank].clone(), layer.lora_b.data[:, :rank].clone()
        nn.Module.get_submodule(net, name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = own
    return net


def rounds(task: Task, kind: type, count: int, lr: float) -> dict[str, torch.Tensor]:
    """Return the weights after some rounds: train small layers with `torch.optim.SGD`, pad, average."""
    weights = {name: value.clone() for name, value in task.model.state_dict().items()}
    sizes = task.partition.sizes.tolist()
    for number in range(count):
        nets = []
        for client, rank in enumerate(RANKS):
            net = small(task, weights, rank)
            steps = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=lr)
            for step in range(STEPS):
                x, y = (part[0] for part in task.batch(client, Batches(number, step, 1, BATCH)))
                steps.zero_grad()
                F.cross_entropy(net(x), y).backward()
                steps.step()
            nets.append(net)
        for name in weights:
            layer, _, end = name.rpartition(".")
            found = [net.state_dict()[name] for net in nets]
            shares = sizes
            if "lora" in end:
                found = [
                    F.pad(v, (0, 0, 0, RANK - len(v)) if end == "lora_a" else (0, RANK - v.shape[1])) for v in found
                ]
                own = [lora_layers(net)[layer] for net in nets]
                shares = [float((p.lora_b @ p.lora_a).detach().norm()) for p in own] if kind is HetLora else sizes
            weights[name] = sum(s * v for s, v in zip(shares, found, strict=True)) / sum(shares)
    return weights


@both
@pytest.mark.parametrize("batched", [True, False])
def test_rounds_are_those_of_layers_of_each_rank(kind: type, batched: bool):
    """Clients of unequal rank in one batch learn what layers of their own size learn; the average is the rule's."""
    task = lora_task()
    history = run(task, kind(Sgd(0.3)), *[plan()] * 3, runner=LocalRunner(batched=batched))
    assert_near(history.models[0], rounds(task, kind, 3, 0.3), 1e-9)


@both
def test_equal_ranks_are_fedavg(kind: type):
    """Without padding, zero padding is FedAvg over adapters; HetLoRA too, where the clients have equal data."""
    task = lora_task(sizes=(8, 8, 8))
    full = RoundPlan(client=range(3), batch_size=BATCH, local_steps=STEPS)
    first, second = (run(task, algorithm, full) for algorithm in (kind(Sgd(0.3)), FedAvg(Sgd(0.3))))
    if kind is ZeroPadLora:
        assert_near(first.models[0], second.models[0], 1e-12)  # the sums are in another order
    assert first.rows[0]["bytes_up"] == second.rows[0]["bytes_up"]
    assert first.rows[0]["seconds"] == second.rows[0]["seconds"]


@both
def test_what_crosses_is_what_counts(kind: type):
    """Bytes are those of the rows of each client's rank, up and down, and of the head; nothing frozen is sent."""
    task, runner = lora_task(), Recording()
    history = run(task, kind(Sgd(0.3)), plan(), runner=runner)
    sizes = {name: (layer.in_features + layer.out_features) for name, layer in lora_layers(task.model).items()}
    assert list(sizes) == list(ADAPTED)
    head = sum(p.numel() for p in task.model.get_submodule("head").parameters())
    expected = 8 * sum(rank * sum(sizes.values()) + head for rank in RANKS)
    assert history.rows[0]["weights_up"] == history.rows[0]["weights_down"] == expected
    assert runner.crossed(1)["weights_up"] == expected
    for _, message, answer in runner.sent:
        assert answer is not None
        for part in (message, answer):
            assert set(task.frozen).isdisjoint(part["weights"])
            for name, rows in part.rows.items():
                assert not (part["weights"][name] * ~(rows if rows.ndim == 2 else rows[:, None])).any()


@both
def test_memory_is_less_for_a_lower_rank(kind: type):
    """What is charged grows with the rank."""
    task, runner = lora_task(sizes=(8, 8, 8)), Recording()
    run(task, kind(), plan(), runner=runner)
    peaks = [message.peak_bytes for _, message, _ in runner.sent]
    assert peaks == sorted(peaks)
    assert len(set(peaks)) == 3


def test_rank_is_of_the_plan_or_of_the_algorithm():
    """The plan goes first; a rank above that of the model is that of the model."""
    task = lora_task()
    plain = RoundPlan(client=range(3), batch_size=BATCH)
    by_field = run(task, ZeroPadLora(Sgd(0.3), rank=2), plain)
    by_plan = run(task, ZeroPadLora(Sgd(0.3), rank=1), plain.replace(rank=2))
    assert_same(by_field.models[0], by_plan.models[0])
    above = run(task, ZeroPadLora(Sgd(0.3), rank=99), plain)
    assert_same(above.models[0], run(task, ZeroPadLora(Sgd(0.3)), plain).models[0])


def test_hetlora_before_anything_is_learnt():
    """Where no client's product has moved from zero, the data decide: the average is that of zero padding."""

    class Still(Sgd):
        def step(self, parameters: dict, gradients: dict, state: dict) -> tuple[dict, dict]:
            return parameters, state

    task = lora_task()
    algorithms: list[Algorithm] = [HetLora(Still()), ZeroPadLora(Still())]
    first, second = (run(task, algorithm, plan()) for algorithm in algorithms)
    assert_same(first.models[0], second.models[0])
