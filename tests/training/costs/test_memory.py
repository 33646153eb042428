"""Memory of clients: what torch keeps, what rounds charge, plans that keep to a budget, the problem's own model."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from edgeopt import EdgeNetwork, RoundPlan, StaticPlanner
from edgeopt.errors import InvalidProblemError
from edgeopt.models import mlp, moe_decoder, record_routing
from edgeopt.problems import SplitTraining
from edgeopt.problems.split_training import SplitPlan
from edgeopt.training import (
    ALGORITHMS,
    Adam,
    ArrayData,
    FedAvg,
    LocalRunner,
    MemoryBudget,
    MultiServerFedAvg,
    ParallelSplit,
    Partition,
    Sgd,
    SplitFed,
    Task,
    client_peak_bytes,
    train,
)
from tests.training.small_tasks import small_model, small_plan, small_task, small_timing
from tests.training.split_tasks import run


def cnn() -> nn.Sequential:
    """Return convolutions with batch normalisation and dropout, that are cut after each block."""
    first = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2))
    second = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3))
    return nn.Sequential(first, second, nn.Flatten(), nn.Linear(16, 5))


def moe() -> nn.Sequential:
    """Return two blocks of attention and experts."""
    return moe_decoder(vocabulary=11, context=6, width=8, depth=2, heads=2, hidden=6, experts=4)


def task_of(model: nn.Sequential, **options: Any) -> Task:
    """Return a task of three clients with data for one of the models here."""
    generator = torch.Generator().manual_seed(0)
    if "embedding" in dict(model.named_children()):
        tokens = torch.randint(11, (60, 7), generator=generator)
        data = ArrayData(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), 11, "tokens")
    else:
        classes = torch.randint(5, (60,), generator=generator)
        data = ArrayData(torch.randn(60, 1, 4, 4, generator=generator), classes, 5, "images")
    rows = tuple(np.arange(20 * client, 20 * client + 20) for client in range(3))
    partition = Partition(rows, num_samples=60)
    return Task(model=model, train=data, test=data.take(np.arange(4)), partition=partition, **options)


MODELS: dict[str, Callable[[], nn.Sequential]] = {"mlp": lambda: mlp((1, 4, 4), (7, 6, 5), 5), "cnn": cnn, "moe": moe}
OPTIMIZERS: dict[str, tuple[Any, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (Sgd(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (Sgd(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "adam": (Adam(0.1), lambda p: torch.optim.AdamW(p, 0.1)),
}


def of_torch(task: Task, count: int, cut: int, make: Callable[[Any], torch.optim.Optimizer], half: bool = False) -> int:
    """Return the bytes of weights, gradients, optimiser and saved tensors of one step with torch's own modules."""
    net = copy.deepcopy(task.model)[:cut].train()
    inputs, targets = task.train.inputs[:count].clone(), task.train.targets[:count].clone()
    held = [*net.parameters(), *net.buffers()]
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), record_routing() as routing:
        with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
            outputs = net(inputs)
        loss = task.balance * sum(layer.balance_loss for layer in routing)
        if cut == task.num_layers:
            loss = loss + F.cross_entropy(outputs.float().flatten(0, -2), targets.flatten())
    known = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept = sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in known)
    if cut < task.num_layers:
        loss = loss + outputs.sum()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if trained:
        optimizer = make(trained)
        loss.backward()
        optimizer.step()
        kept += sum(p.grad.nbytes for p in trained if p.grad is not None)
        states = [value for state in optimizer.state.values() for value in state.values()]
        kept += sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
    return kept + sum(tensor.nbytes for tensor in held)


