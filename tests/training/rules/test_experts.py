"""Scores of experts, what clients tell, and how the server aligns them, against loops in NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError
from edgeopt.models.moe import LayerRouting
from edgeopt.training.rules.expert_alignment import aligned, overlap, reference_routing
from edgeopt.training.rules.experts import (
    alike_loss,
    gate_shares,
    importance,
    information,
    learners,
    mixtures,
    most,
    sight,
)
from tests.training.small_tasks import small_task
from tests.training.test_experts import FIRST, SECOND, moe_task

Array = NDArray[np.float64]
SEEDS = st.integers(0, 10**6)


def routing(seed: int, experts: int, top_k: int = 1, shape: tuple[int, ...] = (3, 4)) -> tuple[LayerRouting, Array]:
    """Return random routing with hidden states of two channels, and the probabilities by token [N, E]."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, experts, dtype=torch.float64, generator=generator)
    hidden = torch.randn(*shape, 2, dtype=torch.float64, generator=generator)
    chosen = logits.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    rows = np.exp(logits.numpy().reshape(-1, experts))
    return LayerRouting(logits, chosen, hidden), rows / rows.sum(axis=1, keepdims=True)


# --- scores ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 6), st.floats(0, 1), st.floats(0, 3))
def test_scores_are_their_formulas(seed: int, experts: int, mix: float, beta: float) -> None:
    """Importance and information, expert by expert and token by token."""
    found, p = routing(seed, experts)
    for e in range(experts):
        mean, largest = sum(p[:, e]) / len(p), max(p[:, e])
        expected = mix * mean + (1 - mix) * largest
        told = sum(x * math.log(x / mean) for x in p[:, e]) / len(p)
        assert float(importance(found.probability, mix)[e]) == pytest.approx(expected, rel=1e-12)
        assert float(information(found.probability, mix, beta)[e]) == pytest.approx(expected - beta * told, rel=1e-9)
        assert told >= -1e-12


def test_an_expert_that_no_token_considers():
    """Its information is zero, not nan."""
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert information(p).tolist() == [1.0, 0.0]


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 7), st.integers(0, 8))
def test_most_are_the_best_of_those_that_count(seed: int, experts: int, count: int) -> None:
    """As sorting tells; ties go to the lowest index."""
    rng = np.random.default_rng(seed)
    score, among = rng.integers(0, 4, experts).astype(float), rng.random(experts) < 0.6
    order = sorted((e for e in range(experts) if among[e]), key=lambda e: -score[e])[:count]
    assert most(torch.tensor(score), torch.tensor(among), count).numpy().nonzero()[0].tolist() == sorted(order)


def test_shares_of_routers():
    """The sum of usage times importance over a client's own experts, by how many experts anybody has."""
    usage, matters = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]), torch.tensor([[0.4, 0.2, 0.9], [0.5, 0.6, 0.7]])
    own = torch.tensor([[True, True, False], [False, True, False]])
    expected = [(0.5 * 0.4 + 0.3 * 0.2) / 2, 0.8 * 0.6 / 2]
    assert gate_shares(usage, matters, own).tolist() == pytest.approx(expected)
    assert gate_shares(usage, matters, torch.zeros_like(own)).tolist() == [0, 0]


def test_a_budget_by_layer_and_of_the_model():
    """Of each layer no more than it has; of the model the first layers are counted full; there must be so many."""
    task = moe_task()
    for budget, scope, expected in (
        (3, "layer", (3, 3)),
        (0, "layer", (4, 4)),
        (5, "model", (4, 1)),
        (0, "model", (4, 4)),
    ):
        assert learners(task, budget, scope) == dict(zip((FIRST, SECOND), expected, strict=True))  # type: ignore[arg-type]
    for budget, scope, most_ in ((5, "layer", 4), (9, "model", 8), (-1, "layer", 4)):
        with pytest.raises(InvalidProblemError, match=f"experts = {budget}: expected .*0 to {most_}"):
            learners(task, budget, scope)  # type: ignore[arg-type]


