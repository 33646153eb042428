"""GAPSL: it is what its definition says, beside a second version; whom it leaves out, and what a round may bring."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt import RoundPlan
from edgeopt.data import digits, iid
from edgeopt.errors import InvalidProblemError
from edgeopt.models import mlp
from edgeopt.problems import SplitPlan
from edgeopt.solvers.split_training.planner import HasflPlanner
from edgeopt.training import EdgeTiming, Gapsl, ParallelSplit, Sgd, Task, TrainingError, train
from tests.training.plain_gapsl import PlainGapsl
from tests.training.recording import Recording
from tests.training.small_tasks import assert_near, assert_same
from tests.training.split_tasks import Replica, problem_of, run, task

SIZES = (9, 7, 8, 6, 9)
CUTS = ([1, 3, 2, 1, 2], [2, 2, 2, 2, 2])


def plan(cuts: Any = 1, **options: Any) -> RoundPlan:
    return RoundPlan(**({"client": range(len(SIZES)), "batch_size": 4, "cut_layer": cuts, "local_steps": 2} | options))


def plain(of: Task, algorithm: Gapsl, cuts: Any, rounds: int) -> PlainGapsl:
    """Train with the second version."""
    other = PlainGapsl(of, algorithm, cuts)
    for number in range(rounds):
        for step in range(2):
            other.step(number, step, 4)
    return other


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"all_clients_learn": True}, {"mode": "exact", "strength": 0.4}, {"mode": "rotate", "strength": 0.4}],
    ids=lambda changes: "-".join(map(str, changes.values())) or "filter",
)
def test_it_is_what_the_second_version_learns(changes: dict[str, Any], cuts: Any):
    """Stems, server and what is reported agree over rounds; ``exact`` with a double backward pass of autograd."""
    of, algorithm = task(sizes=SIZES), Gapsl(Sgd(0.3), horizon=6, eta=0.2, **changes)
    history = run(of, algorithm, plan(cuts), rounds=4)
    other = plain(of, algorithm, cuts, 4)
    for client, weights in history.personal.items():
        assert_near(weights, other.model(client), 1e-9)
    kept = np.array([chosen.kept for chosen in other.chosen])  # [steps, N]
    assert 0 < kept.mean() < 1
    np.testing.assert_allclose(history.column("kept_clients"), kept.sum(1).reshape(4, 2).mean(1))
    np.testing.assert_allclose(history.column("leader_share"), np.reshape(other.shares, (4, 2)).mean(1), rtol=1e-6)
    np.testing.assert_allclose(history.column("angle_spread"), np.reshape(other.spreads, (4, 2)).mean(1), rtol=1e-6)
    assert history.server["clients"]["kept"].tolist() == kept.sum(0).tolist()
    assert history.server["clients"]["seen"].tolist() == [8] * len(SIZES)


def test_alignment_of_a_constant_is_a_constant():
    """Without strength, all modes are the filter, bit for bit; with it, they are not."""
    of = task(sizes=SIZES)
    base = run(of, Gapsl(Sgd(0.3)), plan(), rounds=2)
    for mode in ("exact", "rotate"):
        for strength in (0.0, 0.3):
            other = run(of, Gapsl(Sgd(0.3), mode=mode, strength=strength), plan(), rounds=2)
            same = all(torch.equal(other.models[0][name], value) for name, value in base.models[0].items())
            assert same == (strength == 0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_where_nobody_is_left_out_it_is_parallel_split_learning(momentum: float):
    """With a threshold of pi all are kept, and weights, bytes and time are those of `ParallelSplit`, bit for bit."""
    of, optimizer = task(sizes=SIZES), Sgd(0.3, momentum)
    plans = [plan(CUTS[0]), plan(CUTS[1]), plan([3, 1, 4, 2, 1])]
    for judge in ("each", "averaged"):
        own = run(of, Gapsl(optimizer, threshold=math.pi, judge=judge), *plans)
        other = run(of, ParallelSplit(optimizer, weighting="uniform", judge=judge), *plans)
        for first, second in zip(
            [*own.models, *own.personal.values()], [*other.models, *other.personal.values()], strict=True
        ):
            assert_same(first, second)
        assert own.rows[-1]["kept_clients"] == 4  # the client that has all layers sends nothing
        assert [{name: row[name] for name in other.rows[0]} for row in own.rows] == other.rows


# --- ablations ------------------------------------------------------------------------------------------------------


def test_the_step_of_the_leaders_alone():
    """Who is kept are the leaders: the server moves by the leading gradient, with equal cuts and plain SGD."""
    of = task(sizes=SIZES)
    algorithm = Gapsl(Sgd(0.3), keep="leaders", min_share=0.4, max_share=0.4)
    history = run(of, algorithm, plan(2, local_steps=1))
    other = PlainGapsl(of, algorithm, CUTS[1])
    other.step(0, 0, 4)
    leads = other.chosen[0].leads
    assert history.server["clients"]["kept"].tolist() == [int(x) for x in leads]
    assert sum(leads) == 2
    replicas = [Replica(of, 0.3) for lead in leads if lead]
    for client, replica in zip(np.flatnonzero(leads), replicas, strict=True):
        replica.step(int(client), 0, 0, 4)
    for name, value in history.models[0].items():
        if of.layer_of[name] >= 2:
            mean = torch.stack([replica.weights[name] for replica in replicas]).mean(0)
            torch.testing.assert_close(value, mean, rtol=1e-12, atol=1e-12)


def test_leaders_and_followers_by_chance():
    """At random, as many lead and are kept as by angle in the first step, and others in each step."""
    of, rounds = task(sizes=SIZES), 12
    by_angle = run(of, Gapsl(Sgd(0.01)), plan(local_steps=1), rounds=rounds)
    by_chance = run(of, Gapsl(Sgd(0.01), keep="random"), plan(local_steps=1), rounds=rounds)
    assert by_chance.rows[0]["kept_clients"] == by_angle.rows[0]["kept_clients"]
    assert (by_chance.server["clients"]["kept"] > 0).all()
    led = run(of, Gapsl(Sgd(0.01), leader="random", keep="leaders"), plan(local_steps=1), rounds=rounds)
    expected = np.ceil(led.column("leader_share") * len(SIZES) - 1e-9)
    np.testing.assert_array_equal(led.column("kept_clients"), expected)
    assert (led.server["clients"]["kept"] > 0).all()
    everyone = run(of, Gapsl(Sgd(0.01), leader="all", keep="leaders"), plan(local_steps=1), rounds=rounds)
    assert (everyone.column("kept_clients") == len(SIZES)).all()


def test_a_fixed_threshold():
    """Two right angles keep all, none keeps the nearest alone."""
    of = task(sizes=SIZES)
    for threshold, kept in ((math.pi, len(SIZES)), (0.0, 1)):
        history = run(of, Gapsl(Sgd(0.1), threshold=threshold), plan(), rounds=2)
        assert (history.column("kept_clients") == kept).all()


# --- the models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Gapsl, ParallelSplit])
def test_the_average_of_the_clients_models_is_judged(kind: Any):
    """The common model is their weighted average; beside it, each client has its own, the never kept the initial layers."""
    of = task(sizes=SIZES)
    options = {"threshold": 0.0} if kind is Gapsl else {}
    history = run(of, kind(Sgd(0.3), weighting="samples", judge="averaged", **options), plan(CUTS[0], local_steps=1))
    assert list(history.personal) == list(range(len(SIZES)))
    (common,) = history.models
    own, shares = history.personal, np.array(SIZES) / sum(SIZES)
    for name, value in common.items():
        mean = sum(share * own[client][name] for client, share in enumerate(shares))
        torch.testing.assert_close(value, mean, rtol=1e-12, atol=1e-12)
    row = history.rows[-1]
    assert row["accuracy"] == of.evaluate(common).accuracy
    scores = [of.evaluate(weights, client=client).accuracy for client, weights in own.items()]
    assert row["personal_accuracy"] == pytest.approx(np.mean(scores))
    if kind is Gapsl:
        initial, kept = of.initial_weights(), history.server["clients"]["kept"].tolist()
        assert sum(kept) == 1
        name = next(iter(initial))  # of the first layer
        assert [torch.equal(own[client][name], initial[name]) for client in own] == [not count for count in kept]


def test_with_the_judge_each_the_accuracy_is_the_mean_over_clients():
    """As for parallel split learning; training is the same to the bit."""
    of = task(sizes=SIZES)
    each, averaged = (run(of, Gapsl(Sgd(0.3), judge=judge), plan(), rounds=2) for judge in ("each", "averaged"))
    scores = [of.evaluate(weights).accuracy for weights in each.personal.values()]
    assert each.rows[-1]["accuracy"] == pytest.approx(np.mean(scores))
    for client, weights in each.personal.items():
        assert_same(weights, averaged.personal[client])


# --- who is there -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["filter", "exact", "rotate"])
def test_one_client_is_sgd(mode: Any):
    """Alone it leads and keeps to itself; its gradient is aligned with itself, so that no mode changes anything."""
    of = task(sizes=(9,))
    history = run(
        of, Gapsl(Sgd(0.2, 0.9), mode=mode, strength=0.5),
        RoundPlan(client=[0], batch_size=3, cut_layer=2), rounds=4,
    )  # fmt: skip
    reference = Replica(of, 0.2, 0.9)
    for number in range(4):
        reference.step(0, number, 0, 3)
    assert_near(history.models[0], reference.weights, 1e-9)
    assert history.rows[-1]["kept_clients"] == 1


def test_one_that_is_left_of_many():
    """A round with one survivor steps with it; its spread, which says nothing, is not remembered."""
    of = task(sizes=SIZES)

    class Losing(EdgeTiming):
        def lost(self, round: int, plan: RoundPlan) -> Any:
            return plan.client != 2 if round == 1 else np.zeros(len(plan), np.bool_)

    timing = Losing.from_problem(problem_of(of))
    first, second, third = (run(of, Gapsl(Sgd(0.3)), plan(), rounds=n, timing=timing) for n in (1, 2, 3))
    assert second.rows[1]["kept_clients"] == 1
    assert second.rows[1]["angle_spread"] == 0
    for name, value in first.server["spread"].items():
        assert second.server["spread"][name] == value > 0
    gone = second.server["clients"]["seen"] - first.server["clients"]["seen"]
    assert gone.tolist() == [0, 0, 2, 0, 0]
    assert third.rows[2]["kept_clients"] >= 1


def test_who_fails_with_its_answer_does_not_count():
    """If the one that is kept is lost before it has learnt, the server's layers stay."""
    of = task(sizes=SIZES)
    runner = Recording(lost=lambda entry, message: message.kind == "backward")
    history = run(of, Gapsl(Sgd(0.3), threshold=0.0), plan(local_steps=1), runner=runner)
    assert_same({**history.models[0]}, of.initial_weights())
    assert history.rows[0]["completed"] == len(SIZES) - 1  # those without an answer are through