# --- the number ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_torch_holds(name: str, optimizer: str):
    """At every cut and for any mini-batch: weights, gradients, optimiser and saved tensors of a step, byte for byte."""
    task = task_of(MODELS[name]())
    ours, theirs = OPTIMIZERS[optimizer]
    for cut in range(1, task.num_layers + 1):
        for count in (2, 3, 8, 17):
            assert client_peak_bytes(task, count, ours, cut=cut) == of_torch(task, count, cut, theirs)
    assert client_peak_bytes(task, 8, ours) == of_torch(task, 8, task.num_layers, theirs)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_head_counts_as_a_part_of_its_own(name: str):
    """With the last layers too, a client also holds what a model of those alone does whose input needs a gradient."""
    task, (ours, theirs) = task_of(MODELS[name]()), OPTIMIZERS["adam"]
    for head in (1, 2):
        first = task.num_layers - head
        with torch.no_grad():
            between = task.forward(task.initial_weights(), task.train.inputs, 0, first).outputs
        data = ArrayData(between, task.train.targets, 5, "between")
        layers = nn.Sequential(nn.Identity(), *copy.deepcopy(task.model)[first:])  # a cut before them
        above = task.replace(model=layers, train=data, test=data)
        for count in (2, 9):
            both = of_torch(task, count, 1, theirs) + of_torch(above, count, head + 1, theirs)
            assert client_peak_bytes(task, count, ours, cut=1, head=head) == both
    assert client_peak_bytes(task, 3, ours, cut=1, head=0) == client_peak_bytes(task, 3, ours, cut=1)
    with pytest.raises(InvalidProblemError, match="head = 4: expected an integer from 0 to 3"):
        client_peak_bytes(task, 3, cut=1, head=4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1), (1, 2), (3,)])
@pytest.mark.parametrize("name", MODELS)
def test_frozen_layers(name: str, layers: tuple[int, ...]):
    """Frozen layers are held, and keep what those below them need; before the first that learns nothing is kept."""
    model = MODELS[name]()
    for layer in layers:
        model[layer].requires_grad_(False)
    task = task_of(model)
    for cut in range(1, task.num_layers + 1):
        for count in (2, 9):
            assert client_peak_bytes(task, count, Adam(), cut=cut) == of_torch(task, count, cut, OPTIMIZERS["adam"][1])


@pytest.mark.parametrize("name", MODELS)
def test_mixed_precision(name: str):
    """Under autocast it is what is kept then: activations and copies of weights in two bytes."""
    task = task_of(MODELS[name](), precision="bf16")
    for cut in range(1, task.num_layers + 1):
        for count in (2, 9):
            assert client_peak_bytes(task, count, cut=cut) == of_torch(
                task, count, cut, OPTIMIZERS["sgd"][1], half=True
            )