def test_models_that_have_not_what_is_needed():
    """No experts at all, experts or a router that are frozen; a frozen bias is no trouble."""
    with pytest.raises(InvalidProblemError, match="model: hfedmoe trains layers of experts, it has none"):
        mixtures(small_task(), "hfedmoe")
    model = moe_task().model
    layer = model.get_submodule(SECOND)
    layer.down_bias.requires_grad_(False)
    layer.router.weight.requires_grad_(False)
    found = mixtures(moe_task(model), "hfedmoe")
    assert found[SECOND].networks == tuple(f"{SECOND}.{name}" for name in ("up", "up_bias", "down"))
    assert (found[FIRST].router, found[SECOND].router) == ((f"{FIRST}.router.weight",), ())
    with pytest.raises(InvalidProblemError, match=rf"model: {SECOND}.router: fedalign-moe trains it, expected weights"):
        mixtures(moe_task(model), "fedalign-moe", routers=True)
    for name in ("up", "up_bias", "down"):
        getattr(layer, name).requires_grad_(False)
    with pytest.raises(InvalidProblemError, match=rf"model: {SECOND}: hfedmoe trains it, expected weights"):
        mixtures(moe_task(model), "hfedmoe")


# --- what clients tell ----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 5))
def test_sight_is_its_formulas(seed: int, experts: int) -> None:
    """Usage, margin, mean hidden state and who is first, token by token."""
    found, p = routing(seed, experts)
    seen = sight(found)
    hidden = found.hidden.numpy().reshape(-1, 2)
    for e in range(experts):
        others = np.delete(p, e, axis=1)
        lead = [max(0.0, x - max(rest, default=0.0)) for x, rest in zip(p[:, e], others.tolist(), strict=True)]
        of = [h for h, row in zip(hidden, p, strict=True) if row.argmax() == e]
        assert float(seen.usage[e]) == pytest.approx(p[:, e].mean())
        assert float(seen.margin[e]) == pytest.approx(np.mean(lead), abs=1e-15)
        assert bool(seen.first[e]) == bool(of)
        np.testing.assert_allclose(seen.hidden[e], np.mean(of, axis=0) if of else 0, atol=1e-14)


def test_passes_joined_are_one_pass():
    """What is told of parts of the samples together is what is told of all."""
    whole, _ = routing(0, 4, shape=(6, 3))
    parts = [LayerRouting(whole.logits[a:b], whole.experts[a:b], whole.hidden[a:b]) for a, b in ((0, 1), (1, 6))]
    for found, expected in zip(sight(LayerRouting.joined(parts)), sight(whole), strict=True):
        assert torch.equal(found, expected)


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 5), st.data())
def test_the_term_that_holds_routers_near_is_its_formula(seed: int, experts: int, data: st.DataObject) -> None:
    """Over the experts that a token uses and those that are most used by all."""
    top_k = data.draw(st.integers(1, experts))
    found, p = routing(seed, experts, top_k)
    rng = np.random.default_rng(seed)
    reference, weight = rng.dirichlet(np.ones(experts)), rng.random(experts)
    common = sorted(range(experts), key=lambda e: -reference[e])[:top_k]
    total = 0.0
    for row in p:
        own = sorted(range(experts), key=lambda e, row=row: -row[e])[:top_k]
        total += sum(weight[e] * row[e] * math.log(row[e] / reference[e]) for e in {*own, *common})
    loss = alike_loss(found.probability, found.is_chosen, torch.tensor(reference), top_k, torch.tensor(weight))
    assert float(loss) == pytest.approx(total / len(p), rel=1e-9, abs=1e-12)


def test_a_reference_of_zero_is_finite():
    """Logarithms are bounded, so are gradients."""
    logits = torch.randn(5, 3, requires_grad=True)
    found = LayerRouting(logits, logits.argsort(dim=-1, descending=True)[:, :1])
    loss = alike_loss(found.probability, found.is_chosen, torch.tensor([1.0, 0.0, 0.0]), 1, torch.ones(3))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()


# --- common routing -------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_common_routing_is_its_formula(seed: int, clients: int, experts: int, consistent: bool) -> None:
    """Weighted by overlap and margin, made to sum to one; an expert without weights keeps its part."""
    rng = np.random.default_rng(seed)
    usage = rng.dirichlet(np.ones(experts), clients)
    margin = rng.random((clients, experts)) * (rng.random((clients, experts)) < 0.6)
    before = rng.dirichlet(np.ones(experts))
    expected = []
    for e in range(experts):
        score = [usage[i, e] * usage[:, e].mean() * margin[i, e] if consistent else 1.0 for i in range(clients)]
        mean = sum(s * usage[i, e] for i, s in enumerate(score))
        expected.append(mean / sum(score) if sum(score) > 0 else before[e])
    found = reference_routing(*map(torch.tensor, (usage, margin, before)), consistent=consistent)
    np.testing.assert_allclose(found, np.array(expected) / sum(expected), rtol=1e-9)


