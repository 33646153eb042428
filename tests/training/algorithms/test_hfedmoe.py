"""HFedMoE against the same training written anew, sample by sample."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from edgeopt import RoundPlan, StaticPlanner
from edgeopt.errors import InvalidProblemError
from edgeopt.training import (
    Batches,
    ExpertBudget,
    FedAvg,
    HFedMoe,
    LocalRunner,
    Sgd,
    Task,
    Tensors,
    client_peak_bytes,
)
from tests.training.algorithms.mixtures import (
    EXPERTS,
    NETWORKS,
    ROUTER,
    leaf,
    loss_of,
    mixture_task,
    seen,
    stepped,
)
from tests.training.recording import Recording
from tests.training.small_tasks import assert_near, assert_same, small_plan, small_task, small_timing
from tests.training.split_tasks import run
from tests.training.test_experts import FIRST, SECOND, moe_task

LR, STEPS = 0.2, 3


def plan_of(**columns: Any) -> RoundPlan:
    return small_plan(**{"batch_size": 4, "local_steps": STEPS, **columns})


def learn(of: Task, algorithm: HFedMoe, plan: RoundPlan, rounds: int = 1, **options: Any) -> Any:
    return run(of, algorithm, plan, rounds=rounds, **options)


# --- the same, written anew -----------------------------------------------------------------------------------------


def score(selection: str, p: Any, chosen: list[list[int]], e: int) -> float:
    mean, largest = float(p[:, e].mean()), float(p[:, e].max())
    importance = 0.5 * mean + 0.5 * largest
    told = sum(float(x) * math.log(float(x) / mean) for x in p[:, e]) / len(p)
    return {
        "frequency": float(sum(e in best for best in chosen)), "importance": importance, "information": importance - told,
    }[selection]  # fmt: skip


def anew(of: Task, weights: Tensors, selection: str, budgets: list[int], number: int) -> Tensors:
    """Return the weights after a round of three clients."""
    replies = []
    for client, budget in enumerate(budgets):
        own, usage, importance, learnt = leaf(weights), np.zeros(EXPERTS), np.zeros(EXPERTS), set[int]()
        batch = of.batch(client, Batches(number, 0, STEPS, 4))
        for inputs, targets in zip(*batch, strict=True):
            first = seen(own, inputs)
            p = first.probability.detach()
            used = sorted({e for best in first.chosen for e in best})
            active = sorted(used, key=lambda e: -score(selection, p, first.chosen, e))[: budget or EXPERTS]
            own = leaf(stepped(own, loss_of(seen(own, inputs, active), targets), list(own), LR))
            usage += p.mean(0).numpy() / STEPS
            importance += (0.5 * p.mean(0) + 0.5 * p.amax(0)).numpy() / STEPS
            learnt |= set(active)
        replies.append(({name: value.detach() for name, value in own.items()}, usage, importance, learnt))
    sizes = [of.partition.indices[client].size for client in range(3)]
    preferred = [{e for e in range(EXPERTS) if usage[e] >= 0.5 / EXPERTS} for _, usage, _, _ in replies]
    new = {name: sum(n * r[0][name] for n, r in zip(sizes, replies, strict=True)) / sum(sizes) for name in weights}
    for name in NETWORKS:
        new[name] = weights[name].clone()
        for e in range(EXPERTS):
            share = [n * (e in s and e in r[3]) for n, s, r in zip(sizes, preferred, replies, strict=True)]
            if sum(share):
                new[name][e] = sum(w * r[0][name][e] for w, r in zip(share, replies, strict=True)) / sum(share)
    alpha = [sum(r[1][e] * r[2][e] for e in s) for s, r in zip(preferred, replies, strict=True)]
    moved = sum(a * (r[0][ROUTER] - weights[ROUTER]) for a, r in zip(alpha, replies, strict=True))
    return {**new, ROUTER: weights[ROUTER] + moved / sum(alpha)}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("selection", ["information", "importance", "frequency"])
def test_rounds_are_those_written_anew(selection: Any, batched: bool):
    """Two rounds of clients with budgets of one and two experts and none: every weight, up to rounding."""
    of, budgets = mixture_task(), [1, 2, 0]
    history = learn(
        of, HFedMoe(selection, optimizer=Sgd(LR)), plan_of(experts=budgets), 2, runner=LocalRunner(batched=batched)
    )
    weights = of.initial_weights()
    for number in range(2):
        weights = anew(of, weights, selection, budgets, number)
    assert_near(history.models[0], weights, 1e-9)


# --- budgets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["information", "random"])
@pytest.mark.parametrize("batched", [True, False])
def test_only_experts_within_the_budget_learn_and_are_charged(selection: Any, batched: bool):
    """In a round of one step with a budget of one, one expert of each client moves and is charged; the rest has its bits."""
    of, runner = mixture_task(), Recording(batched=batched)
    learn(of, HFedMoe(selection, optimizer=Sgd(LR)), plan_of(experts=1, local_steps=1), runner=runner)
    before = of.initial_weights()
    for _, _, answer in runner.sent:
        assert answer is not None
        moved = [
            e for e in range(EXPERTS) if not torch.equal(answer["weights"][NETWORKS[0]][e], before[NETWORKS[0]][e])
        ]
        assert len(moved) == 1
        learns = answer["statistics"]["experts.learns"]
        assert learns.nonzero().flatten().tolist() == moved
        for name in NETWORKS:
            assert torch.equal(answer["weights"][name][~learns], before[name][~learns])
        whole = sum(value.nbytes for value in answer["weights"].values())
        experts = sum(answer["weights"][name].nbytes for name in NETWORKS)
        assert answer.nbytes("weights") == whole - experts * (EXPERTS - 1) // EXPERTS


@pytest.mark.parametrize("aggregation", ["sparse", "plain"])
def test_an_expert_comes_down_where_a_client_lacks_it(aggregation: Any):
    """What is not charged is, bit for bit, what the client was sent or held before and has not trained since; the rest is.

    The first message has all. In the second round nothing reaches client 1, which gets all in the round after that.
    """
    of = mixture_task()
    runner = Recording(lost=lambda entry, _: entry == 1 and len(runner.ends) == 1)
    algorithm = HFedMoe(aggregation=aggregation, optimizer=Sgd(LR))
    learn(of, algorithm, plan_of(experts=1, local_steps=1), 4, runner=runner)
    has: list[dict[tuple[str, int], torch.Tensor]] = [{}, {}, {}]  # of each client: experts as it has them
    counts = []
    for entry, message, answer in runner.sent:
        sent, mine = message["weights"], has[entry]
        lacks = [e for e in range(EXPERTS) if message.rows[NETWORKS[0]][e]]
        counts.append(len(lacks))
        for name in NETWORKS:
            assert message.rows[name].nonzero().flatten().tolist() == lacks
            mine |= {(name, e): sent[name][e].clone() for e in lacks}
            assert all(torch.equal(mine[name, e], sent[name][e]) for e in range(EXPERTS))
        whole = sum(value.nbytes for value in sent.values())
        experts = sum(sent[name].nbytes for name in NETWORKS)
        assert message.nbytes("weights") == whole - experts * (EXPERTS - len(lacks)) // EXPERTS
        if answer is None:
            mine.clear()
            continue
        for e in answer["statistics"]["experts.learns"].nonzero().flatten().tolist():
            for name in NETWORKS:
                mine[name, e] = answer["weights"][name][e].clone()
    assert counts[:3] == [EXPERTS] * 3
    assert counts[7] == EXPERTS  # of client 1 in the third round
    assert sum(counts) < len(counts) * EXPERTS


def test_random_experts_are_others_in_each_step_and_at_each_client():
    """With one expert per step, several are trained in a round; and a seed gives one run."""
    of = mixture_task((12, 12, 12))
    plan = plan_of(experts=1, local_steps=12)
    rows = [learn(of, HFedMoe("random", optimizer=Sgd(LR)), plan).rows[0] for _ in range(2)]
    assert str(rows[0]) == str(rows[1])
    assert rows[0]["expert_share"] > 0.5


def test_without_a_limit_all_experts_in_use_learn():
    """A budget of all experts is none; and with plain aggregation it is FedAvg."""
    of, algorithm = mixture_task(), HFedMoe(aggregation="plain", optimizer=Sgd(LR))
    free, full = (learn(of, algorithm, plan_of(experts=experts), 2) for experts in (0, EXPERTS))
    assert_near(free.models[0], full.models[0], 1e-12)
    assert_near(free.models[0], run(of, FedAvg(Sgd(LR)), plan_of(), rounds=2).models[0], 1e-12)


def test_a_budget_of_the_whole_model():
    """Three experts of two layers learn in a step, those of the highest scores of both; more work is charged for looking."""
    of = moe_task()
    plan = small_plan(batch_size=4, local_steps=1, experts=3)
    layers, model = (HFedMoe(budget=budget, optimizer=Sgd(LR)) for budget in ("layer", "model"))
    runner = Recording()
    rows = [run(of, algorithm, plan, timing=small_timing(), runner=runner).rows[0] for algorithm in (layers, model)]
    counts = [
        sum(int(answer["statistics"][f"{name}.learns"].sum()) for name in (FIRST, SECOND))
        for _, _, answer in runner.sent
    ]
    assert counts == [6, 6, 6, 3, 3, 3]
    flops = [message.flops for _, message, _ in runner.sent]
    looked = of.flops(4, 0, 5, backward=False)
    assert flops[0] == of.flops(4, learns={FIRST: 3, SECOND: 3})
    assert flops[3] == of.flops(4, learns={FIRST: 3, SECOND: 0}) + looked
    assert rows[0]["client_peak_bytes"] > rows[1]["client_peak_bytes"]


def test_an_expert_that_nobody_trains_stays():
    """Also one that clients use too little, and routers if nobody prefers any expert."""
    of = mixture_task()
    history = learn(of, HFedMoe(usage=5.0, optimizer=Sgd(LR)), plan_of())
    before = of.initial_weights()
    assert_same(
        {name: history.models[0][name] for name in (*NETWORKS, ROUTER)}, {n: before[n] for n in (*NETWORKS, ROUTER)}
    )
    assert not torch.equal(history.models[0]["head.weight"], before["head.weight"])
    assert history.rows[0]["routing_consistency"] == 0


# --- memory ---------------------------------------------------------------------------------------------------------


def test_budgets_from_memory():
    """Each client gets as many experts as fit, found by counting; who has room for all keeps the plan; rows keep to it."""
    of, optimizer = mixture_task(), Sgd(LR, momentum=0.9)
    needed = [client_peak_bytes(of, 4, optimizer, learns={"experts": count}) for count in range(1, EXPERTS + 1)]
    assert needed == sorted(needed)
    limits = [needed[0], needed[2] - 1, np.inf]
    planner = ExpertBudget(StaticPlanner(plan_of()), of, np.array(limits), optimizer)
    assert planner.plan(0).experts.tolist() == [1, 2, 0]
    history = run(of, HFedMoe(optimizer=optimizer), planner.plan(0).take([0, 1]))
    assert history.rows[0]["client_peak_bytes"] <= max(limits[:2])
    planned = ExpertBudget(StaticPlanner(plan_of(experts=[3, 1, 2])), of, np.array([needed[1]] * 3), optimizer)
    assert planned.plan(0).experts.tolist() == [2, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"memory_bytes": 100.0},
            "round 3: client 0 needs .* bytes to train one expert on 4 samples, its memory is 100",
        ),
        ({"memory_bytes": [1e6, 1e6]}, r"memory_bytes: expected shape \[3\], got \[2\]"),
        ({"memory_bytes": 1e6, "budget": "client"}, "budget = 'client': expected 'layer' or 'model'"),
        ({"memory_bytes": 1e6, "batch_size": 0}, "batch_size = 0"),
        (
            {"memory_bytes": 1e6, "task": small_task()},
            "model: a budget of experts trains layers of experts, it has none",
        ),
    ],
)
def test_budgets_that_do_not_fit(options: dict[str, Any], message: str):
    """Errors name round, client, what is needed and what is there."""
    fields: dict[str, Any] = {"task": mixture_task(), **options}
    with pytest.raises(InvalidProblemError, match=message):
        ExpertBudget(StaticPlanner(plan_of()), **fields).plan(3)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": "best"}, "selection = 'best': expected one of information, importance, frequency, random"),
        ({"budget": "client"}, "budget = 'client': expected 'layer' or 'model'"),
        ({"aggregation": "none"}, "aggregation = 'none': expected 'sparse' or 'plain'"),
        ({"mix": 1.5}, "mix = 1.5: expected a number from 0 to 1"),
        ({"beta": -1}, "beta"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str):
    """What is wrong, and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        HFedMoe(**options)


def test_wrong_models_and_plans():
    """A model without experts, and a budget of more experts than there are."""
    with pytest.raises(InvalidProblemError, match="model: hfedmoe trains layers of experts, it has none"):
        run(small_task(), HFedMoe(), small_plan(), timing=small_timing())
    with pytest.raises(InvalidProblemError, match=r"experts = 5: expected .*0 to 4"):
        run(mixture_task(), HFedMoe(), plan_of(experts=5))
