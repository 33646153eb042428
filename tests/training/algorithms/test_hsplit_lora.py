"""HSplitLoRA: folding is the exact mean, a split changes nothing, bases agree, importance is autograd's, budgets hold."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import edgeopt
from edgeopt import EdgeNetwork, RoundPlan
from edgeopt.errors import InvalidProblemError
from edgeopt.models import lora_layers
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.training import Adam, Batches, EdgeTiming, HSplitLora, LocalRunner, Sgd, Task, train
from edgeopt.training.algorithms import hsplit_lora
from edgeopt.training.messages import Tensors
from edgeopt.training.rules.lora import adapters_of
from edgeopt.training.split import adapters
from tests.training.lora_tasks import ADAPTED, RANK, lora_task
from tests.training.recording import Recording
from tests.training.small_tasks import assert_near
from tests.training.split_tasks import Plans, problem_of, run

RANKS, STEPS, BATCH, WHOLE = [1, 2, 4], 3, 4, 4


def plan(**options: Any) -> RoundPlan:
    fields = {"client": range(3), "rank": RANKS, "batch_size": BATCH, "local_steps": STEPS, "cut_layer": WHOLE}
    return RoundPlan(**(fields | options))


def base_of(task: Task, history: Any) -> Tensors:
    return {name: history.models[0][name] for name in task.frozen if name.endswith("weight") and "hidden" in name}


@pytest.fixture
def same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new adapters depend on their layer alone, so that client and server draw the same ones."""

    def fresh(adapter: Any, key: torch.Tensor, like: torch.Tensor, mask: torch.Tensor | None) -> Tensors:
        generator = torch.Generator().manual_seed(adapter.layer)
        first = torch.randn(adapter.rank, adapter.inputs, generator=generator, dtype=like.dtype) / math.sqrt(
            adapter.inputs
        )
        first = first * (0 if mask is None else mask[:, None])
        return {adapter.a: first, adapter.b: like.new_zeros(adapter.outputs, adapter.rank)}

    for module in (hsplit_lora, adapters):
        monkeypatch.setattr(module, "fresh_adapter", fresh)


# --- folding ---------------------------------------------------------------------------------------------------------


def test_a_fold_is_the_exact_mean_of_what_was_sent():
    """W + sum w_i s B_i A_i of the replies, in float64, for unequal ranks; the head is averaged; errors are reported."""
    task, runner = lora_task(), Recording()
    history = run(task, HSplitLora(Adam(0.05), importance="uniform", report_errors=True), plan(), runner=runner)
    sizes = task.partition.sizes
    replies = {
        entry: answer["weights"] for entry, message, answer in runner.sent if message.kind == "collect" and answer
    }
    for name, layer in lora_layers(task.model).items():
        own = [(replies[i][f"{name}.lora_a"], replies[i][f"{name}.lora_b"]) for i in range(3)]
        mean = sum(n * layer.scale * (b @ a) for n, (a, b) in zip(sizes, own, strict=True)) / sizes.sum()
        torch.testing.assert_close(history.models[0][f"{name}.weight"], layer.weight + mean, rtol=1e-12, atol=1e-12)
        assert mean.norm() > 0.01
        assert history.models[0][f"{name}.lora_b"].count_nonzero() == 0
    heads = [replies[i]["head.0.weight"] for i in range(3)]
    expected = torch.from_numpy(np.average(torch.stack(heads).numpy(), axis=0, weights=sizes))
    torch.testing.assert_close(history.models[0]["head.0.weight"], expected)
    assert history.rows[0]["fold_error"] < 1e-6


def test_a_fold_in_single_precision():
    """The error that is reported stays below 1e-6."""
    task = lora_task(dtype=torch.float32)
    history = run(task, HSplitLora(Adam(0.05), report_errors=True), *[plan()] * 4)
    assert 0 < history.column("fold_error").max() < 1e-6


