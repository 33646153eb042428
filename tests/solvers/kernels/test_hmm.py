"""Kernels of hidden Markov models against the sum over all hidden paths."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.solvers.kernels import hmm as module

few = settings(max_examples=30)
seeds = st.integers(0, 2**32 - 1)


def python(kernel: Any) -> Any:
    """Return the uncompiled kernel; with NUMBA_DISABLE_JIT=1 it is the kernel itself."""
    return getattr(kernel, "py_func", kernel)


def model(rng: np.random.Generator, states: int, symbols: int) -> tuple[Any, Any, Any]:
    """Return (start, transition, emission [V, K])."""
    emission = rng.dirichlet(np.ones(symbols), states)
    return rng.dirichlet(np.ones(states)), rng.dirichlet(np.ones(states), states), np.ascontiguousarray(emission.T)


def gapped(rng: np.random.Generator, num: int, length: int, symbols: int) -> Any:
    """Return sequences with every second symbol missing on average, whole rows now and then."""
    data = rng.integers(0, symbols, (num, length))
    data[rng.random(data.shape) < 0.5] = -1
    return data


def path_weights(row: Any, start: Any, transition: Any, emission: Any) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Return all hidden paths and the joint probability of each with what was seen."""
    paths = list(product(range(len(start)), repeat=len(row)))
    weights = []
    for path in paths:
        weight = start[path[0]]
        for t, state in enumerate(path):
            weight *= transition[path[t - 1], state] if t else 1.0
            weight *= emission[row[t], state] if row[t] >= 0 else 1.0
        weights.append(weight)
    return paths, np.array(weights)


