"""Kernels of the facility-location form against sums written out in Python."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.solvers.kernels import facility as module

few = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)
# (experts, users, servers, models): one of each in turn
SHAPES = [(4, 5, 3, 2), (1, 4, 3, 1), (3, 1, 2, 1), (5, 6, 1, 2), (1, 1, 1, 1)]
shapes = st.sampled_from(SHAPES)


def python(kernel: Any) -> Any:
    """Return the uncompiled kernel; with NUMBA_DISABLE_JIT=1 it is the kernel itself."""
    return getattr(kernel, "py_func", kernel)


def arrays(seed: int, shape: tuple[int, int, int, int] = SHAPES[0], *, real: bool = False) -> tuple[Any, Any, Any]:
    """Return (weight, gain, model); unless `real`, multiples of 1/4, so that sums are exact and ties are common."""
    num_experts, num_users, num_servers, num_models = shape
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 5, (num_experts, num_users)) / 4
    gain = rng.integers(0, 5, (num_models, num_users, num_servers)) / 4
    if real:
        weight, gain = weight * rng.random(weight.shape), gain * rng.random(gain.shape)
    return weight, gain, np.sort(rng.integers(0, num_models, num_experts))


def value(weight: Any, gain: Any, model: Any, cached: Any) -> float:
    """Return the value of a placement [N, E], from its definition."""
    return sum(expert_value(weight[e], gain[model[e]], np.flatnonzero(cached[:, e])) for e in range(len(model)))


def expert_value(weight: Any, gain: Any, servers: Any) -> float:
    """Return the value of one expert, weight [U], gain [U, N], held by these servers."""
    return float(sum(w * max((gain[u, n] for n in servers), default=0.0) for u, w in enumerate(weight)))


def transposed(gain: Any) -> Any:
    """Return the gains with a server's users side by side, [M, N, U]."""
    return np.ascontiguousarray(gain.transpose(0, 2, 1))


def ranking(gain: Any) -> tuple[Any, Any]:
    """Return (order, rank) [M, U, N] of the servers by falling gain."""
    order = np.argsort(-gain, axis=2, kind="stable")
    return order, np.argsort(order, axis=2, kind="stable")


@few
@given(seeds, shapes)
def test_marginals_are_differences(seed: int, shape: tuple[int, int, int, int]) -> None:
    """The marginal value of each pair is the value with it less the value without it; `best_of` is the maximum."""
    weight, gain, model = arrays(seed, shape)
    cached = np.random.default_rng(seed).random((shape[2], shape[0])) < 0.4
    best = module.best_of(cached, gain, model)
    for e, u in np.ndindex(*best.shape):
        assert best[e, u] == max((gain[model[e], u, n] for n in np.flatnonzero(cached[:, e])), default=0.0)
    values = module.marginals(weight, gain, model, best)
    before = value(weight, gain, model, cached)
    for e, n in np.ndindex(*values.shape):
        more = cached.copy()
        more[n, e] = True
        assert values[e, n] == value(weight, gain, model, more) - before


@few
@given(seeds, shapes)
def test_values_at_a_server(seed: int, shape: tuple[int, int, int, int]) -> None:
    """For every server: what it adds to the others' value of each expert, whether it holds it or not."""
    weight, gain, model = arrays(seed, shape)
    cached, by_server = np.random.default_rng(seed).random((shape[2], shape[0])) < 0.5, transposed(gain)
    for n in range(shape[2]):
        values = module.values_at(n, cached, weight, by_server, model)
        for e in range(shape[0]):
            others = [m for m in np.flatnonzero(cached[:, e]) if m != n]
            base = expert_value(weight[e], gain[model[e]], others)
            assert base + values[e] == expert_value(weight[e], gain[model[e]], [*others, n])


@few
@given(seeds, shapes)
def test_shares_left(seed: int, shape: tuple[int, int, int, int]) -> None:
    """What a server adds to another one's, of what it gives by itself; nothing where it gives nothing."""
    _, gain, _ = arrays(seed, shape)
    share = module.shares_left(gain)
    for m, r, n in np.ndindex(*share.shape):
        alone = gain[m, :, n].sum()
        expected = (np.maximum(gain[m, :, n], gain[m, :, r]) - gain[m, :, r]).sum() / alone if alone else 0.0
        assert share[m, r, n] == pytest.approx(expected)