def test_a_round_is_that_of_torch(same_draws: None):
    """Adapters that start at zero, steps of `torch.optim.SGD` at each client, the mean of the products: written anew."""
    task, lr = lora_task(head=False), 0.3
    history = run(task, HSplitLora(Sgd(lr, momentum=0.5), importance="uniform"), *[plan(rank=RANK)] * 3)
    base = {name: value.clone() for name, value in task.model.state_dict().items()}
    sizes = task.partition.sizes / task.partition.sizes.sum()
    for number in range(3):
        total = {name: torch.zeros_like(base[f"{name}.weight"]) for name in ADAPTED}
        for client in range(3):
            own: Tensors = {}
            for index, name in enumerate(ADAPTED):
                layer = lora_layers(task.model)[name]
                generator = torch.Generator().manual_seed(index)
                first = torch.randn(RANK, layer.in_features, generator=generator, dtype=torch.float64)
                own[f"{name}.lora_a"] = (first / math.sqrt(layer.in_features)).requires_grad_()
                own[f"{name}.lora_b"] = torch.zeros(layer.out_features, RANK, dtype=torch.float64, requires_grad=True)
            steps = torch.optim.SGD(own.values(), lr=lr, momentum=0.5)
            for step in range(STEPS):
                x, y = (part[0] for part in task.batch(client, Batches(number, step, 1, BATCH)))
                steps.zero_grad()
                F.cross_entropy(functional_call(task.model, {**base, **own}, (x,)), y).backward()
                steps.step()
            for name in ADAPTED:
                product = own[f"{name}.lora_b"].detach() @ own[f"{name}.lora_a"].detach()
                total[name] += sizes[client] * lora_layers(task.model)[name].scale * product
        base = {**base, **{f"{name}.weight": base[f"{name}.weight"] + total[name] for name in ADAPTED}}
    assert_near(base_of(task, history), {f"{name}.weight": base[f"{name}.weight"] for name in ADAPTED}, 1e-9)


# --- splitting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [1, 2, 3, [1, 2, 4]])
def test_a_split_changes_nothing(cuts: Any, same_draws: None):
    """At the same ranks and draws, wherever the model is cut, what is learnt is the same."""
    task = lora_task()
    algorithm = HSplitLora(Sgd(0.3), importance="uniform")
    whole = run(task, algorithm, *[plan(rank=RANK)] * 3)
    split = run(task, algorithm, *[plan(rank=RANK, cut_layer=cuts)] * 3)
    assert_near(split.models[0], whole.models[0], 1e-9)


def test_cuts_may_move(same_draws: None):
    """Where they go from round to round does not matter either: clients get what they lack."""
    task = lora_task()
    algorithm = HSplitLora(Adam(0.02), importance="uniform")
    whole = run(task, algorithm, *[plan(rank=RANK)] * 4)
    moving = [plan(rank=RANK, cut_layer=cuts) for cuts in ([1, 2, 4], [3, 1, 2], [2, 4, 1], [4, 3, 3])]
    assert_near(run(task, algorithm, *moving).models[0], whole.models[0], 1e-9)


@pytest.mark.parametrize("importance", ["rngwp", "uniform"])
def test_batched_is_one_after_another(importance: Any):
    """Clients of unequal ranks and cuts learn the same in a batch, and cost the same."""
    task, algorithm = lora_task(), HSplitLora(Adam(0.02), importance=importance, profile_every=2)
    plans = [plan(cut_layer=cuts) for cuts in ([1, 2, 4], [3, 3, 2], [4, 4, 4])]
    first, second = (run(task, algorithm, *plans, runner=LocalRunner(batched=batched)) for batched in (True, False))
    assert_near(first.models[0], second.models[0], 1e-9)
    for row, other in zip(first.rows, second.rows, strict=True):
        assert row == pytest.approx(other, rel=1e-9, nan_ok=True)


# --- what clients hold -------------------------------------------------------------------------------------------------


def test_clients_hold_what_the_server_does():
    """After the sync of a round, every client's base is the server's up to rounding, also where one was away or cuts moved.

    The frozen weights themselves cross only where a fold has changed them, as factors if that is less.
    """
    task = lora_task(rank=1)
    cuts = ([4, 4, 4], [4, 1, 4], [2, 4, 4], [4, 4, 4])
    plans = [plan(cut_layer=cut, rank=1) for cut in cuts]
    plans[1] = plans[1].take([0, 2])  # client 1 is away
    for number in range(1, 5):
        runner = Recording()
        history = run(task, HSplitLora(Adam(0.05)), *plans[:number], rounds=number, runner=runner)
        earlier = run(task, HSplitLora(Adam(0.05)), *plans[:number], rounds=number - 1) if number > 1 else None
        before = task.frozen if earlier is None else earlier.models[0]
        for entry, planned in enumerate(plans[number - 1]):
            state = history.clients[planned.client]["weights"]
            assert isinstance(state, dict)
            for adapter in adapters_of(task):
                if adapter.layer < planned.cut_layer:
                    own = state.get(adapter.weight, task.frozen[adapter.weight])
                    torch.testing.assert_close(own, before[adapter.weight], rtol=1e-9, atol=1e-9)
            assert entry < 3
        sent = [message for _, message, _ in runner.sent if message.kind == "begin"]
        first = sent[: len(plans[0])]
        assert all(set(message["weights"]) <= set(task.weight_names) for message in first), "initially all have it"
    names = [set(message["weights"]) for message in sent]
    assert any(name.endswith("fold_a") for own in names for name in own)
    assert any(name in task.frozen for own in names for name in own), "whoever was away gets weights"