@pytest.mark.parametrize("name", MODELS)
def test_without_a_backward_pass(name: str):
    """It is the weights alone, buffers and frozen ones among them, whatever the mini-batch; torch keeps nothing then."""
    model = MODELS[name]()
    next(model.parameters()).requires_grad_(False)
    task = task_of(model)
    for cut in range(1, task.num_layers + 1):
        found = client_peak_bytes(task, 10_000, Adam(), cut=cut, backward=False)
        assert found == sum(value.nbytes for value in task.model[:cut].state_dict().values())

    def refuse(tensor: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a tensor is kept")

    with torch.inference_mode(), saved_tensors_hooks(refuse, refuse):
        task.forward(task.initial_weights(), task.train.inputs[:3])


def test_experts_that_do_not_learn():
    """Each of them less is three inner activations per token less, and the gradients of its network."""
    task = task_of(moe())
    network = 4 * (2 * 8 * 6 + 8 + 6)
    layer = "block1_experts.body"
    found = [client_peak_bytes(task, 5, Adam(), learns={layer: count}) for count in range(4)]
    assert np.diff(found) == pytest.approx([5 * 6 * 3 * 6 * 4 + network] * 3)
    assert client_peak_bytes(task, 5, Adam(), learns={layer: 4}) == client_peak_bytes(task, 5, Adam())
    assert client_peak_bytes(task, 5, cut=2, learns={layer: 1}) == client_peak_bytes(task, 5, cut=2)
    for cut in (0, 7):
        with pytest.raises(InvalidProblemError, match=f"cut = {cut}: expected an integer from 1 to 6"):
            client_peak_bytes(task, 5, cut=cut)
    for count in (-1, 5):
        with pytest.raises(InvalidProblemError, match=rf"learns\['{layer}'\] = {count}: expected"):
            client_peak_bytes(task, 5, learns={layer: count})
    with pytest.raises(InvalidProblemError, match="expected a layer of experts"):
        client_peak_bytes(task, 5, learns={"block1": 1})


def test_measuring_draws_nothing():
    """It leaves torch's generators and the model as they are."""
    task = task_of(cnn())
    before, state = copy.deepcopy(task.model.state_dict()), torch.get_rng_state()
    client_peak_bytes(task, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


def test_a_model_that_cannot_be_measured():
    """A layer that refuses some mini-batches does not end a training that has none of them: the memory is not known."""

    class Five(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and x.device.type != "meta" and len(x) != 5:
                raise ValueError("five samples, please")
            return x

    task = small_task(model=nn.Sequential(*small_model(), Five()))
    history = run(task, FedAvg(), small_plan(batch_size=5), timing=small_timing())
    assert np.isnan(history.rows[0]["client_peak_bytes"])
    with pytest.raises(InvalidProblemError, match="model: what it keeps of a mini-batch cannot be measured"):
        MemoryBudget(StaticPlanner(small_plan()), task, 1e6).plan(0)


# --- rounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [FedAvg(Sgd(momentum=0.9)), MultiServerFedAvg()], ids=lambda a: a.name)
@pytest.mark.parametrize("batched", [True, False])
def test_rounds_of_whole_models(algorithm: Any, batched: bool):
    """A row has the most of all clients, each with its own mini-batch; feedback has that of each."""
    task = small_task((3, 9, 6))
    plan = small_plan(batch_size=[8, 4, 6])
    history = run(task, algorithm, plan, timing=small_timing(), runner=LocalRunner(batched=batched))
    expected = [client_peak_bytes(task, count, algorithm.optimizer) for count in (3, 4, 6)]
    assert history.column("client_peak_bytes").tolist() == [max(expected)]


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if hasattr(a(), "cut_layer")], ids=lambda a: a.name)
def test_rounds_of_split_learning(algorithm: Any):
    """Clients hold their layers up to the cut; one with all of them has the loss too, unless it runs forward only."""
    task, probes = small_task(), hasattr(algorithm(), "probes")
    seen: list[Any] = []

    class Watching(StaticPlanner):
        def plan(self, round: int, feedback: Any = None) -> RoundPlan:
            seen.append(feedback)
            return self.round_plan

    optimizer = Sgd(0.1, momentum=0.9)
    plan = small_plan(cut_layer=[1, 2, 3], batch_size=[2, 4, 3])
    history = train(task, algorithm(optimizer), Watching(plan), small_timing(), rounds=2)
    expected = [client_peak_bytes(task, n, optimizer, cut=cut, probes=probes) for n, cut in ((2, 1), (4, 2), (3, 3))]
    assert seen[1].client_peak_bytes.tolist() == expected
    assert history.column("client_peak_bytes").tolist() == [max(expected)] * 2


def test_clients_without_gradients_hold_their_weights():
    """A client of split learning whose layers are frozen runs no backward pass, and keeps nothing."""
    model = small_model()
    model[0].requires_grad_(False)
    task = small_task(model=model)
    row = run(task, ParallelSplit(Adam(), cut_layer=2), small_plan(), timing=small_timing()).rows[0]
    assert row["client_peak_bytes"] == 4 * (4 * 5 + 5)


def test_empty_rounds_and_resumed_runs(tmp_path: Path):
    """A round without clients has none; a resumed run has the same column, and feedback, as a long one."""
    task, plans = small_task(), [small_plan(), RoundPlan(client=[]), small_plan(batch_size=4)]
    options: dict[str, Any] = {"timing": small_timing(), "checkpoint": tmp_path / "a.safetensors", "resume": True}
    run(task, SplitFed(), *plans[:2], **options)
    parts = run(task, SplitFed(), *plans, **options).column("client_peak_bytes")
    np.testing.assert_array_equal(
        parts, run(task, SplitFed(), *plans, timing=small_timing()).column("client_peak_bytes")
    )
    assert np.isnan(parts).tolist() == [False, True, False]


# --- plans --------------------------------------------------------------------------------------------------------


def test_a_budget_lowers_batch_sizes():
    """Each client gets the largest mini-batch that fits, found by counting down; who fits keeps what was planned."""
    task, optimizer = small_task((12, 12, 12)), Sgd(0.1, momentum=0.9)
    limits = [client_peak_bytes(task, 5, optimizer, cut=2) - 1, np.inf, client_peak_bytes(task, 9, optimizer, cut=3)]
    plan = small_plan(batch_size=[10, 0, 11], cut_layer=[2, 1, 0])
    planner = MemoryBudget(StaticPlanner(plan), task, limits, optimizer, batch_size=7, cut_layer=3)
    found = planner.plan(0)
    largest = [
        max(n for n in range(1, 13) if client_peak_bytes(task, n, optimizer, cut=cut) <= limit)
        for cut, limit in ((2, limits[0]), (3, limits[2]))
    ]
    assert found == plan.replace(batch_size=[largest[0], 0, largest[1]])
    assert largest == [4, 9]
    history = run(task, SplitFed(optimizer, cut_layer=3), found, timing=small_timing())
    assert history.rows[0]["client_peak_bytes"] <= max(
        limits[0], limits[2], client_peak_bytes(task, 12, optimizer, cut=1)
    )


def test_a_budget_counts_the_samples_that_there_are():
    """A client that has fewer samples than planned needs memory for those alone."""
    task = small_task((3, 5, 6))
    limits = [client_peak_bytes(task, count) for count in (3, 5, 6)]
    assert MemoryBudget(StaticPlanner(small_plan(batch_size=99)), task, limits).plan(0) == small_plan(batch_size=99)


def test_a_budget_of_clients_that_run_forward_only():
    """What fits is counted as their rounds charge it: larger mini-batches than with a backward pass."""
    task, optimizer = small_task((12, 12, 12)), Sgd(0.1, momentum=0.9)
    limit = client_peak_bytes(task, 5, optimizer, cut=2, probes=True)
    plan = StaticPlanner(small_plan(batch_size=12, cut_layer=2))
    found = [
        MemoryBudget(plan, task, limit, optimizer, probes=probes).plan(0).batch_size[0] for probes in (True, False)
    ]
    assert found[0] == 5 > found[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_bytes": [1e6, 200, 1e6]}, r"round 4: client 1 needs \d+ bytes for one sample with layers 1 to 3, its memory is 200"),
        ({"memory_bytes": [1e6, 1e6]}, r"memory_bytes: expected shape \[3\], got \[2\]"),
        ({"memory_bytes": [1e6, np.nan, 1]}, r"memory_bytes\[1\]"),
        ({"memory_bytes": -1}, "memory_bytes"),
        ({"memory_bytes": 1e6, "batch_size": 0}, "batch_size = 0"),
        ({"memory_bytes": 1e6, "cut_layer": 4}, "cut_layer = 4"),
    ],
)  # fmt: skip
def test_budgets_that_do_not_fit(options: dict[str, Any], message: str):
    """Errors name round, client, what is needed and what is there."""
    with pytest.raises(InvalidProblemError, match=message):
        MemoryBudget(StaticPlanner(small_plan()), small_task(), **options).plan(4)