def test_frozen_layers_above_the_deepest_cut():
    """Where no gradient is common to all, all angles are right ones, and all are kept."""
    net = mlp((1, 4, 4), (7, 6, 5), 4).double()
    net[3].requires_grad_(False)
    of = task(sizes=SIZES, model=net)
    for mode in ("filter", "exact", "rotate"):
        history = run(of, Gapsl(Sgd(0.3), mode=mode), plan([3, 1, 2, 3, 1]))
        assert history.rows[0]["kept_clients"] == len(SIZES)


# --- what it costs ------------------------------------------------------------------------------------------------------


def test_who_is_left_out_gets_nothing_and_is_not_waited_for():
    """Forward as the problem says for all; backward as it says for those that are kept."""
    of = task(sizes=SIZES, dtype=torch.float32)
    problem, cut = problem_of(of), 2
    split = SplitPlan(batch_size=[2, 5, 3, 4, 2], cut_layer=[cut] * len(SIZES), aggregation_interval=1)
    report, planner, runner = problem.report(split), split.planner(), Recording()
    history = run(of, Gapsl(horizon=4), *(planner.plan(number) for number in range(4)), runner=runner)
    start = 0
    for row, end in zip(history.rows, runner.ends, strict=True):
        kept = [entry for entry, message, _ in runner.sent[start:end] if message.kind == "backward"]
        assert len(kept) == row["kept_clients"] < len(SIZES)
        down = float(report.stage_s[kept, 3:].sum(axis=1).max())
        assert row["round_seconds"] == pytest.approx(report.forward_s + report.server_s + down, rel=1e-9)
        start = end
    everyone = run(of, Gapsl(horizon=4, all_clients_learn=True), *(planner.plan(number) for number in range(4)))
    np.testing.assert_allclose(everyone.column("round_seconds"), report.round_s, rtol=1e-9)


