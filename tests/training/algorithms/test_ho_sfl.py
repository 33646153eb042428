"""HO-SFL and pure zeroth-order split learning: what they compute by a second implementation, what they send, keep and cost.

The second implementation has torch's own modules, optimisers and autograd, and loops over clients and probes.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import edgeopt
from edgeopt import RoundPlan
from edgeopt.data import digits, iid
from edgeopt.errors import InvalidProblemError
from edgeopt.models import mlp
from edgeopt.problems import SplitPlan
from edgeopt.rng import stream
from edgeopt.training import (
    Adam,
    Algorithm,
    Batches,
    EdgeTiming,
    History,
    HoSfl,
    LocalRunner,
    Message,
    Sgd,
    SplitFed,
    Task,
    TrainingError,
    ZoSfl,
    client_peak_bytes,
)
from edgeopt.training.keys import fold_in, normal, rademacher
from edgeopt.training.messages import Tensors
from edgeopt.training.rules.common import tensors_of
from edgeopt.training.rules.optimizer_state import leaves_in
from edgeopt.training.split.replay import ReplayServer, retrace
from edgeopt.training.states import flatten
from tests.training import split_tasks
from tests.training.recording import Recording
from tests.training.small_tasks import assert_near, assert_same
from tests.training.split_tasks import problem_of, run, task

DRAWS = {"gaussian": normal, "rademacher": rademacher}
both = pytest.mark.parametrize("kind", [HoSfl, ZoSfl], ids=lambda kind: kind.name)


def plan(**options: Any) -> RoundPlan:
    fields: dict[str, Any] = {"client": range(3), "batch_size": [2, 3, 4], "cut_layer": [1, 3, 2]}
    return RoundPlan(**(fields | options))


# --- the same with torch's modules and loops -------------------------------------------------------------------------


class Oracle:
    """One model that everybody has; its layers up to the deepest cut are moved by what probes have measured."""

    def __init__(self, of: Task, algorithm: Any) -> None:
        self.task, self.algorithm = of, algorithm
        self.net = copy.deepcopy(of.model)
        given = algorithm.optimizer
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(self.net.parameters(), lr=given.lr, momentum=given.momentum)
            if isinstance(given, Sgd)
            else torch.optim.AdamW(self.net.parameters(), lr=given.lr, weight_decay=0.0)
        )

    def direction(self, seed: torch.Tensor, p: int) -> list[torch.Tensor]:
        """Return the direction of a probe for the parameters of the whole model."""
        own = list(self.net.parameters())
        row = DRAWS[self.algorithm.distribution](
            fold_in(seed, p), (sum(value.numel() for value in own),), torch.float64
        )
        return [part.reshape(value.shape) for part, value in zip(row.split([v.numel() for v in own]), own, strict=True)]

    def moved(self, seed: torch.Tensor, p: int, layers: int) -> nn.Sequential:
        """Return the first layers at a probe."""
        net = copy.deepcopy(self.net)[:layers]
        for value, one in zip(net.parameters(), self.direction(seed, p), strict=False):
            value.data += self.algorithm.mu * one
        return net

    def step(self, number: int, step: int, clients: Sequence[int], plan: RoundPlan) -> None:
        """Take one step with some clients."""
        seed = torch.tensor(int(stream(self.task.seed, "probes", number, step).integers(1 << 62)))
        probes, layers = self.algorithm.probes, len(self.net)
        whole = isinstance(self.algorithm, ZoSfl)
        cuts = {client: int(plan.cut_layer[client]) for client in clients}
        deepest = layers if whole else max(cuts.values())
        numbers: dict[int, list[float]] = {}
        gradients: dict[int, list[torch.Tensor]] = {}  # of the whole model, exact
        for client, cut in cuts.items():
            inputs, targets = (
                x[0] for x in self.task.batch(client, Batches(number, step, 1, int(plan.batch_size[client])))
            )
            gradients[client] = list(
                torch.autograd.grad(F.cross_entropy(self.net(inputs), targets), self.net.parameters())
            )
            if whole or cut == layers:
                numbers[client] = [
                    (
                        F.cross_entropy(self.moved(seed, p, layers)(inputs), targets)
                        - F.cross_entropy(self.net(inputs), targets)
                    ).item()
                    for p in range(probes)
                ]
                continue
            z = self.net[:cut](inputs).detach().requires_grad_()
            (cut_gradient,) = torch.autograd.grad(F.cross_entropy(self.net[cut:](z), targets), z)
            numbers[client] = [
                (cut_gradient * (self.moved(seed, p, cut)(inputs) - z)).sum().item() for p in range(probes)
            ]
        shares = {
            c: 1.0 if self.algorithm.weighting == "uniform" else len(self.task.partition.indices[c]) for c in clients
        }
        total = sum(shares.values())
        estimates: list[torch.Tensor] = []
        layer_of = [index for index, layer in enumerate(self.net) for _ in layer.parameters()]
        for k, (value, layer) in enumerate(zip(self.net.parameters(), layer_of, strict=True)):
            gradient = torch.zeros_like(value)
            ends = sorted({layers} if whole else set(cuts.values()))
            for client, share in shares.items():
                if layer >= deepest:
                    gradient += share / total * gradients[client][k]
                    continue
                end = next(end for end in ends if layer < end)
                first = max((e for e in ends if e < end), default=0)
                for p in range(probes):
                    own = self.direction(seed, p)
                    number = numbers[client][p]
                    if cuts[client] < end and not whole:  # the server knows the gradient of this part
                        part = [j for j, at in enumerate(layer_of) if first <= at < end]
                        number = self.algorithm.mu * sum(float((gradients[client][j] * own[j]).sum()) for j in part)
                    gradient += share / total * number * own[k] / (probes * self.algorithm.mu)
            estimates.append(gradient.detach())
        below = [g for g, layer in zip(estimates, layer_of, strict=True) if layer < deepest]
        norm = float(torch.stack([(g**2).sum() for g in below]).sum().sqrt())
        for value, gradient, layer in zip(self.net.parameters(), estimates, layer_of, strict=True):
            value.grad = gradient * min(1.0, self.algorithm.clip / norm) if layer < deepest else gradient
        self.optimizer.step()

    @property
    def weights(self) -> Tensors:
        """The model's parameters."""
        return {name: value.detach() for name, value in self.net.state_dict().items()}


