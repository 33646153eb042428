"""The best of many scores against sorting; the b-matching against enumeration, networkx and SciPy."""

from itertools import product
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from edgeopt.solvers.kernels import selection as module

few = settings(max_examples=60)
seeds = st.integers(0, 2**32 - 1)


def python(kernel: Any) -> Any:
    """Return the uncompiled kernel; with NUMBA_DISABLE_JIT=1 it is the kernel itself."""
    return getattr(kernel, "py_func", kernel)


def instance(seed: int, servers: int, clients: int, *, whole: bool = False) -> tuple[Any, Any]:
    """Return (gain, capacity): some pairs out of reach, some gains negative; whole gains have many ties."""
    rng = np.random.default_rng(seed)
    gain = rng.integers(-2, 5, (servers, clients)) * 1.0 if whole else rng.normal(0.5, 1.0, (servers, clients))
    gain[rng.random(gain.shape) < 0.3] = -np.inf
    return gain, rng.integers(0, 4, servers)


def matched(gain: Any, capacity: Any, kernel: Any = None) -> tuple[Any, float]:
    """Return the owners and the value of the matching, after checking that it is one."""
    order = np.argsort(-gain, axis=1, kind="stable")
    owner = (kernel or module.match)(gain, order, capacity)
    clients = np.flatnonzero(owner >= 0)
    assert (np.bincount(owner[clients], minlength=len(gain)) <= capacity).all()
    used = gain[owner[clients], clients]
    assert (used > 0).all()
    return owner, float(used.sum())


def by_assignment(gain: Any, capacity: Any) -> float:
    """Return the optimum by SciPy: a row per place of a server, a column of its own for leaving it empty."""
    rows = np.repeat(np.maximum(gain, -1.0), capacity, axis=0)
    table = np.hstack([rows, np.zeros((len(rows), len(rows)))])
    return float(table[linear_sum_assignment(table, maximize=True)].sum())


def by_networkx(gain: Any, capacity: Any) -> float:
    """Return the optimum by networkx: a maximum-weight matching of places and clients."""
    graph = nx.Graph()
    for s, c in np.argwhere(gain > 0):
        for place in range(capacity[s]):
            graph.add_edge(("place", s, place), ("client", c), weight=gain[s, c])
    return sum(graph.edges[pair]["weight"] for pair in nx.max_weight_matching(graph))


@given(seeds, st.booleans())
@few
def test_highest_is_the_head_of_a_stable_sort(seed: int, whole: bool):
    """Rows of several lengths, with ties and uncovered clients: the first of a stable sort, -1 to fill up."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 4, (2, 3, 7)) * 1.0 if whole else rng.random((2, 3, 7))
    covered, counts = rng.random((3, 7)) < 0.7, rng.integers(1, 5, 3).astype(np.int32)
    covered[:, :4] = True
    results = []
    for kernel in (module.highest, python(module.highest)):
        picks = np.full((2, 3, 4), -1, np.int32)
        kernel(score, covered, counts, picks)
        results.append(picks)
    np.testing.assert_array_equal(*results)
    for e, s in np.ndindex(2, 3):
        order = np.argsort(np.where(covered[s], -score[e, s], np.inf), kind="stable")[: counts[s]]
        assert results[0][e, s].tolist() == [*order.tolist(), *[-1] * (4 - counts[s])]


@given(seeds, st.booleans())
@few
def test_matching_is_the_best_of_all(seed: int, whole: bool):
    """On three servers and five clients the value is that of the best of all assignments."""
    gain, capacity = instance(seed, 3, 5, whole=whole)
    best = 0.0
    for owners in product(range(-1, 3), repeat=5):
        clients = [c for c in range(5) if owners[c] >= 0]
        counts = np.bincount([owners[c] for c in clients], minlength=3)
        if (counts <= capacity).all():
            best = max(best, sum(gain[owners[c], c] for c in clients))
    assert matched(gain, capacity)[1] == pytest.approx(best, abs=1e-9)


@given(seeds, st.booleans())
@few
def test_matching_agrees_with_networkx_and_scipy(seed: int, whole: bool):
    """On up to seven servers and twenty clients the value is that of two other algorithms."""
    rng = np.random.default_rng(seed)
    gain, capacity = instance(seed, int(rng.integers(1, 8)), int(rng.integers(1, 21)), whole=whole)
    value = matched(gain, capacity)[1]
    assert value == pytest.approx(by_assignment(gain, capacity), abs=1e-9)
    assert value == pytest.approx(by_networkx(gain, capacity), abs=1e-9)


def test_a_thousand_clients():
    """A large instance with much competition: SciPy's value, and the same matching every time."""
    rng = np.random.default_rng(1)
    gain = rng.random(1000) + 0.2 * rng.random((20, 1000))  # all servers like the same clients
    capacity = rng.integers(5, 30, 20)
    owner, value = matched(gain, capacity)
    assert value == pytest.approx(by_assignment(gain, capacity), rel=1e-12)
    np.testing.assert_array_equal(owner, matched(gain, capacity)[0])
    assert (np.bincount(owner[owner >= 0], minlength=20) == capacity).all()


def test_long_chains_of_exchanges():
    """Each server gives up its client for the next one, down to the only free client."""
    size = 40
    gain = np.full((size, size), -np.inf)
    gain[np.arange(size), np.arange(size)] = 1.0
    gain[np.arange(size - 1), np.arange(1, size)] = 0.99
    gain[size - 1, 0] = 1.0  # the last server's only other client is the first one's
    gain[size - 1, size - 1] = -np.inf
    _, value = matched(gain, np.ones(size, np.int64))
    assert value == pytest.approx(1.0 + 0.99 * (size - 1))


def test_ties_go_to_the_first_server_and_client():
    owner, value = matched(np.ones((2, 3)), np.array([1, 1]))
    assert owner.tolist() == [0, 1, -1]
    assert value == 2.0


@given(seeds, st.booleans())
@settings(max_examples=15)
def test_compiled_is_uncompiled(seed: int, whole: bool):
    gain, capacity = instance(seed, 4, 9, whole=whole)
    np.testing.assert_array_equal(matched(gain, capacity)[0], matched(gain, capacity, python(module.match))[0])