def test_the_planner_of_hasfl_drives_it():
    """Its cuts and batches are what is trained with; where all learn, rounds last as long as its problem says."""
    of = task(sizes=SIZES, dtype=torch.float32)
    problem = problem_of(of).replace(max_batch=4, target=100.0)
    for everyone in (True, False):
        planner, records = HasflPlanner(problem, every=10), []
        history = train(
            of, Gapsl(Sgd(0.1), all_clients_learn=everyone), planner, EdgeTiming.from_problem(problem), rounds=4,
            on_round=records.append,
        )  # fmt: skip
        split = planner.split_plan
        assert split is not None
        for record in records:
            assert record.plan.cut_layer.tolist() == split.cut_layer.tolist()
            assert record.plan.batch_size.tolist() == split.batch_size.tolist()
        seconds, round_s = history.column("round_seconds"), problem.report(split).round_s
        assert (seconds <= round_s * (1 + 1e-9)).all()
        if everyone:
            np.testing.assert_allclose(seconds, round_s, rtol=1e-9)


# --- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_share": 0.9}, "min_share = 0.9: expected at most max_share, which is 0.8"),
        ({"min_share": 0.0}, "min_share = 0.0: expected a share above 0 and up to 1"),
        ({"max_share": 1.5}, "max_share = 1.5: expected a share above 0 and up to 1"),
        ({"eta": -0.1}, "eta = -0.1: expected a non-negative number"),
        ({"eta": math.nan}, "eta = nan: expected"),
        ({"strength": -1.0}, "strength = -1.0: expected a non-negative number"),
        ({"horizon": 0}, "horizon = 0: expected an integer"),
        ({"threshold": -1.0}, "threshold = -1.0"),
        ({"mode": "turn"}, "mode = 'turn': expected one of filter, exact, rotate"),
        ({"leader": "best"}, "leader = 'best': expected one of near, all, random"),
        ({"keep": "none"}, "keep = 'none': expected one of aligned, leaders, random"),
        ({"judge": "mean"}, "judge = 'mean': expected 'each' or 'averaged'"),
        ({"all_clients_learn": 2}, "all_clients_learn = 2: expected"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str):
    """In one line: the field, what was given, what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        Gapsl(**options)


class Bounded(nn.Module):
    """The identity where it is defined."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0 * torch.sqrt(100 - x.abs())


