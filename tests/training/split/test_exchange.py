"""What all split learning shares, and the algorithms with one model at the server: vanilla, parallel, SplitFed V2."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeopt import RoundPlan
from edgeopt.errors import InvalidProblemError
from edgeopt.models import moe_decoder
from edgeopt.training import Algorithm, Batches, EdgeTiming, LocalRunner, Message, Sgd, Task
from edgeopt.training.algorithms import ParallelSplit, SplitFed, SplitFedV2, VanillaSplit
from edgeopt.training.rules.optimizer_state import average_states, leaves_in, overlay
from edgeopt.training.split.server import server_gradients
from tests.training.small_tasks import assert_near
from tests.training.split_tasks import Replica, problem_of, run, set_to_mean, task

EXACT = 1e-12
SPLIT = (VanillaSplit, ParallelSplit, SplitFed, SplitFedV2)
CUTS = [("mlp", cut) for cut in (1, 2, 3, 4)] + [("cnn", cut) for cut in (1, 2, 3)]


def plan(**options: Any) -> RoundPlan:
    fields: dict[str, Any] = {"client": range(3), "batch_size": [2, 3, 4], "cut_layer": [1, 3, 2]}
    return RoundPlan(**(fields | options))


# --- one step ----------------------------------------------------------------------------------------------------


def split_gradient(own: Task, cut: int, client: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the gradient by all weights, from one step of client and server, and the server's loss."""
    algorithm = SplitFed(Sgd(1.0))
    batch, weights = own.batch(client, Batches(0, 0, 1, 4)), own.initial_weights()
    values = {"cut": cut}
    sent, state = algorithm.client(own, Message("forward", values=values), {}, batch)
    down, gradients, loss = {}, {}, torch.zeros(())
    if cut < own.num_layers:
        smashed = (sent["activations"]["outputs"], sent["labels"]["targets"])
        found = server_gradients(own, cut, own.part(weights, cut), smashed)
        down, gradients, loss = {"gradients": {"outputs": found.gradient}}, found.gradients, found.loss
    _, state = algorithm.client(own, Message("backward", down, values), state, batch)  # type: ignore[arg-type]
    below = {name: weights[name] - new for name, new in state["weights"].items() if name in own.parameters}  # type: ignore[union-attr]
    return {**below, **gradients}, loss


@pytest.mark.parametrize(("kind", "cut"), CUTS)
def test_gradient_is_that_of_the_whole_model(kind: str, cut: int):
    """At every cut, client and server together have the gradient that torch has for the whole model."""
    own = task(kind)
    gradient, loss = split_gradient(own, cut)
    inputs, targets = (x[0] for x in own.batch(0, Batches(0, 0, 1, 4)))
    expected = F.cross_entropy(own.model(inputs), targets)
    wanted = dict(
        zip(
            dict(own.model.named_parameters()), torch.autograd.grad(expected, list(own.model.parameters())), strict=True
        )
    )
    assert_near(dict(sorted(gradient.items())), dict(sorted(wanted.items())), EXACT)
    if cut < own.num_layers:
        torch.testing.assert_close(loss, expected.detach(), rtol=EXACT, atol=0)


@pytest.mark.parametrize("cut", [1, 4])
def test_balance_loss_of_both_parts_counts(cut: int):
    """In a mixture-of-experts model, layers on both sides of the cut add their balance loss to the gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = moe_decoder(vocabulary=4, context=6, width=8, depth=2, heads=2, hidden=8, experts=4)
    base = task(dtype=torch.float32)
    tokens = torch.randint(4, (24, 6), generator=torch.Generator().manual_seed(1))
    data = type(base.train)(tokens, tokens.roll(1, 1), 4, "tokens")
    own = Task(model=model, train=data, partition=base.partition, test=data, balance=0.5)
    gradient, _ = split_gradient(own, cut)
    inputs, targets = (x[0] for x in own.batch(0, Batches(0, 0, 1, 4)))
    parameters = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
    loss, _ = own.batch_loss(parameters, inputs, targets)
    wanted = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    assert_near(dict(sorted(gradient.items())), dict(sorted(wanted.items())), 1e-5)


def normed() -> nn.Sequential:
    """Return a model with buffers in two layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU())
        return nn.Sequential(block, nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), nn.Linear(5, 4)).double()