def test_a_fold_comes_as_factors_or_weights_whichever_is_less():
    """Ranks 1 + 1 + 1 of a 7 x 16 layer are less than its weights, ranks 4 + 4 + 4 are not; the bytes say so."""
    for rank, factors in ((1, True), (4, False)):
        task, runner = lora_task(rank=4, head=False), Recording()
        run(task, HSplitLora(Adam(0.05), importance="uniform"), *[plan(rank=rank)] * 2, runner=runner)
        second = [m for _, m, _ in runner.sent[runner.ends[0] :] if m.kind == "begin"]
        assert len(second) == 3
        for message in second:
            sent = {name: value.nbytes for name, value in message["weights"].items() if "hidden1" in name}
            assert sum(sent.values()) == 8 * (3 * rank * (16 + 7) if factors else 16 * 7)
            assert set(sent) == {"hidden1.1.fold_a", "hidden1.1.fold_b"} if factors else {"hidden1.1.weight"}


def test_a_client_that_was_not_reached_gets_weights():
    """It may have taken up the fold or not: factors would count twice."""
    task = lora_task(rank=4, head=False)

    class Losing(EdgeTiming):
        def lost(self, round: int, plan: RoundPlan) -> Any:
            return (plan.client == 1) & (round == 1)

    runner = Recording()
    train(
        task, HSplitLora(Adam(0.05), importance="uniform"), Plans(plan(rank=1)), Losing.from_problem(problem_of(task)),
        rounds=3, runner=runner,
    )  # fmt: skip
    third = [(entry, m) for entry, m, _ in runner.sent[runner.ends[1] :] if m.kind == "begin"]
    assert {entry: "hidden1.1.weight" in m["weights"] for entry, m in third} == {0: False, 1: True, 2: False}


# --- importance, ranks, cuts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [WHOLE, 1, [1, 2, 3]])
def test_importance_is_what_autograd_says(cuts: Any):
    """|W x dL/dW| summed over a layer, per parameter of a unit of rank, averaged over the clients by their samples."""
    task = lora_task()
    history = run(task, HSplitLora(Adam(0.05)), plan(cut_layer=cuts))
    net = task.model
    expected = np.zeros(3)
    for client, share in enumerate(task.partition.sizes / task.partition.sizes.sum()):
        x, y = (part[0] for part in task.batch(client, Batches(0, 0, 1, BATCH)))
        bases = [layer.weight.detach().requires_grad_() for layer in lora_layers(net).values()]
        names = [f"{name}.weight" for name in lora_layers(net)]
        loss = F.cross_entropy(functional_call(net, dict(zip(names, bases, strict=True)), (x,)), y)
        for index, (base, gradient) in enumerate(zip(bases, torch.autograd.grad(loss, bases), strict=True)):
            expected[index] += share * float((base * gradient).detach().abs().sum()) / sum(base.shape)
    found = history.server["importance"]
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_importance_is_measured_when_it_is_due():
    """In rounds 0, 2, 4 of four; it crosses as statistics, and not at all where all layers count alike."""
    task = lora_task()
    rows = run(task, HSplitLora(Adam(0.05), profile_every=2), *[plan(cut_layer=2)] * 4).rows
    per_round = np.diff([0, *(row["statistics_up"] for row in rows)])
    assert per_round.tolist() == [3 * 2 * 8, 0, 3 * 2 * 8, 0]
    assert run(task, HSplitLora(Adam(0.05), importance="uniform"), plan()).rows[0]["statistics_up"] == 0


def test_ranks_keep_to_the_budget():
    """A client trains and sends no more than its rank takes in all layers; rows beyond are zero and not charged."""
    task, runner = lora_task(head=False), Recording()
    costs = {adapter.name: adapter.cost for adapter in adapters_of(task)}
    run(task, HSplitLora(Adam(0.05)), *[plan(cut_layer=cut) for cut in (4, 2)], runner=runner)
    collected = [(e, answer) for e, message, answer in runner.sent if message.kind == "collect" and answer is not None]
    assert len(collected) == 6
    for entry, answer in collected:
        budget = RANKS[entry] * sum(costs.values())
        assert min(costs.values()) <= answer.nbytes("weights") / 8 <= budget
        for name, rows in answer.rows.items():
            value = answer["weights"][name]
            assert not (value * ~(rows if rows.ndim == 2 else rows[:, None])).any()