@few
@given(seeds, shapes)
def test_filling_in_turns(seed: int, shape: tuple[int, int, int, int]) -> None:
    """Nothing that fits is left out, nothing exceeds a storage, what was there stays, and no turn is skipped."""
    num_experts, _, num_servers, _ = shape
    _, gain, model = arrays(seed, shape)
    rng = np.random.default_rng(seed)
    value = rng.integers(0, 4, (num_servers, num_experts)).astype(float)
    size = rng.integers(1, 4, num_experts).astype(float)
    before = rng.random(value.shape) < 0.2
    left = rng.integers(0, 8, num_servers).astype(float)
    capacity, cached, copies = left + before @ size, before.copy(), before.sum(axis=0)
    module.fill_in_turns(cached, left, copies, value, size, model, module.shares_left(gain))
    assert np.array_equal(left, capacity - cached @ size)
    assert (left >= 0).all()
    assert (before <= cached).all()
    assert np.array_equal(copies, cached.sum(axis=0))
    assert not ((size <= left[:, None]) & ~cached).any()
    small = size == size.min()  # what fits a server there fits always
    if (copies[small] == 0).any():
        assert (copies[small] <= np.maximum(1, before.sum(axis=0)[small])).all()


def test_turns_are_taken_by_value() -> None:
    """First copies go to the servers of the largest values, the most valuable expert first; second copies to what is left."""
    value, size, model = np.array([[5.0, 4.0, 1.0], [3.0, 2.0, 0.5]]), np.ones(3), np.zeros(3, np.int64)
    cached, left, copies = np.zeros((2, 3), bool), np.array([2.0, 2.0]), np.zeros(3, np.int64)
    module.fill_in_turns(cached, left, copies, value, size, model, np.ones((1, 2, 2)))
    assert cached.tolist() == [[True, True, False], [True, False, True]]


def test_second_copies_go_elsewhere() -> None:
    """The second copy goes to the server that helps other users, though another one gives more by itself."""
    gain = np.array([[[3.0, 2.9, 0.0], [3.0, 2.9, 0.0], [0.0, 0.0, 4.0]]])
    share = module.shares_left(gain)
    assert share[0, 0].tolist() == [0.0, 0.0, 1.0]
    cached, left, copies = np.zeros((3, 2), bool), np.array([2.0, 1.0, 1.0]), np.zeros(2, np.int64)
    value = np.outer(gain[0].sum(axis=0), [2.0, 1.0])
    module.fill_in_turns(cached, left, copies, value, np.ones(2), np.zeros(2, np.int64), share)
    assert cached.T.tolist() == [[True, False, True], [True, True, False]]


def plain_greedy(weight: Any, gain: Any, model: Any, size: Any, capacity: Any, per_byte: bool) -> Any:
    """Return the greedy placement: every marginal value afresh for every pick, ties to the lowest server and expert."""
    cached = np.zeros((capacity.size, size.size), bool)
    while True:
        left = capacity - cached @ size
        before, found, most = value(weight, gain, model, cached), None, 0.0
        for n, e in np.ndindex(*cached.shape):
            if cached[n, e] or size[e] > left[n]:
                continue
            cached[n, e] = True
            key = (value(weight, gain, model, cached) - before) / (size[e] if per_byte else 1.0)
            cached[n, e] = False
            if key > most:
                found, most = (n, e), key
        if found is None:
            return cached
        cached[found] = True


def run_lazy(
    weight: Any, gain: Any, model: Any, size: Any, capacity: Any, per_byte: bool, picks: int, batch: int = 1
) -> Any:
    """Return (placement, storage left, best gains) of the lazy kernel, called for `picks` picks at a time."""
    values = module.marginals(weight, gain, model, np.zeros_like(weight)).T
    picking = module.Picking.of(values / size if per_byte else values, capacity, weight.shape[1])
    by_server = transposed(gain)
    remaining = picking.heap.size
    while remaining:
        before = picking.cached.sum()
        remaining = module.lazy_greedy(picking, remaining, weight, by_server, model, size, per_byte, picks, batch)
        assert picking.cached.sum() - before <= picks
        assert np.array_equal(picking.copies, picking.cached.sum(axis=0))
    return picking.cached, picking.left, picking.best


@few
@given(seeds, shapes, st.booleans(), st.sampled_from([1, 2, 1000]), st.sampled_from([1, 2, 64]))
def test_lazy_greedy_equals_plain_greedy(
    seed: int, shape: tuple[int, int, int, int], per_byte: bool, picks: int, batch: int
) -> None:
    """Lazy picks are the plain ones, ties included, however the picks are cut up and values batched; what it keeps track of is right."""
    weight, gain, model = arrays(seed, shape)
    rng = np.random.default_rng(seed)
    size = rng.choice([1.0, 2.0, 4.0], shape[0])
    capacity = rng.integers(0, 6, shape[2]).astype(float)
    cached, left, best = run_lazy(weight, gain, model, size, capacity, per_byte, picks, batch)
    assert np.array_equal(cached, plain_greedy(weight, gain, model, size, capacity, per_byte))
    assert np.array_equal(left, capacity - cached @ size)
    assert np.array_equal(best, module.best_of(cached, gain, model))


def test_lazy_greedy_ties_go_to_the_lowest_index() -> None:
    """When all pairs are worth the same, server 0 is filled first, expert 0 first."""
    weight, gain, model = np.ones((3, 2)), np.ones((1, 2, 2)), np.zeros(3, np.int64)
    cached, _, _ = run_lazy(weight, gain, model, np.ones(3), np.array([2.0, 3.0]), False, 1000)
    assert cached.tolist() == [[True, True, False], [False, False, True]]