def assert_is_the_oracle(algorithm: Any, plans: Sequence[RoundPlan]) -> None:
    of = task()
    history, oracle = run(of, algorithm, *plans), Oracle(of, algorithm)
    for number, one in enumerate(plans):
        steps = np.broadcast_to(one.local_steps, len(one))
        for step in range(int(steps.max())):
            oracle.step(number, step, [c for c in range(3) if steps[c] > step], one)
    assert_near(history.models[0], oracle.weights, 2e-6)  # numbers cross in single precision


@pytest.mark.sampled(3)
@both
@pytest.mark.parametrize("distribution", DRAWS)
@pytest.mark.parametrize("optimizer", [Sgd(0.1, 0.9), Adam(0.01)], ids=["sgd", "adam"])
@pytest.mark.parametrize("cuts", [[1, 1, 1], [2, 2, 2], [1, 3, 2], [4, 2, 1]], ids=str)
def test_it_learns_what_loops_over_clients_and_probes_learn(kind: Any, cuts: Any, optimizer: Any, distribution: Any):
    """Equal and different cuts, one of them the last layer; numbers of clients, and gradients of the server."""
    algorithm = kind(probes=3, mu=1e-3, distribution=distribution, clip=0.3, optimizer=optimizer)
    assert_is_the_oracle(algorithm, [plan(cut_layer=cuts)] * 3)


@both
def test_with_other_steps_weights_and_without_clipping(kind: Any):
    """Clients of a round have different steps, count alike, cuts move, and estimates are as long as they are."""
    algorithm = kind(probes=2, clip=np.inf, optimizer=Sgd(0.02, 0.5), weighting="uniform")
    cuts = ([1, 3, 2], [2, 1, 3], [1, 1, 1], [3, 2, 1])
    assert_is_the_oracle(algorithm, [plan(cut_layer=cut, local_steps=[2, 1, 3]) for cut in cuts])


