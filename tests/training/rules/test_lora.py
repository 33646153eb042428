"""Rules for adapters: stacking is exact, ranks keep to their budget, importance is smoothed, memory is that of the rank."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeopt.data import ArrayData, Partition
from edgeopt.errors import InvalidProblemError
from edgeopt.models import add_lora, gpt2, mlp
from edgeopt.training import Adam, Sgd, Task, client_peak_bytes
from edgeopt.training.rules.lora import (
    adapters_of,
    budget_of,
    greedy_ranks,
    importance_moved,
    lower_peak_bytes,
    row_masks,
    smoothed_importance,
    spared_work,
    stacked,
    truncated,
    uniform_ranks,
)
from tests.training.small_tasks import small_task


def lora_task(rank: int = 3, **options: object):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mlp(4, (6, 5), 3)
    return small_task(model=add_lora(model, "*", rank=rank, **options))


@given(st.integers(0, 1000))
def test_stacking_loses_nothing(seed: int):
    """For ranks 1, 3, 8 and any weights, W + B A of the stack is W + sum w_i s_i B_i A_i to 1e-6, computed in float64."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(20, 30)).astype(np.float32)
    shares, scales = rng.dirichlet(np.ones(3)), rng.uniform(0.1, 4, 3)
    factors = [
        tuple(rng.normal(size=shape).astype(np.float32) for shape in ((rank, 30), (20, rank))) for rank in (1, 3, 8)
    ]
    a, b = stacked([(torch.tensor(a), torch.tensor(b)) for a, b in factors], (shares * scales).tolist())
    assert (a.shape, b.shape) == ((12, 30), (20, 12))
    found = (torch.tensor(weight) + b @ a).numpy()
    exact = weight.astype(np.float64)
    for share, scale, (own_a, own_b) in zip(shares, scales, factors, strict=True):
        exact += share * scale * own_b.astype(np.float64) @ own_a.astype(np.float64)
    assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < 1e-6


def test_separate_means_lose_most_of_it():
    """The product of the means of zero-padded A and B is far from the mean of the products, where inits differ."""
    rng = np.random.default_rng(0)
    products, sums = np.zeros((20, 30)), [np.zeros((8, 30)), np.zeros((20, 8))]
    for rank in (1, 3, 8):
        a, b = rng.normal(size=(rank, 30)), rng.normal(size=(20, rank))
        products += b @ a / 3
        sums[0][:rank] += a / 3
        sums[1][:, :rank] += b / 3
    assert np.linalg.norm(sums[1] @ sums[0] - products) / np.linalg.norm(products) > 0.5


@given(st.lists(st.floats(0, 10), min_size=1, max_size=4), st.integers(1, 12), st.integers(0, 10))
def test_greedy_is_the_best_for_equal_costs(worth: list[float], units: int, seed: int):
    """Over all ranks within the budget, none has a larger sum of importance x (1 + 1/2 + ... + 1/rank)."""
    most = np.random.default_rng(seed).integers(0, 5, len(worth))
    ranks = greedy_ranks(worth, [7] * len(worth), most, 7 * units)
    assert (ranks <= most).all()
    assert ranks.sum() == min(units, most.sum()), "what there is, is spent"

    def value(chosen: tuple[int, ...]) -> float:
        return sum(w * sum(1 / j for j in range(1, r + 1)) for w, r in zip(worth, chosen, strict=True))

    every = itertools.product(*(range(m + 1) for m in most))
    best = max(value(chosen) for chosen in every if sum(chosen) <= units)
    assert value(tuple(ranks.tolist())) == pytest.approx(best)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=6),
    st.integers(9, 80),
)
def test_greedy_keeps_to_unequal_costs(layers: list[tuple[float, int, int]], budget: int):
    """Never above the budget, and no unit that would still fit is left; more budget is never less anywhere in sum."""
    worth, cost, most = (np.array(column) for column in zip(*layers, strict=True))
    ranks = greedy_ranks(worth, cost, most, budget)
    left = budget - int((ranks * cost).sum())
    assert left >= 0
    assert all(rank == limit or price > left for rank, limit, price in zip(ranks, most, cost, strict=True))


def test_a_budget_below_one_adapter():
    """It is told how much it takes at least; without layers nothing is wanted."""
    with pytest.raises(InvalidProblemError, match=r"^budget = 9: expected at least 10, the parameters of one adapter"):
        greedy_ranks([1.0, 1.0], [10, 20], [3, 3], 9)
    assert greedy_ranks([], [], [], 0).size == 0


def test_ranks_and_budgets_of_a_task():
    """A rank is that of all layers, as far as each goes; its budget is what these take."""
    own = adapters_of(lora_task(rank=3, ranks={"hidden2*": 5}))
    assert [(a.name, a.layer, a.inputs, a.outputs, a.rank, a.scale) for a in own] == [
        ("hidden1.1", 0, 4, 6, 3, 1.0), ("hidden2.0", 1, 6, 5, 5, 1.0), ("head.0", 2, 5, 3, 3, 1.0),
    ]  # fmt: skip
    assert uniform_ranks(own, 4).tolist() == [3, 4, 3]
    assert uniform_ranks(own, 0).tolist() == [3, 5, 3]
    assert budget_of(own, 1) == 10 + 11 + 8
    assert budget_of(own, 0) == 3 * 10 + 5 * 11 + 3 * 8