def test_activations_that_are_not_finite_are_told_of_their_client():
    """Round, client, and what was expected."""
    net = nn.Sequential(nn.Flatten(), Bounded(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 4))
    of = task(sizes=SIZES, dtype=torch.float32, model=net)
    inputs = of.train.inputs.clone()
    inputs[of.partition.indices[3].copy()] = 101.0
    of = of.replace(train=dataclasses.replace(of.train, inputs=inputs))
    expected = (
        "^round 0, gapsl, client 3: the gradient of its loss at the server is not finite: expected finite numbers"
    )
    with pytest.raises(TrainingError, match=expected):
        run(of, Gapsl(), plan(2))


# --- what it is for -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_planted_adversaries_seldom_lead():
    """IID, two of ten clients with shifted labels: in at least half of the rounds neither leads; a third by chance."""

    @dataclasses.dataclass(frozen=True)
    class Watched(Gapsl):
        def measure(self, clients: list[int], picked: Any) -> dict[str, float]:
            free = not any(lead and client < 2 for client, lead in zip(clients, picked.leads, strict=True))
            return {**Gapsl.measure(self, clients, picked), "free": float(free)}

    found = {"near": [], "random": []}
    for seed in range(3):
        data = digits(seed)
        partition = iid(data.train.labels, 10, seed=seed)
        targets = data.train.targets.clone()
        for client in (0, 1):
            own = torch.from_numpy(partition.indices[client].copy())
            targets[own] = (targets[own] + 1) % 10
        torch.manual_seed(seed)
        of = Task(
            model=mlp((1, 8, 8), hidden=(24, 64)), train=dataclasses.replace(data.train, targets=targets),
            partition=partition, test=data.test, seed=seed,
        )  # fmt: skip
        each = RoundPlan(client=range(10), batch_size=16)
        for leader, shares in found.items():
            algorithm = Watched(Sgd(0.1), leader=leader, min_share=0.4, max_share=0.4)
            history = run(
                of, algorithm, each, rounds=300, timing=EdgeTiming.from_problem(problem_of(of)), evaluate_every=300
            )
            shares.append(history.column("free").mean())
    assert np.mean(found["near"]) >= 0.5
    assert np.mean(found["random"]) == pytest.approx(1 / 3, abs=0.1)