def test_even_use_overlaps_by_the_square_of_its_share():
    """That is why eta is 1 / E^2 by default."""
    even = torch.full((8,), 1 / 8)
    assert overlap(even, even).tolist() == [1 / 64] * 8


# --- alignment ------------------------------------------------------------------------------------------------------


def drawn(seed: int, clients: int, experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden states, updates, and who has trained what."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(clients, experts, 3, dtype=torch.float64, generator=generator)
    updates = torch.randn(clients, experts, 4, dtype=torch.float64, generator=generator)
    return hidden, updates, torch.rand(clients, experts, generator=generator) < 0.7


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 5), st.integers(1, 3), st.sampled_from([0.0, 0.5, 2.0]), st.booleans(), st.booleans())
def test_alignment_is_its_formula(
    seed: int, clients: int, experts: int, beta: float, directions: bool, sized: bool
) -> None:
    """Pair by pair, over those that have trained an expert; where nobody has, nobody counts."""
    hidden, updates, trained = drawn(seed, clients, experts)
    size = torch.arange(1.0, clients + 1) if sized else None
    found = aligned(hidden, updates, trained, beta=beta, sharpness=2.0, directions=directions, size=size)
    for e in range(experts):
        own = [i for i in range(clients) if trained[i, e]]
        if not own:
            assert (found.share[:, e] == 0).all()
            assert math.isnan(found.semantic[e])
            continue
        alike = {(i, j): cosine(hidden[i, e].numpy(), hidden[j, e].numpy()) for i in own for j in own}
        mean, spread = np.mean(list(alike.values())), np.std(list(alike.values()))
        gamma = {}
        for (i, j), s in alike.items():
            agree = max(0.0, cosine(updates[i, e].numpy(), updates[j, e].numpy())) if directions else 1.0
            weight = (i + 1) * (j + 1) if sized else 1
            gamma[i, j] = weight * agree / (1 + math.exp(-2.0 * (s - (mean - beta * spread))))
        expected = [sum(gamma.get((i, j), 0.0) for j in own) / sum(gamma.values()) for i in range(clients)]
        np.testing.assert_allclose(found.share[:, e], expected, rtol=1e-6, atol=1e-12)
        assert float(found.semantic[e]) == pytest.approx(mean)


def test_identical_clients_count_alike():
    """All pairs are alike: the update is the plain mean."""
    hidden, updates, _ = drawn(0, 1, 3)
    found = aligned(hidden.repeat(4, 1, 1), updates.repeat(4, 1, 1), torch.ones(4, 3, dtype=torch.bool))
    torch.testing.assert_close(found.share, torch.full((4, 3), 0.25, dtype=torch.float64))
    torch.testing.assert_close(found.semantic, torch.ones(3, dtype=torch.float64))


def test_a_client_that_goes_the_other_way_has_its_own_weight_alone():
    """With an opposite update, and hidden states at a right angle, only the pair with itself is left."""
    hidden, updates = (
        torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]),
        torch.tensor([[[1.0]], [[1.0]], [[-1.0]]]),
    )
    found = aligned(hidden, updates, torch.ones(3, 1, dtype=torch.bool))
    assert found.share[:, 0].tolist() == pytest.approx([2 / 5, 2 / 5, 1 / 5])  # of five pairs, all of similarity 1


@settings(max_examples=25)
@given(SEEDS, st.permutations(range(5)))
def test_the_order_of_clients_does_not_matter(seed: int, order: list[int]) -> None:
    """Shares go with the clients."""
    hidden, updates, trained = drawn(seed, 5, 3)
    found, other = aligned(hidden, updates, trained), aligned(hidden[order], updates[order], trained[order])
    torch.testing.assert_close(other.share, found.share[order])
    torch.testing.assert_close(other.semantic, found.semantic, equal_nan=True)


def test_a_fixed_threshold():
    """In the place of mean and deviation."""
    hidden, updates, trained = drawn(3, 3, 2)
    found = aligned(hidden, updates, trained | True, threshold=0.9, directions=False)
    gamma = np.array(
        [
            [1 / (1 + math.exp(0.9 - cosine(hidden[i, 0].numpy(), hidden[j, 0].numpy()))) for j in range(3)]
            for i in range(3)
        ]
    )
    np.testing.assert_allclose(found.share[:, 0], gamma.sum(axis=1) / gamma.sum(), rtol=1e-9)
