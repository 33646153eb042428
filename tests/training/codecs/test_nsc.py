"""`NscCodec` against `torch.linalg.svd`; budgets that are never exceeded; what both sides remember."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import InvalidProblemError
from edgeopt.training import Form, NscCodec, State
from edgeopt.training.codecs.factors import orthogonal_iteration
from tests.training.codecs.crossing import SHAPES, exchange, form_of, nbytes, tensor

EXACT = NscCodec(energy=1.0)


def matrices(count: int, samples: int = 32, size: int = 120, seed: int = 0) -> list[torch.Tensor]:
    """Return mini-batches from one distribution: a mean, directions of falling strength, noise; as activations are."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    strength = 3.0 * 0.75 ** torch.arange(size) + 0.02
    mean = 2 * torch.rand(size, generator=generator)
    return [torch.randn(samples, size, generator=generator) * strength @ directions + mean for _ in range(count)]


def centred_svd(x: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the best approximation of what differs from the mean, plus the mean."""
    mean = x.mean(0)
    u, s, v = torch.linalg.svd(x - mean, full_matrices=False)
    return mean + u[:, :rank] * s[:rank] @ v[:rank]


def error(found: torch.Tensor, x: torch.Tensor) -> float:
    return float((found - x).norm() / x.norm())


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("rank", [2, 8])
def test_errors_are_those_of_the_svd_within_two_percent(rank: int, direction: str):
    """From the first message on, with one iteration each, for activations and for gradients; and never below."""
    codec, client, server = NscCodec(max_rank=rank, energy=1.0, refresh=0), State(), State()
    for number, x in enumerate(matrices(12)):
        done = exchange(codec, x, client=client, server=server)
        client, server = done.client, done.server
        found, best = done.found if direction == "up" else done.gradient, centred_svd(x, rank)
        assert error(best, x) - 1e-6 <= error(found, x) <= (1.01 if number else 1.02) * error(best, x)


def test_a_subspace_of_before_is_worth_iterations():
    """One iteration from the message before is nearer to the SVD than one from random; more iterations are nearer still."""
    *_, before, x = matrices(3)
    x = x - x.mean(0)
    random = torch.randn(120, 6, generator=torch.Generator().manual_seed(1))
    _, warm = orthogonal_iteration(before - before.mean(0), random, 3)
    wrong = [
        float((x - left @ right.T).norm())
        for left, right in (orthogonal_iteration(x, basis, n) for basis, n in ((random, 1), (warm, 1), (warm, 3)))
    ]
    assert wrong[0] > wrong[1] > wrong[2] >= float(torch.linalg.svdvals(x)[6:].norm()) * (1 - 1e-6)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_factors_are_orthogonal_and_in_order(scale: float):
    """Lengths are singular values, largest first, whatever the units."""
    x = scale * tensor((9, 14), dtype=torch.float64)
    left, right = orthogonal_iteration(x, tensor((14, 9), 1, torch.float64), 2)
    lengths = left.norm(dim=0)
    torch.testing.assert_close(lengths, torch.linalg.svdvals(x), rtol=1e-9, atol=0)
    torch.testing.assert_close(right.T @ right, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (left.T @ left - torch.diag(lengths**2)).abs().max() < 1e-9 * lengths.max() ** 2


@pytest.mark.parametrize(
    "x",
    [torch.zeros(5, 9), torch.ones(5, 9), tensor((5, 1)) @ tensor((1, 9)), tensor((5, 2)) @ tensor((2, 9), 1), tensor((1, 9))],
    ids=["zeros", "equal", "rank 1", "rank 2", "one sample"],
)  # fmt: skip
def test_a_matrix_of_less_rank_is_exact(x: torch.Tensor):
    """So is one of full rank after it, once the rank has followed, from a subspace that the first did not fill."""
    client: State = {}
    server: State = {}
    other = tensor((5, 9), 2)[: len(x)]
    for number, sent in enumerate((x, x, other, other, x)):
        done = exchange(EXACT, sent, client=client, server=server)
        client, server = done.client, done.server
        if number != 2:
            torch.testing.assert_close(done.found, sent, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(done.gradient, sent, rtol=1e-4, atol=1e-5)


def test_bytes_are_those_that_are_stated():
    """D + r (B + D) values, and up 4 bytes for each number of the spectrum."""
    x = tensor((6, 4, 3, 3))
    done = exchange(NscCodec(max_rank=3), x)
    assert nbytes(done.sent) == 4 * (36 + 3 * (6 + 36)) + 4 * (3 + 1)
    assert nbytes(done.back) == 4 * (36 + 3 * (6 + 36))
    assert {name: tuple(part.shape) for name, part in done.sent.items()} == {
        "mean": (36,), "left": (6, 3), "right": (3, 36), "spectrum": (4,),
    }  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    shape=st.sampled_from([*SHAPES, (32, 16, 4, 4)]),
    budget=st.one_of(st.floats(0, 3), st.floats(0, 5000), st.floats(0, 40000)),
    residual=st.sampled_from(["4-bit", "top-k", "none"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    spread=st.floats(0.1, 1.0),
)
def test_a_budget_is_never_exceeded(shape: tuple[int, ...], budget: float, residual: Any, dtype: Any, spread: float):
    """Below one byte, below a row, above everything, in message after message; no order only where the mean does not fit."""
    codec = NscCodec(residual=residual, energy=0.9, refresh=2)
    client: State = {}
    server: State = {}
    for number, share in enumerate((1.0, spread, 1.0)):
        x = tensor(shape, number, dtype)
        form, limit = form_of(x), share * budget
        order = codec.order("up", form, limit, server)
        least = form.size * dtype.itemsize + 4 * (min(8, form.samples - 1, form.size) + 1)
        assert (order is None) == (limit < least)
        if order is not None:
            done = exchange(codec, x, budget=limit, client=client, server=server)
            client, server = done.client, done.server
            assert least <= nbytes(done.sent) <= limit
            assert nbytes(done.back) <= nbytes(done.sent)


@pytest.mark.parametrize("residual", ["4-bit", "top-k"])
def test_bytes_that_are_left_make_it_better(residual: Any):
    """Of equal rank, the error with the residual is smaller; it takes less than another rank would."""
    x = matrices(1, size=400)[0]
    budget = 4 * (400 + 3.9 * 432) + 36
    plain, more = (exchange(NscCodec(residual=kind), x, budget=budget) for kind in ("none", residual))
    assert error(more.found, x) < 0.97 * error(plain.found, x)
    assert nbytes(plain.sent) < nbytes(more.sent) < nbytes(plain.sent) + 4 * 432
    assert torch.equal(more.sent["left"], plain.sent["left"])


@pytest.mark.parametrize("residual", ["4-bit", "top-k"])
def test_without_need_or_budget_there_is_no_residual(residual: Any):
    """Where the spectrum is reached, or nothing is limited, no more is sent than that."""
    codec, x = NscCodec(residual=residual, energy=0.5), matrices(1)[0]
    first = exchange(codec, x)
    assert "left" in first.sent
    second = exchange(codec, x, budget=1e6, client=first.client, server=first.server)
    assert set(second.sent) == {"mean", "left", "right", "spectrum"}


def test_the_rank_follows_the_spectrum_of_the_message_before():
    """The least rank whose squared singular values reach the share, computed by the SVD; 0 where all samples are equal."""
    codec, form = NscCodec(max_rank=12, energy=0.9), Form((32, 120), torch.float32)
    wanted, server, client = 12, State(), State()
    for number, x in enumerate([*matrices(4), torch.ones(32, 120), torch.ones(32, 120), *matrices(2, seed=5)]):
        order = codec.order("up", form, math.inf, server)
        assert order is not None
        assert order["rank"] == wanted
        done = exchange(codec, x, client=client, server=server)
        client, server = done.client, done.server
        squares = np.linalg.svd((x - x.mean(0)).double().numpy(), compute_uv=False) ** 2
        reached = np.concatenate([[0.0], np.cumsum(squares)]) >= 0.9 * squares.sum()
        wanted = 0 if number in (4, 5) else min(12, int(np.argmax(reached)))
    assert 1 < wanted < 12


def test_gradients_have_no_larger_rank_than_activations_had():
    """What the link has carried up is the limit for what comes down; below it, their own spectrum decides."""
    x, simple = matrices(1)[0], tensor((32, 1)) @ tensor((1, 120), 1)
    done = exchange(EXACT, x, simple, budget=4 * (120 + 3 * 152) + 36)
    assert done.sent["left"].shape == done.back["left"].shape == (32, 3)
    again = exchange(EXACT, x, simple, client=done.client, server=done.server)
    assert (again.sent["left"].shape, again.back["left"].shape) == ((32, 8), (32, 1))
    torch.testing.assert_close(again.gradient, simple, rtol=1e-4, atol=1e-5)


def test_the_subspace_is_drawn_anew():
    """In the first message, in every q-th after it, and where a cut has moved; gradients go with it."""
    codec, client, server, fresh = NscCodec(refresh=3), State(), State(), []
    for samples, size in ((32, 120), (32, 120), (20, 120), (32, 120), (32, 120), (32, 60), (32, 60)):
        x = matrices(1, samples, size)[0]
        order = codec.order("up", form_of(x), math.inf, server)
        done = exchange(codec, x, client=client, server=server)
        down = codec.order("down", form_of(x), math.inf, {**done.server, "down": server.get("down", {})})
        assert order is not None
        assert down is not None
        assert order["fresh"] == down["fresh"]
        fresh.append(order["fresh"])
        client, server = done.client, done.server
    assert fresh == [True, False, False, True, False, True, False]


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_memory_of_what_was_missed(weight: float):
    """Each side adds its share of what its last message has missed; nothing is kept by default."""
    codec = NscCodec(max_rank=2, activation_feedback=weight, gradient_feedback=weight)
    xs = [tensor((5, 12), seed, torch.float64) for seed in range(3)]
    client: State = {}
    server: State = {}
    up = down = torch.zeros(5, 12, dtype=torch.float64)
    for x in xs:
        done = exchange(codec, x, 2 * x, client=client, server=server)
        client, server = done.client, done.server
        up, down = x + weight * up - done.found, 2 * x + weight * down - done.gradient
        for own, missed in ((client, up), (server["down"], down)):
            assert isinstance(own, dict)
            torch.testing.assert_close(own["missed"], missed)
    plain = exchange(NscCodec(), xs[0])
    assert set(plain.client) == {"basis"}
    assert set(plain.server) == {"size", "rank", "since", "spectrum", "down"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_arrives(value: float):
    """With the mean, whatever the rank; and the subspace is usable in the message after it."""
    x, other = tensor((5, 9)), tensor((5, 9), 1)
    x[2, 3] = value
    for budget in (math.inf, 100):
        done = exchange(EXACT, x, budget=budget)
        assert not done.found[:, 3].isfinite().any()
        assert not done.gradient[:, 3].isfinite().any()
        for _ in range(2):  # the rank follows
            done = exchange(EXACT, other, client=done.client, server=done.server)
        torch.testing.assert_close(done.found, other)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_rank": 0}, "max_rank = 0: expected"),
        ({"iterations": 0}, "iterations = 0: expected"),
        ({"refresh": -1}, "refresh = -1: expected"),
        ({"energy": 0.0}, "energy = 0.0: expected above 0, to 1"),
        ({"residual": "8-bit"}, "residual = '8-bit': expected one of 4-bit, top-k, none"),
        ({"gradient_feedback": 1.5}, "gradient_feedback = 1.5: expected 0 to 1"),
    ],
)
def test_parameters_out_of_range(fields: dict[str, Any], told: str):
    """Are refused, with what was expected."""
    with pytest.raises(InvalidProblemError, match=told):
        NscCodec(**fields)