def test_truncation():
    """Rows of A and columns of B beyond the rank are zero, others and other weights stay; that is what is charged."""
    task = lora_task()
    weights = {name: torch.ones_like(value) for name, value in task.initial_weights().items()}
    masks = row_masks(adapters_of(task), np.array([1, 3, 0]))
    found = truncated(weights, masks)
    assert found["hidden1.1.lora_a"].sum(dim=1).tolist() == [4, 0, 0]
    assert found["hidden1.1.lora_b"].sum(dim=0).tolist() == [6, 0, 0]
    assert found["hidden2.0.lora_a"].equal(weights["hidden2.0.lora_a"])
    assert found["head.0.lora_b"].count_nonzero() == 0
    assert masks["head.0.lora_b"].shape == (1, 3)


def test_smoothing():
    """Equal importance stays; what moves by its own size or more is mixed by rho, which falls from .9 to .3."""
    old = np.array([1.0, 1.0, 2.0])
    np.testing.assert_allclose(smoothed_importance(old, old, 0.5), old)
    np.testing.assert_allclose(smoothed_importance(old, np.array([2.0, 0.0, 6.0]), 0.0), [1.9, 0.1, 5.6])
    np.testing.assert_allclose(smoothed_importance(old, np.array([2.0, 0.0, 6.0]), 1.0), [1.3, 0.7, 3.2])
    np.testing.assert_allclose(smoothed_importance(old, np.array([1.5, 1.0, 2.0]), 0.5), [1.15, 1.0, 2.0])
    np.testing.assert_allclose(smoothed_importance(np.zeros(1), np.ones(1), 0.0), [0.9])
    assert importance_moved(np.array([1.0, 3.0]), np.array([2.0, 2.0])) == 0.5


@pytest.mark.parametrize("optimizer", [Sgd(), Sgd(momentum=0.5), Adam()])
@pytest.mark.parametrize("cut", [1, 2, None])
def test_memory_is_that_of_a_model_of_the_rank(optimizer: Sgd | Adam, cut: int | None):
    """It is what a model of that rank takes, but for the few numbers that a padded adapter keeps of each sample."""
    large, small = lora_task(rank=3), lora_task(rank=1)
    own = adapters_of(large)
    found = lower_peak_bytes(large, 0, optimizer, own, [1, 1, 1], cut)
    assert found == client_peak_bytes(small, 0, optimizer, cut=cut)
    per_sample = lower_peak_bytes(large, 1, optimizer, own, [1, 1, 1], cut) - found
    kept = client_peak_bytes(small, 1, optimizer, cut=cut) - client_peak_bytes(small, 0, optimizer, cut=cut)
    assert 0 <= per_sample - kept <= 4 * 3 * (3 if cut is None else cut) * 2
    assert lower_peak_bytes(large, 2, optimizer, own, [3, 3, 3], cut) == client_peak_bytes(large, 2, optimizer, cut=cut)


def test_a_base_that_is_trained_too_is_refused():
    """What is learnt at both places could not be told apart; without an adapter that trains there is none."""
    model = add_lora(mlp(4, (5,), 3), "*", rank=2)
    nn.Module.get_submodule(model, "head.0").weight.requires_grad_(True)
    with pytest.raises(InvalidProblemError, match=r"^model: head\.0\.weight requires gradients: expected it frozen"):
        adapters_of(small_task(model=model))
    held = add_lora(mlp(4, (5,), 3), "hidden1*", rank=2)
    for parameter in held.parameters():
        parameter.requires_grad_(not parameter.requires_grad)
    assert adapters_of(small_task(model=held)) == ()


def adapted(kind: str, rank: int) -> Task:
    """Return a task whose adapters have a rank: a perceptron that trains its head, or decoders."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "mlp":
            model = add_lora(mlp(4, (6, 5), 3), "hidden*", rank=rank)
            model.get_submodule("head").requires_grad_(True)
            return small_task(model=model)
        decoder = gpt2(vocabulary=11, context=6, width=8, depth=2, heads=2, tied=False, fused=False)
    pattern = {"all": "*", "some": ["block2*query_key_value", "head*"]}[kind]
    tokens = torch.arange(60).reshape(10, 6) % 11
    data = ArrayData(tokens, tokens.flip(1), 11, "tokens")
    partition = Partition((np.arange(5), np.arange(5, 10)), num_samples=10)
    return Task(model=add_lora(decoder, pattern, rank=rank), train=data, partition=partition, test=data)


@pytest.mark.parametrize("kind", ["mlp", "all", "some"])
def test_work_is_that_of_a_model_of_the_lower_rank(kind: str):
    """What lower ranks spare is the difference of two measured models, layer by layer, forward and backward."""
    large, small = adapted(kind, 3), adapted(kind, 1)
    adapters = adapters_of(large)
    for cut in range(large.num_layers + 1):
        for first, last in ((0, cut), (cut, large.num_layers)):
            found = spared_work(large, adapters, np.ones(len(adapters), np.int64), first, last)
            profiles = [task.profile for task in (large, small)]
            assert found.forward == pytest.approx(
                np.subtract(*(profile.forward_flops[first:last].sum() for profile in profiles))
            )
            assert found.backward == pytest.approx(
                np.subtract(*(profile.backward_flops[first:last].sum() for profile in profiles))
            )


def test_under_the_profile_of_another_model_adapters_keep_their_share():
    """A profile of ten times the work has ten times the difference, and no rank makes it negative."""
    own = adapted("mlp", 3)
    adapters = adapters_of(own)
    profile = dataclasses.replace(
        own.profile, forward_flops=10 * own.profile.forward_flops, backward_flops=10 * own.profile.backward_flops
    )
    ranks = np.zeros(len(adapters), np.int64)
    assert spared_work(own.replace(profile=profile), adapters, ranks) == pytest.approx(
        [10 * work for work in spared_work(own, adapters, ranks)]
    )
