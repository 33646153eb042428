"""SplitFed V1: it is what its definition says, costs what the problem says, and survives failures and moving cuts."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt import RoundPlan
from edgeopt.problems import SplitPlan
from edgeopt.training import Adam, EdgeTiming, LocalRunner, Sgd
from edgeopt.training.algorithms import SplitFed
from tests.training.small_tasks import assert_near
from tests.training.split_tasks import Replica, problem_of, run, set_momentum_to_mean, set_to_mean, task

EXACT = 1e-12


def plan(**options: Any) -> RoundPlan:
    fields: dict[str, Any] = {"client": range(3), "batch_size": [2, 3, 4], "cut_layer": [1, 3, 2]}
    return RoundPlan(**(fields | options))


def stored(history: Any) -> dict[str, Any]:
    return {name: history.server["placement"][name].tolist() for name in ("held", "changed")}


# --- what it computes --------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("momentum", "every"), [(0.0, 2), (0.9, 1), (0.9, 2)])
@pytest.mark.parametrize(("kind", "cut"), [("mlp", c) for c in (1, 2, 3, 4)] + [("cnn", c) for c in (1, 2, 3)])
def test_one_client_is_sgd(kind: str, cut: int, momentum: float, every: int):
    """With one client, every cut gives the weights of plain SGD on the whole model, over aggregations and local steps."""
    own = task(kind, sizes=(9,))
    plans = [
        RoundPlan(client=[0], batch_size=3, cut_layer=cut, local_steps=2, aggregate=(r + 1) % every == 0)
        for r in range(3)
    ]
    history = run(own, SplitFed(Sgd(0.2, momentum)), *plans)
    reference = Replica(own, 0.2, momentum)
    losses = [np.mean([reference.step(0, number, step, 3) for step in range(2)]) for number in range(3)]
    assert_near(history.models[0], reference.weights, EXACT)
    np.testing.assert_allclose(history.column("train_loss"), losses, rtol=1e-6)


def test_one_client_is_adamw():
    """With one client and Adam, the weights are those of torch.optim.AdamW."""
    own = task(sizes=(9,))
    history = run(own, SplitFed(Adam(0.01)), RoundPlan(client=[0], batch_size=3, cut_layer=2), rounds=4)
    reference = Replica(own, 0.01)
    reference.optimizer = torch.optim.AdamW(reference.net.parameters(), lr=0.01, weight_decay=0.0)  # type: ignore[assignment]
    for number in range(4):
        reference.step(0, number, 0, 3)
    assert_near(history.models[0], reference.weights, 1e-6)  # the count of steps is in single precision


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_equal_cuts_are_sgd_on_all_batches(cut: int):
    """With equal cuts and batch sizes, uniform weights and aggregation, a round is one step on the union of the batches."""
    own = task()
    history = run(
        own,
        SplitFed(Sgd(0.3), batch_size=4, cut_layer=cut, weighting="uniform"),
        plan(batch_size=0, cut_layer=0),
        rounds=3,
    )
    reference = Replica(own, 0.3)
    for number in range(3):
        start, moved = reference.weights, []
        for client in range(3):
            one = Replica(own, 0.3)
            one.net.load_state_dict(start)
            one.step(client, number, 0, 4)
            moved.append(one.weights)
        # the gradient of the mean loss of batches of equal size is the mean of their gradients
        reference.net.load_state_dict({name: torch.stack([m[name] for m in moved]).mean(0) for name in start})
    assert_near(history.models[0], reference.weights, EXACT)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("steps", [1, [1, 3, 2]])
def test_different_cuts_and_batches(weighting: Any, momentum: float, steps: Any):
    """With different cuts, batch sizes and steps it is what torch's modules give, between and after aggregations."""
    own, cuts, sizes, rounds = task(), [1, 3, 2], [2, 3, 4], 5
    plans = [plan(local_steps=steps, aggregate=number % 3 == 2) for number in range(rounds)]
    history = run(own, SplitFed(Sgd(0.2, momentum), weighting=weighting), *plans)
    shares = [1.0] * 3 if weighting == "uniform" else [9.0, 7.0, 8.0]
    replicas = [Replica(own, 0.2, momentum) for _ in range(3)]
    for number in range(rounds):
        for client, replica in enumerate(replicas):
            for step in range(np.broadcast_to(steps, 3)[client]):
                replica.step(client, number, step, sizes[client])
        set_to_mean(replicas, shares, 0 if plans[number].aggregate else 3, 4)
        for layer in range(4):
            at_server = [client for client in range(3) if cuts[client] <= layer]
            if momentum and (layer >= 3 or plans[number].aggregate):
                set_momentum_to_mean([replicas[c] for c in at_server], [shares[c] for c in at_server], layer)
    set_to_mean(replicas, shares, 0, 4)  # the model that is judged between aggregations
    assert_near(history.models[0], replicas[0].weights, EXACT)