@given(seeds, st.sampled_from([(1, 2), (2, 2), (3, 2), (2, 3)]), st.integers(1, 6))
@few
def test_counts_and_beliefs_are_sums_over_paths(seed: int, sizes: tuple[int, int], length: int):
    """Log-likelihood, filtered beliefs and all expected counts of gapped sequences, by enumeration of the paths."""
    rng = np.random.default_rng(seed)
    parameters = model(rng, *sizes)
    data = gapped(rng, 3, length, sizes[1])
    beliefs, values = module.filter_beliefs(data, *parameters)
    *sums, again = module.expected_counts(data, *parameters)
    np.testing.assert_allclose(values, again, atol=1e-12)
    totals = [np.zeros_like(part) for part in sums]
    for n, row in enumerate(data):
        paths, weights = path_weights(row, *parameters)
        assert values[n] == pytest.approx(np.log(weights.sum()), abs=1e-12)
        for t in range(length):
            so_far, part = path_weights(row[: t + 1], *parameters)
            expected = [part[[path[-1] == k for path in so_far]].sum() / part.sum() for k in range(sizes[0])]
            np.testing.assert_allclose(beliefs[n, t], expected, atol=1e-12)
        seen = np.flatnonzero(row >= 0)
        for path, weight in zip(paths, weights / weights.sum(), strict=True):
            if seen.size:
                totals[0][path[0]] += weight
            for t in range(seen.max(initial=-1) + 1):  # what follows the last symbol is left out
                if t:
                    totals[1][path[t - 1], path[t]] += weight
                if row[t] >= 0:
                    totals[2][row[t], path[t]] += weight
    for ours, theirs in zip(sums, totals, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@given(seeds)
@few
def test_beliefs_moved_online_are_the_filter(seed: int):
    """Advanced round by round, with a model per server, every covered pair's belief is the filter's, one step on."""
    rng = np.random.default_rng(seed)
    episodes, servers, clients, states, length = 2, 3, 4, 2, 5
    models = [model(rng, states, 2) for _ in range(servers)]
    covered = rng.random((servers, clients)) < 0.7
    data = gapped(rng, episodes * servers * clients, length, 2).reshape(episodes, servers, clients, length)
    start, transition, emission = (np.ascontiguousarray(np.stack(part)) for part in zip(*models, strict=True))
    belief = np.tile(start[None, :, None, :], (episodes, 1, clients, 1))
    for t in range(length):
        outcome = np.ascontiguousarray(data[..., t]).astype(np.int8)
        module.advance_beliefs(belief, outcome, covered, transition, emission)
    for e, s, c in np.ndindex(episodes, servers, clients):
        expected = models[s][0]
        if covered[s, c]:
            expected = module.filter_beliefs(data[e, s, [c]], *models[s])[0][0, -1] @ transition[s]
        np.testing.assert_allclose(belief[e, s, c], expected, atol=1e-12)


def test_long_sequences_do_not_underflow():
    """A million symbols of tiny probability: the log-likelihood is their sum."""
    emission = np.array([[1e-9, 1e-9], [1 - 1e-9, 1 - 1e-9]])
    data = np.zeros((1, 100_000), np.int64)
    start, transition = np.array([0.5, 0.5]), np.full((2, 2), 0.5)
    for value in (
        module.filter_beliefs(data, start, transition, emission)[1],
        module.expected_counts(data, start, transition, emission)[3],
    ):
        assert value[0] == pytest.approx(1e5 * np.log(1e-9), rel=1e-12)


def test_a_single_symbol_may_be_almost_impossible():
    """One factor far below the threshold at which the running product is taken into the logarithm."""
    emission = np.array([[1e-290, 1e-290], [1.0, 1.0]])
    data = np.array([[1, 0, 0, 1]])
    start, transition = np.array([0.5, 0.5]), np.full((2, 2), 0.5)
    for value in (
        module.filter_beliefs(data, start, transition, emission)[1],
        module.expected_counts(data, start, transition, emission)[3],
    ):
        assert value[0] == pytest.approx(2 * np.log(1e-290), rel=1e-12)


def test_impossible_sequences_count_nothing():
    """What the model rules out has log-likelihood -inf and no counts; its neighbours are not touched."""
    start, transition = np.array([1.0, 0.0]), np.eye(2)
    emission = np.array([[1.0, 0.5], [0.0, 0.5]])
    data = np.array([[0, 1, 0], [0, 0, -1], [-1, -1, -1]])
    beliefs, values = module.filter_beliefs(data, start, transition, emission)
    starts, moves, symbols, again = module.expected_counts(data, start, transition, emission)
    assert values.tolist() == again.tolist() == [-np.inf, 0.0, 0.0]
    assert np.isnan(beliefs[0, 1:]).all()
    assert starts.tolist() == [1.0, 0.0]  # of the second sequence alone
    assert moves.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert symbols.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    belief = np.array([[[[1.0, 0.0]]]])
    module.advance_beliefs(belief, np.array([[[1]]], np.int8), np.array([[True]]), transition[None], emission[None])
    assert belief.tolist() == [[[[1.0, 0.0]]]]  # taken for missing


def test_beliefs_moved_online_are_not_lost():
    """A symbol or a belief of almost no probability is no impossible one: what comes next is told from what it says."""
    outcome, covered = np.array([[[1]]], np.int8), np.array([[True]])
    belief = np.array([[[[1.0, 1e-200]]]])  # the symbol says that it is the second state, by 1e-200 to 0
    module.advance_beliefs(belief, outcome, covered, np.eye(2)[None], np.array([[[1.0, 1.0], [0.0, 1e-200]]]))
    assert belief.tolist() == [[[[0.0, 1.0]]]]
    belief = np.array([[[[0.5, 0.5]]]])
    emission = np.array([[[0.9, 0.1], [0.1, 0.9]]])
    for symbol in [0] * 1000 + [1] * 1000:
        outcome[...] = symbol
        module.advance_beliefs(belief, outcome, covered, np.eye(2)[None], emission)
    assert belief[0, 0, 0, 1] > 0.4  # back, though a belief that stops at 1e-180 is back too early


def test_compiled_is_uncompiled():
    """The compiled kernels return the bits of the Python functions, in logarithms to rounding."""
    rng = np.random.default_rng(0)
    parameters = model(rng, 3, 2)
    data = gapped(rng, 4, 30, 2)
    for kernel in (module.filter_beliefs, module.expected_counts):
        for ours, plain in zip(kernel(data, *parameters), python(kernel)(data, *parameters), strict=True):
            np.testing.assert_array_equal(ours, plain)
        tiny = parameters[0], np.array([[1.0, 0.0, 1e-90], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]), parameters[2]
        for ours, plain in zip(kernel(data, *tiny), python(kernel)(data, *tiny), strict=True):
            np.testing.assert_allclose(ours, plain, rtol=1e-13)
    start, transition, emission = (part[None] for part in parameters)
    beliefs = [np.tile(start[:, None, None], (2, 1, 4, 1)) for _ in range(2)]
    outcome = rng.integers(-1, 2, (2, 1, 4)).astype(np.int8)
    covered = np.array([[True, True, False, True]])
    module.advance_beliefs(beliefs[0], outcome, covered, transition, emission)
    python(module.advance_beliefs)(beliefs[1], outcome, covered, transition, emission)
    np.testing.assert_array_equal(*beliefs)
