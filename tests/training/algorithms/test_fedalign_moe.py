"""FedAlign-MoE against the same training written anew, sample by sample and pair by pair."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from edgeopt import RoundPlan
from edgeopt.errors import InvalidProblemError
from edgeopt.training import Batches, EdgeTiming, FedAlignMoe, FedAvg, LocalRunner, Sgd, Task, Tensors
from tests.training.algorithms.mixtures import (
    EXPERTS,
    NETWORKS,
    ROUTER,
    TOP_K,
    leaf,
    loss_of,
    mixture_task,
    seen,
    stepped,
)
from tests.training.recording import Recording
from tests.training.small_tasks import assert_near, small_plan, small_task, small_timing
from tests.training.split_tasks import problem_of, run

LR, STEPS, PULL = 0.2, 3, 0.7


def plan_of(**columns: Any) -> RoundPlan:
    return small_plan(**{"batch_size": 4, "local_steps": STEPS, **columns})


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


# --- the same, written anew -----------------------------------------------------------------------------------------


class Anew:
    """Server and clients of a task with all samples in mind."""

    def __init__(self, of: Task) -> None:
        self.task, self.clients = of, range(of.num_clients)
        start = of.initial_weights()
        self.weights = {name: value for name, value in start.items() if name != ROUTER}
        self.routers = dict.fromkeys(self.clients, start[ROUTER])
        self.reference = np.full(EXPERTS, 1 / EXPERTS)
        self.usage = {client: np.full(EXPERTS, 1 / EXPERTS) for client in self.clients}
        self.divergence = self.semantic = math.nan

    def train(self, client: int, number: int, mean: Any) -> Tensors:
        """Return the weights of a client after its steps."""
        own = leaf({**self.weights, ROUTER: self.routers[client]})
        pull = torch.sigmoid(torch.tensor(self.usage[client] * mean) - 1 / EXPERTS**2)
        reference = torch.tensor(self.reference)
        common = sorted(range(EXPERTS), key=lambda e: -self.reference[e])[:TOP_K]
        for inputs, targets in zip(*self.task.batch(client, Batches(number, 0, STEPS, 4)), strict=True):
            passed = seen(own, inputs)
            term = torch.zeros((), dtype=torch.float64)
            for p, best in zip(passed.probability, passed.chosen, strict=True):
                for e in {*best, *common}:
                    term = term + pull[e] * p[e] * (p[e] / reference[e]).log() / len(inputs)
            own = leaf(stepped(own, loss_of(passed, targets) + PULL * term, list(own), LR))
        return {name: value.detach() for name, value in own.items()}

    def round(self, number: int) -> None:
        """Play a round."""
        mean = sum(self.usage.values()) / len(self.clients) if number else np.full(EXPERTS, 1 / EXPERTS)
        trained = {client: self.train(client, number, mean) for client in self.clients}
        margin, hidden = np.zeros((len(trained), EXPERTS)), {}
        for client, own in trained.items():
            rows = self.task.partition.indices[client]
            passed = seen(own, self.task.train.inputs[torch.tensor(rows)])
            p = passed.probability.numpy()
            self.usage[client] = p.mean(0)
            for e in range(EXPERTS):
                margin[client, e] = np.maximum(0, p[:, e] - np.delete(p, e, 1).max(1)).mean()
                if (first := p.argmax(1) == e).any():
                    hidden[client, e] = passed.hidden[torch.tensor(first)].mean(0)
        usage = np.stack(list(self.usage.values()))
        consistent = usage * usage.mean(0) * margin
        found = np.where(
            consistent.sum(0) > 0, (consistent * usage).sum(0) / np.maximum(consistent.sum(0), 1e-300), self.reference
        )
        self.reference = found / found.sum()
        self.divergence = float(np.mean((usage * np.log(usage / self.reference)).sum(1)))
        self.aligned(trained, hidden)
        self.routers = {client: own[ROUTER] for client, own in trained.items()}

    def aligned(self, trained: dict[int, Tensors], hidden: dict[tuple[int, int], torch.Tensor]) -> None:
        """Average what has been trained."""
        sizes = [self.task.partition.indices[client].size for client in self.clients]
        new = {
            name: sum(n * own[name] for n, own in zip(sizes, trained.values(), strict=True)) / sum(sizes)
            for name in self.weights
        }
        alike = []
        for e in range(EXPERTS):
            update = {
                client: torch.cat([(own[name][e] - self.weights[name][e]).flatten() for name in NETWORKS])
                for client, own in trained.items()
            }
            own = [c for c in self.clients if update[c].abs().max() > 0 and (c, e) in hidden]
            similar = {(i, j): cosine(hidden[i, e], hidden[j, e]) for i in own for j in own}
            gamma = {}
            if own:
                alike.append(np.mean(list(similar.values())))
                tau = alike[-1] - 0.5 * np.std(list(similar.values()))
                for (i, j), s in similar.items():
                    gamma[i, j] = max(0.0, cosine(update[i], update[j])) / (1 + math.exp(tau - s))
            for name in NETWORKS:
                new[name][e] = self.weights[name][e]
                for i in own:
                    share = sum(gamma[i, j] for j in own) / sum(gamma.values())
                    new[name][e] += share * (trained[i][name][e] - self.weights[name][e])
        self.weights, self.semantic = new, float(np.mean(alike))


@pytest.mark.parametrize("batched", [True, False])
def test_rounds_are_those_written_anew(batched: bool):
    """Three rounds: common weights, clients' routers, and what is measured, up to rounding."""
    of, rounds = mixture_task(), 3
    algorithm = FedAlignMoe(regularise=PULL, optimizer=Sgd(LR))
    history = run(of, algorithm, plan_of(), rounds=rounds, runner=LocalRunner(batched=batched))
    anew = Anew(of)
    for number in range(rounds):
        anew.round(number)
        row = history.rows[number]
        assert row["routing_divergence"] == pytest.approx(anew.divergence, rel=1e-6)
        assert row["semantic_consistency"] == pytest.approx(anew.semantic, rel=1e-6)
    sizes = np.array([own.size for own in of.partition.indices])
    mean = sum(n * router for n, router in zip(sizes.tolist(), anew.routers.values(), strict=True)) / sizes.sum()
    assert_near(history.models[0], {**anew.weights, ROUTER: mean}, 1e-6)
    for client, own in history.personal.items():
        assert_near(own, {**anew.weights, ROUTER: anew.routers[client]}, 1e-6)
    scores = [of.evaluate(own, client=client).accuracy for client, own in history.personal.items()]
    assert history.rows[-1]["personal_accuracy"] == pytest.approx(np.mean(scores))