def test_lambda_is_the_gradient_of_the_clients_own_mean_loss():
    """Whatever the number of clients and their weights are."""
    of, runner = task(), Recording()
    run(of, HoSfl(cut_layer=2), plan(cut_layer=0), runner=runner)
    for entry in range(3):
        ((message, _),) = runner.of("probe", entry)
        inputs, targets = (x[0] for x in of.batch(entry, Batches(0, 0, 1, [2, 3, 4][entry])))
        z = of.model[:2](inputs).detach().requires_grad_()
        (expected,) = torch.autograd.grad(F.cross_entropy(of.model[2:](z), targets), z)
        torch.testing.assert_close(message["gradients"]["outputs"], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_numbers_of_a_client_make_an_estimate_as_good_as_the_law(precision: Any):
    """With what a client replies to 256 probes of 1560 weights, also where its layers round to half precision."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = mlp((1, 8, 8), (24, 64))
    split = digits()
    of = Task(model=net, train=split.train, test=split.test, partition=iid(1347, 10, seed=0), precision=precision)
    algorithm, batches, cosines = HoSfl(probes=256), Batches(0, 0, 1, 32), []
    for client in range(4):
        inputs, targets = (x[0] for x in of.batch(client, batches))
        with of._autocast():
            z = net[:1](inputs).detach().requires_grad_()
            loss = F.cross_entropy(net[1:](z).float(), targets)
        (cut_gradient,) = torch.autograd.grad(loss, z)
        scalars = {"seed": torch.tensor(client)}
        message = Message("probe", {"gradients": {"outputs": cut_gradient}, "scalars": scalars}, {"cut": 1}, batches)
        answer, _ = algorithm.client(of, message, {}, of.batch(client, batches))
        own = {name: value.detach() for name, value in net[:1].named_parameters()}
        directions = algorithm.probing.directions(torch.tensor(client), own)
        estimate = algorithm.probing.estimate(directions, dict.fromkeys(own, answer["scalars"]["values"]))
        exact = torch.autograd.grad((net[:1](inputs) * cut_gradient.float()).sum(), list(net[:1].parameters()))
        found, true = (torch.cat([x.flatten() for x in each]) for each in (estimate.values(), exact))
        cosines.append(float(F.cosine_similarity(found, true, dim=0)))
    assert np.mean(cosines) == pytest.approx((1 + 1561 / 256) ** -0.5, abs=0.03)


@both
def test_batched_is_sequential(kind: Any):
    """Clients as one batch and one after another give the same weights, up to the rounding of numbers that cross."""
    plans = [plan(client=range(4), batch_size=3, cut_layer=[1, 1, 2, 2], local_steps=2)] * 3
    own = task(sizes=(9, 7, 8, 7))
    found = [run(own, kind(optimizer=Sgd(0.1, 0.9)), *plans, runner=LocalRunner(batched=b)) for b in (True, False)]
    assert_near(found[0].models[0], found[1].models[0], 1e-6)
    for name in ("seconds", "bytes_up", "bytes_down"):
        np.testing.assert_array_equal(found[0].column(name), found[1].column(name))


def test_dimension_free_numbers_go_up():
    """Up: activations, labels, and 4 P bytes per client and step, whatever the size of the layers. No weights travel."""
    for widths in ((7, 6), (70, 6)):
        net = mlp((1, 4, 4), widths, split_tasks.CLASSES)
        own = task(dtype=torch.float32, model=net)
        (row,) = run(own, HoSfl(probes=5), plan(cut_layer=1, local_steps=3, batch_size=2)).rows
        assert row["scalars_up"] == 3 * 3 * 4 * 5
        assert row["activations_up"] == row["gradients_down"] == 3 * 3 * 2 * 4 * widths[0]
        assert row["weights_up"] == row["weights_down"] == 0
        # a seed with each lambda; the second and third step bring seed and numbers of the one before
        assert row["scalars_down"] == 3 * (3 * 8 + 2 * (8 + 4 * 5))


def test_pure_zeroth_order_sends_activations_of_every_probe():
    """Up: activations of P + 1 passes; no gradient comes down."""
    (row,) = run(task(dtype=torch.float32), ZoSfl(probes=5), plan(cut_layer=1)).rows
    assert row["activations_up"] == 6 * 4 * 7 * (2 + 3 + 4)
    assert row["gradients_down"] == row["scalars_up"] == row["weights_up"] == 0


# --- clients without autograd ------------------------------------------------------------------------------------------


class Watched(nn.Module):
    """A layer that notes whether what it returns is part of a graph; copies of it note it in the same place."""

    seen: ClassVar[list[bool]] = []

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        self.seen.append(y.requires_grad or y.grad_fn is not None)
        return y


def client_work(algorithm: Algorithm, message: Message) -> tuple[int, list[bool], bool]:
    """Let a client work with weights that ask for gradients, where gradients are on.

    Return the bytes that autograd saves, for each output of a layer whether it has a graph, and whether the reply has.
    """
    net = nn.Sequential(
        nn.Sequential(nn.Flatten(), Watched(nn.Linear(16, 8)), nn.Tanh()), nn.Linear(8, split_tasks.CLASSES)
    )
    of = task(dtype=torch.float32, model=net)
    state: Any = {"weights": {name: w.requires_grad_() for name, w in of.part(of.initial_weights(), 0, 1).items()}}
    batch, saved = of.batch(0, message.batches), 0  # type: ignore[arg-type]

    def note(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    Watched.seen.clear()
    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        answer, after = algorithm.client(of, message, state, batch)
    assert all(value.grad_fn is None for value in after["weights"].values())  # type: ignore[union-attr]
    return saved, Watched.seen, any(x.requires_grad for category in answer for x in answer[category].values())


@both
def test_clients_make_no_graph_and_save_nothing(kind: Any):
    """Even where gradients are on and weights ask for them: no layer's output has a node, and hooks see no tensor."""
    batches, seed = Batches(0, 0, 1, 3), {"seed": torch.tensor(5)}
    missed = {"seeds 0": torch.tensor([1, 2]), "values 0": torch.ones(2, 1, 5)}
    forward = Message("forward", {"scalars": seed | missed}, {"cut": 1, "ends 0": "1"}, batches)
    gradient = {"outputs": torch.ones(3, 8)}
    probe = Message("probe", {"gradients": gradient, "scalars": seed | missed}, {"cut": 1, "ends 0": "1"}, batches)
    for message in (forward, probe)[: 1 + (kind is HoSfl)]:
        saved, seen, graph = client_work(kind(), message)
        assert (saved, graph, any(seen)) == (0, False, False)
        assert seen
    saved, seen, graph = client_work(SplitFed(), Message("forward", {}, {"cut": 1}, batches))  # that one does
    assert saved > 0
    assert graph
    assert all(seen)


def test_memory_of_clients_has_no_activations_for_a_backward_pass():
    """Weights, a second copy of them, the optimiser, and what crosses the cut; SplitFed keeps what hooks see."""
    of = task(dtype=torch.float32)
    first, second = 7 * 17, 6 * 8  # parameters of the layers at cut 2
    for optimizer, states in ((Sgd(), 0), (Sgd(momentum=0.9), 1), (Adam(), 2)):
        counts = 4 * (2 + states) * (first + second) + (8 * 4 if states == 2 else 0)  # Adam counts steps of 4 tensors
        counts -= 4 * 4 if states == 2 else 0
        peaks = [client_peak_bytes(of, samples, optimizer, cut=2, probes=True) for samples in (0, 10)]
        assert peaks == [counts, counts + 10 * 4 * 6]
        assert peaks[1] < client_peak_bytes(of, 10, optimizer, cut=2)
    assert client_peak_bytes(of, 10, cut=4, probes=True) == 2 * sum(v.nbytes for v in of.initial_weights().values())
    probing, backward = (
        run(of, algorithm, plan(cut_layer=2)).rows[0]["client_peak_bytes"] for algorithm in (HoSfl(), SplitFed())
    )
    assert probing == client_peak_bytes(of, 4, Sgd(), cut=2, probes=True) < backward


def test_layers_of_clients_behave_as_at_work():
    """No dropout, normalisation by what the model came with: its buffers stay, and those of the server's layers move."""

    def block(width: int, inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.Dropout(0.5))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), block(6, 16), block(5, 6), nn.Linear(5, split_tasks.CLASSES))
    of, runner = task(dtype=torch.float32, model=net), Recording()
    with pytest.warns(match="one after another"):
        history = run(of, HoSfl(), plan(cut_layer=[2, 2, 2]), plan(cut_layer=[1, 1, 2]), runner=runner)
    inputs = of.batch(0, Batches(0, 0, 1, 2)).inputs[0]
    sent = runner.of("forward", 0)[0][1]["activations"]["outputs"]
    torch.testing.assert_close(sent, copy.deepcopy(net).eval()[:2](inputs).detach())
    moved = {name for name, value in history.models[0].items() if not torch.equal(value, net.state_dict()[name])}
    parameters = {name for name, _ in net.named_parameters()}
    assert moved == parameters | {f"2.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


# --- absent clients -----------------------------------------------------------------------------------------------------


def assert_up_to_date(of: Task, algorithm: Any, history: History) -> None:
    """Check that every client, after the steps that it has still to take, has the server's bits, optimiser included."""
    server = ReplayServer.of(of, algorithm.optimizer, algorithm.probing, algorithm.clip, history.server)
    for client, state in history.clients.items():
        own: Any = of.part(tensors_of(state, "weights"), 0, server.held[client])
        moments: Any = leaves_in(state["optimizer"], own)  # type: ignore[arg-type]
        for steps in server._since(server.taken[client]):
            own, moments = retrace(of, algorithm.optimizer, algorithm.probing, own, moments, steps)
        assert_same(own, {name: server.weights[name] for name in own})
        expected, found = (flatten(each)[0] for each in (leaves_in(server.state, own), moments))
        assert found.keys() == expected.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name, strict=True)