@pytest.mark.parametrize("algorithm", SPLIT)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_buffers_count_each_batch_once(algorithm: type[Algorithm], cut: int):
    """Running means are those of one pass per step, though clients run their layers twice."""
    own = task(model=normed(), sizes=(9,))
    history = run(
        own, algorithm(optimizer=Sgd(0.2)), RoundPlan(client=[0], batch_size=4, cut_layer=cut, local_steps=2), rounds=2
    )  # type: ignore[call-arg]
    reference = Replica(own, 0.2)
    for number in range(2):
        for step in range(2):
            reference.step(0, number, step, 4)
    assert_near(history.models[0], reference.weights, EXACT)


@pytest.mark.parametrize("algorithm", SPLIT)
def test_parts_without_weights(algorithm: type[Algorithm]):
    """A client whose layers have no weights only computes them; so does a server."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh()).double()
    own = task(model=model, sizes=(9, 9))
    for cut in (1, 2):
        history = run(own, algorithm(), RoundPlan(client=[0, 1], batch_size=4, cut_layer=cut), rounds=2)  # type: ignore[call-arg]
        assert np.isfinite(history.rows[-1]["train_loss"])
        assert history.rows[-1]["completed"] == 2


# --- one client --------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("algorithm", [VanillaSplit, ParallelSplit, SplitFedV2])
@pytest.mark.parametrize(("kind", "cut"), CUTS)
def test_one_client_is_sgd(algorithm: type[Algorithm], kind: str, cut: int):
    """With one client, every algorithm at every cut gives the weights of SGD with momentum on the whole model."""
    own = task(kind, sizes=(9,))
    whole = RoundPlan(client=[0], batch_size=3, cut_layer=cut, local_steps=2)
    history = run(own, algorithm(optimizer=Sgd(0.2, 0.9)), whole, rounds=3)  # type: ignore[call-arg]
    reference = Replica(own, 0.2, 0.9)
    for number in range(3):
        for step in range(2):
            reference.step(0, number, step, 3)
    assert_near(history.models[0], reference.weights, EXACT)


# --- several clients ---------------------------------------------------------------------------------------------


def test_vanilla_is_sgd_over_the_clients_in_turn():
    """Vanilla split learning is plain SGD on the clients' batches, in the order of the plan, whatever the cuts."""
    own = task()
    order = plan(client=[2, 0, 1], local_steps=[1, 2, 1])
    history = run(own, VanillaSplit(Sgd(0.2)), order, rounds=2)
    reference = Replica(own, 0.2)
    for number in range(2):
        for planned in order:
            for step in range(planned.local_steps):
                reference.step(planned.client, number, step, planned.batch_size)
    assert_near(history.models[0], reference.weights, EXACT)
    turns = [["hand over", *steps * ("forward", "backward"), "hand back"] for steps in (1, 2, 1)]
    assert [phase.name for phase in history.last.phases] == [name for turn in turns for name in turn]
    assert history.rows[0]["weights_up"] == history.rows[0]["weights_down"] > 0