# --- what crosses ---------------------------------------------------------------------------------------------------


def test_routers_cross_once():
    """A client gets one before its first round, and never sends it; statistics go both ways; of experts those that learnt."""
    of, runner = mixture_task(), Recording()
    run(of, FedAlignMoe(optimizer=Sgd(LR)), plan_of().take([0, 1]), plan_of(), runner=runner)
    got = [(entry, ROUTER in m["weights"]) for entry, m, _ in runner.sent if m.kind == "train"]
    assert got == [(0, True), (1, True), (0, False), (1, False), (2, True)]
    for _, message, answer in runner.sent:
        assert answer is not None
        assert ROUTER not in answer["weights"]
        if message.kind == "train":
            assert list(message["statistics"]) == ["experts.reference", "experts.mean"]
            assert list(answer) == ["scalars"]
        else:
            active = answer["statistics"]["experts.active"]
            assert answer.rows.keys() == set(NETWORKS)
            assert all(torch.equal(rows, active) for rows in answer.rows.values())
            before = of.initial_weights()["experts.up"]
            if len(runner.ends) == 1:
                assert torch.equal(answer["weights"]["experts.up"][~active], before[~active])


def test_all_samples_are_told_of():
    """Not those alone that the mini-batches of the round hold: usage is the mean over the client's own data."""
    of, runner = mixture_task(), Recording()
    run(of, FedAlignMoe(optimizer=Sgd(1e-300)), plan_of(local_steps=1), runner=runner)
    weights = of.initial_weights()
    for entry, message, answer in runner.sent:
        if message.kind == "tell":
            assert answer is not None
            rows = torch.tensor(of.partition.indices[entry])
            passed = seen(weights, of.train.inputs[rows])
            torch.testing.assert_close(answer["statistics"]["experts.usage"], passed.probability.mean(0))
            assert message.flops == of.flops(len(rows), 0, 2, backward=False)


def test_many_samples_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch):
    """What is told does not depend on how many at once."""
    of = mixture_task()
    whole = run(of, FedAlignMoe(optimizer=Sgd(LR)), plan_of())
    monkeypatch.setattr("edgeopt.training.algorithms.fedalign_moe._SEEN_AT_ONCE", 2)
    parts = run(of, FedAlignMoe(optimizer=Sgd(LR)), plan_of())
    assert_near(parts.models[0], whole.models[0], 1e-12)


# --- degenerate cases -----------------------------------------------------------------------------------------------