@pytest.mark.sampled(3)
@both
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", [Sgd(0.1), Sgd(0.1, 0.9), Adam(0.01)], ids=["sgd", "momentum", "adam"])
def test_a_straggler_is_to_the_bit_where_the_others_are(kind: Any, optimizer: Any, precision: Any):
    """Absent for rounds of several steps, lost in the middle of one: after one message it has the others' bits."""
    of, algorithm, runner = task(dtype=torch.float32, precision=precision), kind(optimizer=optimizer), Recording()
    there, away = plan(cut_layer=2, local_steps=2), plan(cut_layer=2, local_steps=2).take([0, 2])

    def losing(entry: int, message: Message) -> bool:  # client 1 hears one message of round 3, and no more
        heard = [m for e, m, _ in runner.sent if e == 1 and m.batches is not None and m.batches.round == 3]
        return entry == 1 and message.batches is not None and message.batches.round == 3 and len(heard) > 0

    runner.lost = losing
    history = run(of, algorithm, there, away, away, there, away, plan(cut_layer=2), runner=runner)
    assert str(flatten(history.clients[1])) == str(flatten(history.clients[0])) == str(flatten(history.clients[2]))
    for name, value in tensors_of(history.clients[1], "weights").items():
        assert torch.equal(value, tensors_of(history.clients[0], "weights")[name])
    assert_up_to_date(of, algorithm, history)
    (message, _), *_ = [pair for pair in runner.of("forward", 1) if pair[0].batches.round == 5]  # type: ignore[union-attr]
    missed = message["scalars"]["seeds 0"].numel()
    assert missed == 4  # two of round 3, two of round 4
    assert message.nbytes("scalars") == missed * (8 + 4 * 5) + (8 if kind is ZoSfl else 0)