def joined(
    own: Task, stems: list[Replica], shared: nn.Sequential, cuts: list[int], client: int, number: int
) -> torch.Tensor:
    """Return the loss of a client whose first layers are its own, and the others shared."""
    inputs, targets = (x[0] for x in own.batch(client, Batches(number, 0, 1, [2, 3, 4][client])))
    return F.cross_entropy(shared[cuts[client] :](stems[client].net[: cuts[client]](inputs)), targets)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_parallel_split_with_different_cuts(weighting: Any):
    """The server steps with the mean gradient of each layer over those for whom it is there; stems stay their own."""
    own, cuts = task(), [1, 3, 2]
    history = run(own, ParallelSplit(Sgd(0.2), weighting=weighting), plan(), rounds=3)
    shares = [1.0] * 3 if weighting == "uniform" else [9.0, 7.0, 8.0]
    stems, shared = [Replica(own, 0.2) for _ in range(3)], Replica(own, 0.2).net
    for number in range(3):
        found: dict[nn.Parameter, list[tuple[float, torch.Tensor]]] = {}
        for client in range(3):
            above = list(shared[cuts[client] :].parameters())
            below = list(stems[client].net[: cuts[client]].parameters())
            loss = joined(own, stems, shared, cuts, client, number)
            for parameter, gradient in zip(above + below, torch.autograd.grad(loss, above + below), strict=True):
                found.setdefault(parameter, []).append((shares[client], gradient))
        for parameter, gradients in found.items():
            mean = sum(share * gradient for share, gradient in gradients) / sum(share for share, _ in gradients)
            parameter.data -= 0.2 * mean
    assert len(history.models) == 3
    for client, model in enumerate(history.models):
        layers = [stems[client].net if layer < cuts[client] else shared for layer in range(4)]
        for name, value in model.items():
            layer = own.layer_of[name]
            torch.testing.assert_close(value, layers[layer].state_dict()[name], rtol=EXACT, atol=EXACT)


def test_second_version_with_different_cuts():
    """The server steps from client to client; an aggregation counts its version for each client that has no own."""
    own, cuts, shares = task(), [1, 3, 2], [9.0, 7.0, 8.0]
    plans = [plan(aggregate=number == 1) for number in range(3)]
    history = run(own, SplitFedV2(Sgd(0.2)), *plans)
    stems, shared = [Replica(own, 0.2) for _ in range(3)], Replica(own, 0.2)

    def whole() -> list[Replica]:
        copies = [Replica(own, 0.2, net=shared.net) for _ in range(3)]
        for client, copy in enumerate(copies):
            for layer in range(cuts[client]):
                copy.net[layer].load_state_dict(stems[client].net[layer].state_dict())
        return copies

    for number in range(3):
        for client in range(3):
            above = list(shared.net[cuts[client] :].parameters())
            below = list(stems[client].net[: cuts[client]].parameters())
            # clients ran their layers before the server's first step: own layers, so that nothing else matters
            loss = joined(own, stems, shared.net, cuts, client, number)
            for parameter, gradient in zip(above + below, torch.autograd.grad(loss, above + below), strict=True):
                parameter.data -= 0.2 * gradient
        if plans[number].aggregate:
            copies = whole()
            set_to_mean(copies, shares, 0, 3)
            for replica in (*stems, shared):
                replica.net.load_state_dict(copies[0].net.state_dict())
    copies = whole()
    set_to_mean(copies, shares, 0, 3)
    assert_near(history.models[0], copies[0].weights, EXACT)


def test_versions_agree_for_one_client():
    """With one client, SplitFed V1 and V2 are the same training."""
    own = task(sizes=(9,), dtype=torch.float32)
    plans = [RoundPlan(client=[0], batch_size=3, cut_layer=2, local_steps=2, aggregate=r % 2 == 1) for r in range(3)]
    first, second = (run(own, algorithm(Sgd(0.2, 0.9)), *plans) for algorithm in (SplitFed, SplitFedV2))
    assert_near(first.models[0], second.models[0])
    for name in ("seconds", "bytes_up", "bytes_down", "energy_j"):
        np.testing.assert_array_equal(first.column(name), second.column(name))