def test_a_client_that_is_not_there():
    """The plan of the other planner may be wrong."""
    planner = MemoryBudget(StaticPlanner(RoundPlan(client=[0, 7])), small_task(), 1e6)
    with pytest.raises(InvalidProblemError, match=r"round 0: client\[1\] = 7: expected 0 to 2"):
        planner.plan(0)
    assert planner.state() == {}


# --- the problem's model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "copies"), [(Sgd(0.1), 2), (Sgd(0.1, momentum=0.9), 3)])
def test_the_problem_counts_the_same(optimizer: Sgd, copies: int):
    """``b m_l + k delta_l`` of split training is what a round of the same plan charges, at every cut below the last."""
    task = task_of(mlp((1, 4, 4), (7, 6, 5, 4), 5))
    network = EdgeNetwork.random(1, 3, seed=0)
    problem = SplitTraining.from_profile(task.profile, network, optimizer_states=copies)
    for cuts in ([1, 2, 3], [4, 4, 1], [2, 3, 4]):
        plan = SplitPlan(batch_size=[3, 8, 17], cut_layer=cuts, aggregation_interval=1)
        needed = problem.report(plan).memory_bytes
        charged = [client_peak_bytes(task, b, optimizer, cut=cut) for b, cut in zip((3, 8, 17), cuts, strict=True)]
        assert needed.tolist() == charged
        history = run(task, SplitFed(optimizer), plan.round_plan(aggregate=True), timing=small_timing())
        assert history.rows[0]["client_peak_bytes"] == max(needed)


def test_with_all_layers_a_client_has_the_loss_too():
    """At the last cut the problem leaves out what the loss keeps: probabilities, labels, and their total weight."""
    task = task_of(mlp((1, 4, 4), (7, 6), 5))
    problem = SplitTraining.from_profile(task.profile, EdgeNetwork.random(1, 3, seed=0), optimizer_states=2)
    plan = SplitPlan(batch_size=[3, 8, 17], cut_layer=[task.num_layers] * 3, aggregation_interval=1)
    charged = [client_peak_bytes(task, b) for b in (3, 8, 17)]
    loss = [b * (5 * 4 + 8) + 4 for b in (3, 8, 17)]
    assert (problem.report(plan).memory_bytes + loss).tolist() == charged