@settings(max_examples=15)
@given(st.data())
def test_whoever_takes_part_when_all_hold_the_same(data: Any):
    """Any clients with any cuts in any rounds, some lost in any message: who is up to date has the server's bits."""
    of = task(dtype=torch.float32)
    rounds = data.draw(st.integers(2, 4))
    plans = []
    for _ in range(rounds):
        clients = sorted(data.draw(st.sets(st.integers(0, 2), min_size=1)))
        cuts = data.draw(st.lists(st.integers(1, 4), min_size=len(clients), max_size=len(clients)))
        plans.append(RoundPlan(client=clients, cut_layer=cuts, batch_size=2, local_steps=data.draw(st.integers(1, 2))))
    losses = data.draw(st.lists(st.booleans(), min_size=0, max_size=30))
    lost = iter(losses)
    algorithm = data.draw(st.sampled_from([HoSfl, ZoSfl]))(probes=2, optimizer=Sgd(0.1, 0.9))
    history = run(of, algorithm, *plans, runner=Recording(lost=lambda entry, message: next(lost, False)))
    assert_up_to_date(of, algorithm, history)


def test_steps_that_all_have_taken_are_forgotten():
    """The server remembers the last step, and all that an absent client has not taken; rounds of other cuts apart."""
    of = task(dtype=torch.float32)
    all_there = run(of, HoSfl(), plan(), rounds=5)
    assert [len(one["seeds"]) for one in all_there.server["steps"].values()] == [1]  # type: ignore[arg-type,union-attr]
    some = plan().take([0, 1])
    absent = run(of, HoSfl(), some, some, plan(cut_layer=1).take([0, 1]), some)
    runs: Any = absent.server["steps"]
    assert [(r["ends"].tolist(), len(r["seeds"])) for r in runs.values()] == [([1, 3], 2), ([1], 1), ([1, 3], 1)]
    assert absent.server["clients"]["taken"].tolist() == [3, 3, 0]  # type: ignore[index,union-attr]