@pytest.mark.parametrize("what", ["weight", "gain"])
def test_nothing_to_gain(what: str) -> None:
    """Without demand or without gains all values are zero and greedy places nothing, rather than worthless experts."""
    weight, gain, model = arrays(3)
    weight, gain = (0 * weight, gain) if what == "weight" else (weight, 0 * gain)
    y, (order, rank) = np.full((3, 4), 0.5), ranking(gain)
    assert not module.marginals(weight, gain, model, np.zeros_like(weight)).any()
    assert not module.server_gradient(1, y, weight, gain, model, order, rank).any()
    assert not run_lazy(weight, gain, model, np.ones(4), np.ones(3), True, 5)[0].any()


@few
@given(st.lists(st.integers(-2, 6), max_size=40))
def test_heap_is_a_heap(keys: list[int]) -> None:
    """The heap holds each item with a positive key once, and no child comes before its parent."""
    key = np.array(keys, np.float64)
    heap = module.build_heap(key)
    assert sorted(heap.tolist()) == [i for i, k in enumerate(keys) if k > 0]
    for child in range(1, heap.size):
        parent, here = heap[(child - 1) // 2], heap[child]
        assert (-key[parent], parent) < (-key[here], here)


def extension(y: np.ndarray, weight: np.ndarray, gain: np.ndarray, model: np.ndarray) -> np.ndarray:
    """Return [E]: the expected value of each expert when server n holds it with probability y[n, e]."""
    held_by = itertools.product([False, True], repeat=len(y))
    return np.sum(
        [
            np.prod(np.where(np.array(held)[:, None], y, 1 - y), axis=0)
            * [expert_value(weight[e], gain[model[e]], np.flatnonzero(held)) for e in range(len(weight))]
            for held in held_by
        ],
        axis=0,
    )


@few
@given(seeds, shapes)
def test_gradient_is_the_difference_of_the_extension(seed: int, shape: tuple[int, int, int, int]) -> None:
    """The extension is linear in one server's probability: its derivative is its value at one less that at zero."""
    weight, gain, model = arrays(seed, shape, real=seed % 2 == 0)
    y = np.random.default_rng(seed).choice([0.0, 0.3, 0.5, 1.0], (shape[2], shape[0]))
    order, rank = ranking(gain)
    for n in range(shape[2]):
        gradient = module.server_gradient(n, y, weight, gain, model, order, rank)
        ends = []
        for there in (0.0, 1.0):
            y_there = y.copy()
            y_there[n] = there
            ends.append(extension(y_there, weight, gain, model))
        assert gradient == pytest.approx(ends[1] - ends[0], abs=1e-12)
        h = 0.125 * np.where(y[n] > 0.5, -1.0, 1.0)  # a finite difference within the unit cube
        moved = y.copy()
        moved[n] += h
        slope = (extension(moved, weight, gain, model) - extension(y, weight, gain, model)) / h
        assert gradient == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_equals_uncompiled(shape: tuple[int, int, int, int]) -> None:
    """Compiled kernels give the same bits as the Python they are written in."""
    weight, gain, model = arrays(11, shape, real=True)
    rng = np.random.default_rng(12)
    num_experts, _, num_servers, _ = shape
    cached, y = rng.random((num_servers, num_experts)) < 0.4, rng.random((num_servers, num_experts))
    (order, rank), by_server = ranking(gain), transposed(gain)
    best = module.best_of(cached, gain, model)
    for kernel, arguments in (
        (module.best_of, (cached, gain, model)),
        (module.marginals, (weight, gain, model, best)),
        (module.values_at, (num_servers - 1, cached, weight, by_server, model)),
        (module.server_gradient, (0, y, weight, gain, model, order, rank)),
        (module.build_heap, (rng.random(17) - 0.3,)),
        (module.shares_left, (gain,)),
    ):
        assert np.array_equal(kernel(*arguments), python(kernel)(*arguments)), kernel
    states = []
    for kernel in (module.lazy_greedy, python(module.lazy_greedy)):
        values = module.marginals(weight, gain, model, np.zeros_like(weight)).T
        picking = module.Picking.of(values, np.full(num_servers, 2.5), weight.shape[1])
        size = np.linspace(0.5, 1.5, num_experts)
        remaining = kernel(picking, picking.heap.size, weight, by_server, model, size, True, 3, 2)
        states.append((picking.heap[:remaining], *picking[1:]))
        filled = [picking.cached.copy(), picking.left.copy(), picking.copies.copy()]
        (module.fill_in_turns if len(states) == 1 else python(module.fill_in_turns))(
            *filled, values, size, model, module.shares_left(gain)
        )
        states[-1] += tuple(filled)
    assert all(np.array_equal(x, z) for x, z in zip(*states, strict=True))
