"""The choice of leaders and followers among gradients, beside the same written anew with plain loops over vectors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeopt.training import TrainingError
from edgeopt.training.messages import Tensors
from edgeopt.training.rules.leader import (
    SLACK,
    aligned,
    angles,
    angles_to_leader,
    common_names,
    cosine,
    inner_products,
    leader_share,
    mean_angles,
    nearest,
    turned,
)
from tests.training.plain_gapsl import angle, pick

Floats = NDArray[np.float64]


def drawn(seed: int, clients: int, size: int = 6, common: float = 0.5) -> Floats:
    """Return gradients [clients, size] that share a direction to some extent."""
    rng = np.random.default_rng(seed)
    return common * rng.normal(size=size) + rng.normal(size=(clients, size))


def tensors(rows: Floats, dtype: torch.dtype = torch.float64) -> list[Tensors]:
    """Return each row as the gradients of two layers."""
    return [
        {"a": torch.tensor(row[:4], dtype=dtype).reshape(2, 2), "b": torch.tensor(row[4:], dtype=dtype)} for row in rows
    ]


def chosen(rows: Floats, share: float, eta: float, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """Return who leads and who is kept."""
    products = inner_products(tensors(rows, dtype))
    leads = nearest(mean_angles(products), share)
    return leads, aligned(angles_to_leader(products, leads), eta)


SEEDS = st.integers(0, 10**6)


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 9), st.floats(0.05, 1), st.floats(0, 2), st.floats(0, 2))
def test_it_is_what_loops_over_vectors_give(seed: int, clients: int, share: float, eta: float, common: float):
    """Mean angles, leaders, angles to the leader and who is kept equal those of the plain second version."""
    rows = drawn(seed, clients, common=common)
    expected = pick(rows, share, eta)
    products = inner_products(tensors(rows))
    np.testing.assert_allclose(mean_angles(products), expected.mean_angles, atol=1e-9)
    leads = nearest(mean_angles(products), share)
    assert leads.tolist() == expected.leads
    np.testing.assert_allclose(angles_to_leader(products, leads), expected.to_leader, atol=1e-7)
    assert aligned(angles_to_leader(products, leads), eta).tolist() == expected.kept


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 9), st.floats(0.05, 1), st.floats(0, 2), st.sampled_from([1e-12, 1e-3, 7.0, 1e12]))
def test_neither_order_nor_scale_matter(seed: int, clients: int, share: float, eta: float, scale: float):
    """The same clients are chosen in any order, and for gradients of any size, in single precision too."""
    rows = drawn(seed, clients)
    order = np.random.default_rng(seed).permutation(clients)
    for dtype in (torch.float64, torch.float32):
        expected = chosen(rows, share, eta, dtype)
        scaled = chosen(scale * rows, share, eta, dtype)
        moved = chosen(rows[order], share, eta, dtype)
        for name in (0, 1):
            assert scaled[name].tolist() == expected[name].tolist()
            assert moved[name].tolist() == expected[name][order].tolist()


@given(st.floats(0, 3), st.floats(0, 3), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1), st.floats(0, 1))
def test_the_share_of_leaders(least: float, more: float, at: float, time: float, low: float, more_share: float):
    """It rises with time at a constant spread, and is least where the spread is the largest so far; it keeps its limits."""
    most, limits = least + more, (low, low + more_share * (1 - low))
    spread = least + at * more
    shares = [leader_share(spread, (least, most), progress, limits) for progress in (0.0, time / 2, time, 1.0)]
    assert shares == sorted(shares)
    assert limits[0] <= shares[0] == low
    assert shares[-1] <= limits[1] + 1e-12
    if most > least:
        assert leader_share(most, (least, most), time, limits) == low
        assert leader_share(least, (least, most), 1.0, limits) == pytest.approx(limits[1])
    else:
        assert leader_share(least, (least, most), 1.0, limits) == pytest.approx(limits[1])


def test_the_share_of_leaders_by_hand():
    """A third of the time is over and the spread is in the middle of its range: a sixth of the way from 0.2 to 0.8."""
    assert leader_share(0.2, (0.1, 0.3), 1 / 3, (0.2, 0.8)) == pytest.approx(0.3)
    assert leader_share(0.0, (0.1, 0.3), 1.0, (0.2, 0.8)) == pytest.approx(0.8)  # no spread is known of two clients


def test_equal_gradients_all_lead_and_stay():
    """Where all are the same, in any precision, nobody is left out, however strict."""
    rows = np.tile(drawn(3, 1), (5, 1)) * np.array([1, 2, 3, 5, 1e-6])[:, None]
    for dtype in (torch.float64, torch.float32):
        leads, kept = chosen(rows, 0.2, 5.0, dtype)
        assert leads.all()
        assert kept.all()


def test_nobody_within_the_threshold_leaves_the_nearest():
    """A threshold below every angle, by eta or fixed, keeps whoever is nearest, ties included."""
    found = np.array([0.9, 0.4, 0.4 + SLACK / 2, 0.5])
    assert aligned(found, 50.0).tolist() == [False, True, True, False]
    assert aligned(found, 0.0, threshold=0.1).tolist() == [False, True, True, False]
    assert aligned(found, 0.0, threshold=0.5).tolist() == [False, True, True, True]


def test_the_threshold_is_at_most_a_right_angle():
    """Whoever is further than pi/2 from the leader is left out though the mean is further."""
    assert aligned(np.array([1.5, 2.5, 2.6]), 0.0).tolist() == [True, False, False]


def test_zero_gradients_stand_at_right_angles():
    """A gradient of zero has a right angle to all, and so has a leader that cancels out."""
    rows = drawn(0, 3)
    rows[1] = 0
    found = angles(inner_products(tensors(rows)))
    np.testing.assert_allclose(found[1], math.pi / 2)
    assert found[0, 2] == pytest.approx(angle(rows[0], rows[2]))
    opposite = inner_products(tensors(np.array([rows[0], -rows[0]])))
    np.testing.assert_allclose(angles_to_leader(opposite, np.array([True, True])), math.pi / 2)


def test_one_and_two_clients():
    """One leads itself; of two both lead, as their angles are the same."""
    assert [x.tolist() for x in chosen(drawn(0, 1), 0.2, 1.0)] == [[True], [True]]
    leads, kept = chosen(drawn(0, 2), 0.2, 0.0)
    assert leads.all()
    assert kept.any()
    assert mean_angles(inner_products(tensors(drawn(0, 1)))).tolist() == [0.0]


def test_gradients_are_compared_over_what_all_have():
    """With different cuts, the layers that one of them lacks at the server do not count."""
    rows = drawn(1, 3)
    some = tensors(rows)
    some[1] = {"b": some[1]["b"]}
    assert common_names(some) == ["b"]
    np.testing.assert_allclose(inner_products(some), rows[:, 4:] @ rows[:, 4:].T)
    none = [{"a": some[0]["a"]}, {"b": some[0]["b"]}]
    assert chosen_of(none).all()


def chosen_of(gradients: list[Tensors]) -> Any:
    """Return who is kept."""
    products = inner_products(gradients)
    return aligned(angles_to_leader(products, nearest(mean_angles(products), 0.2)), 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named(bad: float):
    """The message says whose it is."""
    rows = drawn(0, 3)
    rows[2, 5] = bad
    expected = "the gradient of its loss at the server is not finite: expected finite numbers"
    with pytest.raises(TrainingError, match=f"^client 7: {expected}"):
        inner_products(tensors(rows), whose=["client 4", "client 5", "client 7"])
    with pytest.raises(TrainingError, match=f"^client 2: {expected}"):
        inner_products(tensors(rows))


@settings(max_examples=30)
@given(SEEDS, st.floats(0, 1))
def test_turned_towards_the_leader(seed: int, strength: float):
    """It is the formula, comes nearer to the leader in angle, and leaves layers that the leader lacks as they are."""
    own, leader = drawn(seed, 2)
    found = turned(tensors(own[None])[0], {"b": torch.tensor(leader[4:])}, strength)
    assert torch.equal(found["a"].flatten(), torch.tensor(own[:4]))
    g, to = own[4:], leader[4:]
    size, other = np.linalg.norm(g), np.linalg.norm(to)
    expected = g + strength * size * (to / other - (g @ to) / (size * other) * g / size)
    np.testing.assert_allclose(found["b"], expected, rtol=1e-9, atol=1e-12)
    assert angle(expected, to) <= angle(g, to) + 1e-6
    assert float(cosine({"b": torch.tensor(g)}, {"b": torch.tensor(to)})) == pytest.approx(
        math.cos(angle(g, to)), abs=1e-6
    )


def test_nothing_turns_to_or_from_zero():
    """A gradient of zero stays zero, and a leader of zero moves nothing; slopes are finite there."""
    own = tensors(drawn(0, 1))[0]
    zero = {name: torch.zeros_like(value) for name, value in own.items()}
    for gradient, leader in ((zero, own), (own, zero)):
        for name, value in turned(gradient, leader, 0.7).items():
            assert torch.equal(value, gradient[name])
    for first in (zero, own):
        slope = torch.func.grad(lambda g: cosine(g, zero))(first)
        assert all(torch.isfinite(value).all() for value in slope.values())
    assert all(torch.isfinite(v).all() for v in torch.func.grad(lambda g: cosine(g, own))(zero).values())