def test_layers_that_the_server_has_trained_come_with_their_moments():
    """A client whose cut moves up gets the layers that it lacks as they are, which is charged; then all are the same."""
    of, runner = task(dtype=torch.float32), Recording()
    history = run(
        of, HoSfl(optimizer=Adam(0.01)), plan(cut_layer=1), plan(cut_layer=[1, 2, 3]), plan(cut_layer=3), runner=runner
    )
    placed = [(entry, message) for entry, message, _ in runner.sent if message.kind == "place"]
    assert [(entry, message.values["cut"]) for entry, message in placed] == [(1, 2), (2, 3), (0, 3), (1, 3)]
    second = (6 * 8) * 4
    assert placed[0][1].nbytes("weights") == 3 * second + 2 * 4  # weights, two moments, two counts of steps
    assert_up_to_date(of, HoSfl(optimizer=Adam(0.01)), history)


# --- costs ---------------------------------------------------------------------------------------------------------------


@both
@settings(max_examples=10)
@given(data=st.data())
def test_time_is_that_of_the_problem(kind: Any, data: Any):
    """A round lasts T_S of the problem with the algorithm's factors, whatever the plan; nothing is averaged."""
    cuts, sizes = (data.draw(st.lists(st.integers(1, most), min_size=3, max_size=3)) for most in (4, 7))
    own, algorithm = task(dtype=torch.float32), kind(probes=data.draw(st.integers(1, 6)))
    problem = problem_of(own, data.draw(st.integers(0, 5))).replace(factors=algorithm.cost_factors)
    split = SplitPlan(batch_size=sizes, cut_layer=cuts)
    report, rounds = problem.report(split), 2
    history = run(
        own, algorithm, split.round_plan(aggregate=True), rounds=rounds, timing=EdgeTiming.from_problem(problem),
        evaluate_every=100,
    )  # fmt: skip
    assert report.aggregation_s == 0
    np.testing.assert_allclose(history.column("round_seconds"), report.round_s, rtol=1e-9)
    if np.isfinite(report.total_s):
        assert history.rows[-1]["seconds"] / rounds * report.rounds == pytest.approx(problem.objective(split), rel=1e-9)