def test_cuts_follow_memory():
    """A client has as many layers as fit, whatever `cut_layer` says; a plan's own cut goes first."""
    task = lora_task()
    needed = []
    for cut in range(1, 5):
        runner = Recording()
        run(task, HSplitLora(Adam(0.05), importance="uniform"), plan(rank=RANK, cut_layer=cut), runner=runner)
        needed.append(max(message.peak_bytes for entry, message, _ in runner.sent if entry == 0))
    assert needed == sorted(needed)
    memory = (needed[0] + 1, needed[2], math.inf)
    free = plan(rank=RANK, cut_layer=0)
    algorithm = HSplitLora(Adam(0.05), importance="uniform", memory_bytes=memory, cut_layer=2)
    assert cuts_of(task, algorithm, free) == [1, 3, 3]  # the head has no adapter: nothing is gained by the last layer
    assert cuts_of(task, algorithm, free.replace(cut_layer=[2, 0, 4])) == [2, 3, 4]
    with pytest.raises(
        InvalidProblemError, match=r"^round 0: client 1 needs .* bytes for layer 1 alone, its memory is 9"
    ):
        run(task, HSplitLora(memory_bytes=(math.inf, 9.0, math.inf)), free)
    with pytest.raises(
        InvalidProblemError, match=r"^round 0, hsplit-lora: memory_bytes: 2 numbers, expected one for each of 3 clients"
    ):
        run(task, HSplitLora(memory_bytes=(1e9, 1e9)), free)


def cuts_of(task: Task, algorithm: HSplitLora, *plans: RoundPlan) -> list[int]:
    runner = Recording()
    run(task, algorithm, *plans, runner=runner)
    last = {entry: message.values["cut"] for entry, message, _ in runner.sent if message.kind == "collect"}
    return [int(last[entry]) for entry in sorted(last)]


def test_cuts_stay_until_importance_has_moved():
    """A threshold that is never reached keeps the first cuts; what was decided is in the state."""
    task = lora_task()
    free = plan(rank=[1, 2, 4], cut_layer=0)
    memory = (9000.0, 9000.0, 9000.0)
    never = HSplitLora(Adam(0.05), memory_bytes=memory, resplit=1e9, profile_every=1)
    history = run(task, never, *[free] * 3)
    first = run(task, never, free)
    assert torch.equal(history.server["cuts"], first.server["cuts"])  # type: ignore[arg-type]
    assert torch.equal(history.server["at_split"], first.server["at_split"])  # type: ignore[arg-type]
    always = run(task, HSplitLora(Adam(0.05), memory_bytes=memory, resplit=0.0, profile_every=1), *[free] * 3)
    assert torch.equal(always.server["at_split"], always.server["importance"])  # type: ignore[arg-type]


def test_a_problem_of_split_training_decides_cuts_and_batches():
    """Its plans, made with the bytes of the adapters alone, are those of the rounds."""
    task = lora_task()
    problem = SplitTraining.from_profile(
        task.sent_profile(), EdgeNetwork.random(1, 3, seed=0), interval=1, max_batch=task.partition.sizes
    )
    solution = edgeopt.solve(problem, "hasfl").solution
    assert isinstance(solution, SplitPlan)
    runner, timing = Recording(), EdgeTiming.from_problem(problem)
    train(task, HSplitLora(Adam(0.05)), solution.planner(), timing, rounds=2, runner=runner)
    cuts = [message.values["cut"] for _, message, _ in runner.sent if message.kind == "collect"]
    assert cuts == 2 * solution.cut_layer.tolist()
    sizes = {message.batches.size for _, message, _ in runner.sent if message.batches is not None}
    assert sizes == set(solution.batch_size.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "gut"}, r"^importance = 'gut': expected 'rngwp' or 'uniform'$"),
        ({"profile_every": 0}, r"^profile_every = 0"),
        ({"horizon": 0}, r"^horizon = 0"),
        ({"resplit": -1.0}, r"^resplit = -1\.0: expected a number >= 0$"),
        ({"memory_bytes": (0.0,)}, r"^memory_bytes\[0\] = 0"),
        ({"rank": -1}, r"^rank = -1"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str):
    """Options out of their range, in one line."""
    with pytest.raises(InvalidProblemError, match=message):
        HSplitLora(**options)


def test_a_plan_without_aggregation_is_refused():
    """Every round folds."""
    with pytest.raises(InvalidProblemError, match=r"^round 0: a plan without aggregation"):
        run(lora_task(), HSplitLora(), plan(aggregate=False))