def test_copies_kept_from_a_batch_do_not_keep_the_batch():
    """What the server keeps of a client between aggregations, weights and optimiser, has memory of its own."""
    history = run(task(), SplitFed(Sgd(0.1, momentum=0.9)), plan(batch_size=3, cut_layer=[1, 1, 3], aggregate=False))
    copies = history.server["copies"]
    assert set(copies) == {"0", "1"}
    for copy in copies.values():
        for tensor in (*copy["weights"].values(), *copy["optimizer"]["momentum"].values()):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_batched_is_sequential():
    """Clients as one batch and one after another give the same weights up to rounding."""
    plans = [
        plan(client=range(4), batch_size=3, cut_layer=[1, 1, 2, 2], local_steps=2, aggregate=r == 1) for r in range(3)
    ]
    for kind in ("mlp", "cnn"):
        own = task(kind, sizes=(9, 7, 8, 7))
        found = [run(own, SplitFed(Sgd(0.2, 0.9)), *plans, runner=LocalRunner(batched=b)) for b in (True, False)]
        assert_near(found[0].models[0], found[1].models[0], EXACT)
        np.testing.assert_allclose(found[0].column("train_loss"), found[1].column("train_loss"), rtol=1e-6)
        for name in ("seconds", "bytes_up", "bytes_down"):
            np.testing.assert_array_equal(found[0].column(name), found[1].column(name))


# --- what it costs -----------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.lists(st.integers(1, 7), min_size=3, max_size=3),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_time_is_that_of_the_problem(cuts: list[int], sizes: list[int], interval: int, seed: int):
    """A round lasts T_S, an aggregation T_A, and the mean over an interval is what the objective charges per round."""
    own = task(dtype=torch.float32)
    problem = problem_of(own, seed)
    split = SplitPlan(batch_size=sizes, cut_layer=cuts, aggregation_interval=interval)
    report = problem.report(split)
    planner = split.planner()
    history = run(
        own, SplitFed(), *(planner.plan(r) for r in range(2 * interval)),
        timing=EdgeTiming.from_problem(problem), evaluate_every=100,
    )  # fmt: skip
    expected = [report.round_s + report.aggregation_s * ((r + 1) % interval == 0) for r in range(2 * interval)]
    np.testing.assert_allclose(history.column("round_seconds"), expected, rtol=1e-9)
    per_round = history.rows[-1]["seconds"] / (2 * interval)
    np.testing.assert_allclose(per_round, report.round_s + report.aggregation_s / interval, rtol=1e-9)
    if np.isfinite(report.total_s):
        np.testing.assert_allclose(per_round * report.rounds, report.total_s, rtol=1e-9)


def test_bytes_by_hand():
    """Every tensor is charged with its size, in its direction and category."""
    own = task(dtype=torch.float32)
    history = run(own, SplitFed(), plan(aggregate=False), plan(aggregate=True))
    # layers 16 -> 7 -> 6 -> 5 -> 4; batches of 2, 3, 4 are cut after widths 7, 5, 6
    activations = 2 * 4 * (2 * 7 + 3 * 5 + 4 * 6)  # two rounds of float32
    first, second, third = 4 * 7 * (16 + 1), 4 * 6 * (7 + 1), 4 * 5 * (6 + 1)
    weights = first + (first + second + third) + (first + second)
    labels = 2 * 8 * (2 + 3 + 4)  # int64
    row = history.rows[-1]
    assert {name: row[f"{name}_up"] for name in ("weights", "activations", "gradients", "labels", "scalars")} == {
        "weights": weights, "activations": activations, "gradients": 0, "labels": labels, "scalars": 0,
    }  # fmt: skip
    assert (row["gradients_down"], row["weights_down"], row["activations_down"]) == (activations, weights, 0)
    assert row["bytes_up"] == weights + activations + labels
    assert row["bytes_down"] == weights + activations
    phases = history.last.phases
    assert [phase.name for phase in phases] == ["forward", "backward", "collect", "distribute"]


def test_alone_is_silent():
    """A client that has all layers sends only its loss, and the server does nothing."""
    history = run(task(dtype=torch.float32), SplitFed(), plan(cut_layer=4, aggregate=False))
    row = history.rows[0]
    assert (row["bytes_up"], row["bytes_down"]) == (row["scalars_up"], 0) == (12, 0)
    assert all(phase.server_s.sum() == 0 for phase in history.last.phases)


# --- interruptions, failures, moves ------------------------------------------------------------------------------


def lost_in(own: Any, *rounds: tuple[int, ...]) -> EdgeTiming:
    """Return a timing in which some clients are lost in each round."""

    class Losing(EdgeTiming):
        def lost(self, round: int, plan: RoundPlan) -> Any:
            return np.isin(plan.client, rounds[round] if round < len(rounds) else ())

    return Losing.from_problem(problem_of(own))


def test_failed_client_is_left_out():
    """A round with a failed client is one without it; later the client gets the average, which is charged."""
    own = task(dtype=torch.float32)
    history = run(own, SplitFed(), plan(), timing=lost_in(own, (1,)))
    others = run(own, SplitFed(), plan(client=[0, 2], batch_size=[2, 4], cut_layer=[1, 2]))
    for name in history.models[0]:
        torch.testing.assert_close(history.models[0][name], others.models[0][name], rtol=1e-6, atol=1e-7)
    assert history.rows[0]["completed"] == 2
    assert stored(history) == {"held": [1, 0, 2], "changed": [0, 0, 0]}
    back = run(own, SplitFed(), plan(), plan(), timing=lost_in(own, (1,)))
    assert [phase.name for phase in back.last.phases] == ["sync", "forward", "backward", "collect", "distribute"]
    assert back.last.phases[0].entry.tolist() == [1]
    assert stored(back) == {"held": [1, 3, 2], "changed": [0, 0, 0]}