@both
def test_hasfl_plans_by_its_own_costs(kind: Any):
    """With the algorithm's factors, its plan takes no more of the algorithm's time than the plan for SplitFed."""
    own = task(sizes=(30, 30, 30), dtype=torch.float32)
    plain = problem_of(own).replace(server_flops=1e7, uplink_bps=1e6, downlink_bps=1e6)
    problem = plain.replace(factors=kind(probes=20).cost_factors)
    plans = [edgeopt.solve(p, "hasfl").raise_for_status().solution for p in (problem, plain)]
    assert plans[0] != plans[1]
    seconds = []
    for one in plans:
        history = run(own, kind(probes=20), one.round_plan(aggregate=True), timing=EdgeTiming.from_problem(problem))
        seconds.append(history.rows[0]["round_seconds"] * problem.report(one).rounds)
    assert seconds[0] == pytest.approx(problem.objective(plans[0]), rel=1e-9)
    assert seconds[0] < seconds[1]


# --- what is reported, and what is refused --------------------------------------------------------------------------------


@both
def test_norms_are_reported(kind: Any):
    """The mean norm of the estimates, and the share that was clipped: all at a small limit, none without."""
    for clip, share in ((1e-3, 1.0), (np.inf, 0.0)):
        (row,) = run(task(), kind(clip=clip), plan(local_steps=3)).rows
        assert row["clipped"] == share
        assert row["estimate_norm"] > 1e-3
    history = run(task(), kind(), plan(client=[], batch_size=[], cut_layer=[]))
    assert "clipped" not in history.rows[0]


@both
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"probes": 0}, "probes = 0: expected an integer >= 1"),
        ({"mu": 0.0}, "mu = 0.0: expected a positive number"),
        ({"mu": -1.0}, "mu = -1.0: expected a positive number"),
        ({"distribution": "cauchy"}, "distribution = 'cauchy': expected 'gaussian' or 'rademacher'"),
        ({"clip": 0.0}, "clip = 0.0: expected a positive number"),
        ({"batch_size": 0}, "batch_size = 0: expected an integer >= 1"),
        ({"cut_layer": 0}, "cut_layer = 0: expected an integer >= 1"),
        ({"weighting": "equal"}, "weighting = 'equal': expected 'samples' or 'uniform'"),
    ],
)
def test_bad_options(kind: Any, given: dict[str, Any], message: str):
    """Each is refused by name."""
    with pytest.raises(InvalidProblemError, match=message):
        kind(**given)


@both
def test_cut_above_the_last_layer(kind: Any):
    """The message says which layers there are; at the last layer a client probes its own loss."""
    with pytest.raises(InvalidProblemError, match=r"cut_layer\[1\] = 5: expected 1 to 4, the layers of the model"):
        run(task(), kind(), plan(cut_layer=[1, 5, 1]))
    (row,) = run(task(dtype=torch.float32), kind(probes=5), plan(cut_layer=4)).rows
    assert row["bytes_up"] == row["scalars_up"] == 3 * (4 * 5 + 4)  # and its loss


@both
def test_one_client(kind: Any):
    """A single client learns, too."""
    own = task(sizes=(9,))
    history = run(own, kind(optimizer=Sgd(0.3)), RoundPlan(client=[0], batch_size=9, cut_layer=2), rounds=40)
    assert history.rows[-1]["train_loss"] < 0.8 * history.rows[0]["train_loss"]


@both
@pytest.mark.parametrize("cut", [1, 4])
def test_activations_that_are_not_finite_are_told_of(kind: Any, cut: int):
    """One line with round, client and what may help; the state is as before the round."""
    of = task()
    weights = {name: torch.full_like(value, torch.nan) for name, value in of.model.state_dict().items()}
    net = copy.deepcopy(of.model)
    net.load_state_dict(weights)
    broken = task(model=net, profile=of.profile)
    with pytest.raises(
        TrainingError, match=rf"^round 0, {kind.name}, client 0: what its probes have measured is not finite"
    ):
        run(broken, kind(), plan(cut_layer=cut))


@both
def test_a_run_that_diverges_is_told_of(kind: Any):
    """Whatever overflows first, numbers or the norm of their estimate: one line says what may help."""
    with pytest.raises(TrainingError, match=rf"^round \d+, {kind.name}.*; a smaller step size"):
        run(task(dtype=torch.float32), kind(Sgd(1e5)), plan(), rounds=30)