def test_versions_cost_the_same_with_equal_cuts():
    """With equal cuts, the edge server has nothing to send in an aggregation; with others, V2 sends one version."""
    own = task(dtype=torch.float32)
    equal = [run(own, algorithm(), plan(cut_layer=2)).rows[0]["seconds"] for algorithm in (SplitFed, SplitFedV2)]
    assert equal[0] == equal[1]
    slow = EdgeTiming.from_problem(problem_of(own)).replace(server_fed_uplink_bps=1e3, server_fed_downlink_bps=1e9)
    first, second = (run(own, algorithm(), plan(), timing=slow).last.phases[2] for algorithm in (SplitFed, SplitFedV2))
    layer2, layer3 = 32 * 6 * (7 + 1), 32 * 5 * (6 + 1)  # bits
    np.testing.assert_allclose([first.seconds, second.seconds], [(layer2 + 2 * layer3) / 1e3, (layer2 + layer3) / 1e3])


# --- what all of them must bear ----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", SPLIT)
def test_batched_is_sequential(algorithm: type[Algorithm]):
    """Clients as one batch and one after another give the same weights up to rounding."""
    own = task("cnn", sizes=(9, 7, 8, 7))
    together = plan(client=range(4), batch_size=3, cut_layer=[1, 1, 2, 2], local_steps=2)
    plans = [together.replace(aggregate=number == 1) for number in range(2)]
    found = [run(own, algorithm(optimizer=Sgd(0.2, 0.9)), *plans, runner=LocalRunner(batched=b)) for b in (True, False)]  # type: ignore[call-arg]
    for first, second in zip(found[0].models, found[1].models, strict=True):
        assert_near(first, second, EXACT)


@pytest.mark.parametrize("algorithm", SPLIT)
def test_plans_that_make_no_sense(algorithm: type[Algorithm]):
    """A cut above the model, or a client with two entries, is refused with its place."""
    own = task(dtype=torch.float32)
    with pytest.raises(InvalidProblemError, match=r"round 0: cut_layer\[1\] = 5: expected 1 to 4"):
        run(own, algorithm(), plan(cut_layer=[1, 5, 2]))
    with pytest.raises(InvalidProblemError, match="client 1 is planned by two servers"):
        run(own, algorithm(), RoundPlan(client=[0, 1, 1], server=[0, 0, 1]))
    with pytest.raises(InvalidProblemError, match="cut_layer"):
        algorithm(cut_layer=0)  # type: ignore[call-arg]


def test_parallel_split_moves_cuts():
    """A client that needs more layers gets the server's; one that gives layers up drops them; nothing else is sent."""
    own = task(dtype=torch.float32)
    history = run(own, ParallelSplit(), plan(cut_layer=[1, 3, 2]), plan(cut_layer=[2, 1, 2]), plan(cut_layer=[2, 1, 2]))
    assert history.column("weights_up").tolist() == [0, 0, 0]
    assert history.column("weights_down").tolist() == [0, 4 * 6 * (7 + 1), 4 * 6 * (7 + 1)]


def test_states_of_optimisers():
    """Parts, overlays and averages of nested states go by the names at the leaves."""
    state = {
        "mean": {"a": torch.ones(2), "b": torch.zeros(1)},
        "steps": {"a": torch.tensor(2.0), "b": torch.tensor(0.0)},
    }
    part = leaves_in(state, {"a"})  # type: ignore[arg-type]
    assert {name: list(value) for name, value in part.items()} == {"mean": ["a"], "steps": ["a"]}
    merged = overlay(state, {"mean": {"b": torch.tensor([5.0])}})  # type: ignore[arg-type]
    assert (merged["mean"]["a"].tolist(), merged["mean"]["b"].tolist()) == ([1, 1], [5])  # type: ignore[call-overload,index]
    average = average_states([state, merged], [3.0, 1.0])  # type: ignore[list-item]
    assert average["mean"]["b"].tolist() == [1.25]  # type: ignore[call-overload,index]
    assert leaves_in({}, {"a"}) == overlay({}, {}) == average_states([{}], [1.0]) == {}