def test_failed_client_starts_from_the_last_average():
    """Between aggregations, a client that fails loses what it has learnt since, and its copies at the server are gone."""
    own = task()
    plans = [plan(aggregate=r == 3) for r in range(4)]
    history = run(own, SplitFed(Sgd(0.2)), *plans, timing=lost_in(own, (), (0,)))
    replicas = [Replica(own, 0.2) for _ in range(3)]
    shares = [9.0, 7.0, 8.0]
    for number in range(4):
        there = [c for c in range(3) if (number, c) != (1, 0)]
        for client in there:
            replicas[client].step(client, number, 0, [2, 3, 4][client])
        set_to_mean([replicas[c] for c in there], [shares[c] for c in there], 0 if number == 3 else 3, 4)
        if number == 1:  # client 0 starts anew from the initial layers 1 to 3, and from the common layer 4
            replicas[0] = Replica(own, 0.2)
            replicas[0].net[3].load_state_dict(replicas[1].net[3].state_dict())
    assert_near(history.models[0], replicas[0].weights, EXACT)


def test_cuts_move_after_an_aggregation():
    """Moved cuts change nothing in what is learnt; only layers that a client lacks are sent, once, and charged."""
    own = task()
    shares = [9.0, 7.0, 8.0]
    plans = [plan(), plan(cut_layer=[3, 1, 2]), plan(cut_layer=[3, 1, 2])]
    history = run(own, SplitFed(Sgd(0.2)), *plans)
    replicas = [Replica(own, 0.2) for _ in range(3)]
    for number in range(3):
        for client, replica in enumerate(replicas):
            replica.step(client, number, 0, [2, 3, 4][client])
        set_to_mean(replicas, shares, 0, 4)
    assert_near(history.models[0], replicas[0].weights, EXACT)
    down = np.diff(history.column("weights_down"))
    assert down[0] - down[1] == 8 * (6 * (7 + 1) + 5 * (6 + 1))  # layers 2 and 3 for client 0, as float64
    assert history.column("weights_up").tolist() == [1 / 3 * n * history.column("weights_up")[2] for n in (1, 2, 3)]


def test_cuts_move_inside_an_interval():
    """Layers that a client has trained go to the server with their weights, and come back so."""
    own = task()
    plans = [plan(cut_layer=cuts, aggregate=False) for cuts in ([1, 3, 2], [3, 1, 2], [1, 2, 4])] + [plan()]
    history = run(own, SplitFed(Sgd(0.2)), *plans)
    shares, deepest = [9.0, 7.0, 8.0], [3, 3, 4, 0]  # since the last aggregation; then all layers are averaged
    replicas = [Replica(own, 0.2) for _ in range(3)]
    for number in range(4):
        for client, replica in enumerate(replicas):
            replica.step(client, number, 0, [2, 3, 4][client])
        set_to_mean(replicas, shares, deepest[number], 4)
    assert_near(history.models[0], replicas[0].weights, EXACT)


def test_new_clients_in_an_interval():
    """A client that joins inside an interval has the last average up to the deepest cut, and the common layers above."""
    own = task()
    some = {"aggregate": False, "batch_size": 3}
    plans = [
        RoundPlan(client=[0], cut_layer=1, **some),
        RoundPlan(client=[1], cut_layer=2, **some),
        RoundPlan(client=[0, 1, 2], cut_layer=[1, 2, 1], batch_size=3),
    ]
    history = run(own, SplitFed(Sgd(0.2)), *plans)
    zero, one, two = (Replica(own, 0.2) for _ in range(3))
    zero.step(0, 0, 0, 3)
    for layer in (1, 2, 3):  # above cut 1, layers were common in round 0
        for other in (one, two):
            other.net[layer].load_state_dict(zero.net[layer].state_dict())
    one.step(1, 1, 0, 3)
    for layer in (2, 3):
        for other in (zero, two):
            other.net[layer].load_state_dict(one.net[layer].state_dict())
    for client, replica in enumerate((zero, one, two)):
        replica.step(client, 2, 0, 3)
    set_to_mean([zero, one, two], [9.0, 7.0, 8.0], 0, 4)
    assert_near(history.models[0], zero.weights, EXACT)


def test_common_layers_are_kept_once():
    """The server's state has copies of layers between cut and deepest cut only, and none after an aggregation."""
    own = task(dtype=torch.float32)
    history = run(own, SplitFed(), plan(aggregate=False))
    layers = {
        client: {name.split(".")[0] for name in copy["weights"]} for client, copy in history.server["copies"].items()
    }
    assert layers == {"0": {"hidden2", "hidden3"}, "2": {"hidden3"}}
    assert run(own, SplitFed(), plan()).server["copies"] == {}