class Losing(EdgeTiming):
    """Loses a client in one of the two phases of every round."""

    def lost(self, round: int, plan: RoundPlan) -> Any:
        return plan.client == 1


def test_identical_clients_are_one_client():
    """Clients with the same data and steps agree on everything: experts are what each of them has trained."""
    of = mixture_task((8, 8), frozen=True)
    same = np.arange(8)
    of = of.replace(partition=type(of.partition)((same, same + 8), num_samples=16))
    of.train.inputs[8:], of.train.targets[8:] = of.train.inputs[:8], of.train.targets[:8]
    plan = RoundPlan(client=[0, 1], batch_size=8)  # all samples: their order does not matter
    both, one = (run(of, FedAlignMoe(optimizer=Sgd(LR)), p, rounds=2) for p in (plan, plan.take([0])))
    assert_near(both.models[0], one.models[0], 1e-9)
    assert both.rows[0]["semantic_consistency"] == pytest.approx(1)


def test_nothing_learnt_leaves_experts_alone():
    """With a step that no weight feels nobody has trained any expert; nothing is nan but what nobody can tell."""
    of = mixture_task()
    history = run(of, FedAlignMoe(optimizer=Sgd(1e-300)), plan_of(), rounds=2)
    assert_near(history.models[0], of.initial_weights(), 1e-12)
    assert math.isnan(history.rows[1]["semantic_consistency"])
    assert history.rows[1]["routing_divergence"] >= 0


def test_a_lost_client_keeps_its_router():
    """It is not told of, and the others go on."""
    of = mixture_task()
    history = run(of, FedAlignMoe(optimizer=Sgd(LR)), plan_of(), timing=Losing.from_problem(problem_of(of)))
    assert history.personal.keys() == {0, 2}
    others = run(of, FedAlignMoe(optimizer=Sgd(LR)), plan_of().take([0, 2]))
    assert_near(history.models[0], others.models[0], 1e-12)


# --- ablations ------------------------------------------------------------------------------------------------------


def test_with_everything_switched_off_it_is_fedavg():
    """Averaged routers, experts by index and samples, no term: FedAvg, if every client trains every expert."""
    of = mixture_task()
    off = FedAlignMoe(regularise=0.0, gates="averaged", experts="index", weighting="samples", optimizer=Sgd(LR))
    plan = plan_of(batch_size=7, local_steps=2)
    history, runner = None, Recording()
    history = run(of, off, plan, rounds=2, runner=runner)
    assert all(m["statistics"]["experts.active"].all() for _, message, m in runner.sent if message.kind == "tell")
    assert_near(history.models[0], run(of, FedAvg(Sgd(LR)), plan, rounds=2).models[0], 1e-9)
    assert history.personal == {}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "changes",
    [
        {"adaptive": False}, {"consistent": False}, {"experts": "index"}, {"directions": False}, {"threshold": 0.5},
        {"beta": 2.0}, {"sharpness": 10.0}, {"weighting": "samples"}, {"eta": 0.5}, {"gates": "averaged"},
    ],
)  # fmt: skip
def test_every_option_matters(changes: dict[str, Any]):
    """Another model comes out, and it is finite."""
    of = mixture_task()
    one, other = (
        run(of, FedAlignMoe(**{"regularise": PULL, "optimizer": Sgd(LR), **options}), plan_of(), rounds=3)
        for options in ({}, changes)
    )
    assert any(not torch.allclose(value, other.models[0][name], rtol=1e-6) for name, value in one.models[0].items())
    assert all(torch.isfinite(value).all() for value in other.models[0].values())


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gates": "none"}, "gates = 'none': expected 'local' or 'averaged'"),
        ({"experts": "all"}, "experts = 'all': expected 'aligned' or 'index'"),
        ({"regularise": -1}, "regularise"),
        ({"eta": math.nan}, "eta"),
        ({"threshold": math.inf}, "threshold"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str):
    """What is wrong, and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        FedAlignMoe(**options)


def test_wrong_models():
    """A model without experts, and one whose router nobody trains."""
    with pytest.raises(InvalidProblemError, match="model: fedalign-moe trains layers of experts, it has none"):
        run(small_task(), FedAlignMoe(), small_plan(), timing=small_timing())
    model = mixture_task().model
    model.get_submodule("experts.router").requires_grad_(False)
    of = mixture_task().replace(model=model)
    with pytest.raises(InvalidProblemError, match=r"model: experts\.router: fedalign-moe trains it"):
        run(of, FedAlignMoe(), small_plan())
