"""Multiple-choice knapsack against brute force, HiGHS, the 0/1 knapsack and itself uncompiled."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, sparse

from edgeopt.errors import InvalidProblemError
from edgeopt.solvers.kernels import multiple_choice as module
from edgeopt.solvers.kernels.knapsack import knapsack
from edgeopt.solvers.kernels.multiple_choice import solve_multiple_choice

FAMILIES = ["uncorrelated", "weakly", "strongly", "subset-sum", "whole", "value of the class", "unit", "monotone"]


def python(kernel: Any) -> Any:
    """Return the uncompiled kernel; with NUMBA_DISABLE_JIT=1 it is the kernel itself."""
    return getattr(kernel, "py_func", kernel)


def family(kind: str, classes: int, options: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return an instance of a family, after Pisinger; the capacity lets most classes have their lightest option."""
    rng = np.random.default_rng(seed)
    w = 1e-3 + 100 * rng.random((classes, options))
    if kind == "weakly":
        v = np.maximum(0.1, w + rng.uniform(-10, 10, w.shape))
    elif kind == "strongly":
        w = np.ceil(w)
        v = w + 10
    elif kind == "subset-sum":
        w = np.ceil(w)
        v = w.copy()
    elif kind == "whole":
        w, v = np.ceil(w), np.ceil(100 * rng.random(w.shape))
    elif kind == "value of the class":
        v = np.broadcast_to(rng.integers(1, 11, (classes, 1)), w.shape).astype(float)
    elif kind == "unit":
        v = np.ones(w.shape)
    elif kind == "monotone":
        w, v = np.sort(w), np.sort(rng.random(w.shape))
    else:
        v = rng.random(w.shape)
    capacity = float(np.floor(w.min(1).sum() * rng.uniform(0.3, 3)))
    return np.arange(classes + 1) * options, w.ravel(), v.ravel(), capacity


def brute_force(indptr: Any, weight: Any, value: Any, capacity: float) -> float:
    """Best value over all choices."""
    best = 0.0
    for choice in itertools.product(*([-1, *range(a, b)] for a, b in itertools.pairwise(indptr))):
        chosen = [j for j in choice if j >= 0]
        if math.fsum(weight[chosen]) <= capacity:
            best = max(best, math.fsum(value[chosen]))
    return best


def highs(indptr: Any, weight: Any, value: Any, capacity: float) -> float:
    """Optimum by branch and bound."""
    classes = sparse.csr_array((np.ones(weight.size), np.arange(weight.size), indptr))
    rows = [optimize.LinearConstraint(classes, ub=1.0), optimize.LinearConstraint(weight[None, :], ub=capacity)]
    found = optimize.milp(-value, constraints=rows, integrality=1, bounds=(0, 1), options={"mip_rel_gap": 0.0})
    assert found.success
    return -float(found.fun)


def check(indptr: Any, weight: Any, value: Any, capacity: float, answer: tuple[Any, float, float]) -> float:
    """Check that a choice fits, is worth what is said and is below its bound; return its value."""
    chosen, best, bound = answer
    taken = chosen[chosen >= 0]
    assert ((chosen < 0) | ((chosen >= indptr[:-1]) & (chosen < indptr[1:]))).all()
    assert math.fsum(weight[taken]) <= capacity * (1 + 2e-12)
    assert best == math.fsum(value[taken])
    assert best <= bound
    return best


CLASSES = st.lists(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), max_size=4), max_size=5)


def arrays(classes: list[list[tuple[float, float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays of a list of classes of (weight, value)."""
    table = np.array([option for options in classes for option in options], float).reshape(-1, 2)
    return np.append(0, np.cumsum([len(options) for options in classes], dtype=int)), table[:, 0], table[:, 1]


@given(CLASSES, st.integers(0, 30))
def test_whole_numbers_match_brute_force(classes: list[list[tuple[int, int]]], capacity: int) -> None:
    """The best choice of small whole numbers, exactly, and its value as the bound."""
    data = *arrays(classes), float(capacity)
    answer = solve_multiple_choice(*data)
    assert check(*data, answer) == brute_force(*data) == answer[2]


REAL = st.floats(0, 9, allow_subnormal=False)


@given(st.lists(st.lists(st.tuples(REAL, REAL), max_size=3), max_size=5), st.floats(0, 20))
def test_real_numbers_match_brute_force(classes: list[list[tuple[float, float]]], capacity: float) -> None:
    """The best choice of small real instances: between the optima just within and just above the capacity."""
    data = *arrays(classes), capacity
    best = check(*data, solve_multiple_choice(*data))
    assert best >= brute_force(*data) - 1e-11
    assert best <= brute_force(*data[:3], capacity * (1 + 2e-12)) + 1e-11


@pytest.mark.parametrize("kind", FAMILIES)
def test_matches_highs(kind: str) -> None:
    """The optimum of branch and bound on instances of up to 60 classes, classes of more than `SMALL` options included."""
    for seed, (classes, options) in enumerate([(60, 5), (25, 1), (4, 50)]):
        data = family(kind, classes, options, seed)
        answer = solve_multiple_choice(*data)
        assert check(*data, answer) == pytest.approx(highs(*data), rel=1e-7)
        assert answer[2] == answer[1]


@pytest.mark.parametrize("kind", FAMILIES)
def test_large_instances_are_solved_to_the_end(kind: str) -> None:
    """100,000 classes of 8 options: a choice that fits, worth at least half the bound, and proved optimal."""
    data = family(kind, 100_000, 8, 1)
    answer = solve_multiple_choice(*data)
    check(*data, answer)
    assert answer[2] == answer[1]


def test_one_option_per_class_is_the_knapsack() -> None:
    """With one option per class, the 0/1 knapsack by dynamic programming has the same optimum."""
    for seed in range(20):
        data = family("whole", 80, 1, seed)
        expected, _ = knapsack(data[2], data[1].astype(int), int(data[3]))
        assert solve_multiple_choice(*data)[1] == expected


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from(FAMILIES))
def test_given_up_at_once_is_half_the_bound(seed: int, kind: str) -> None:
    """Without a search: a valid bound, and at least half of it, as proved; the search never makes it worse."""
    data = family(kind, 6, 3, seed)
    answer = solve_multiple_choice(*data, stop=lambda: True)
    best = check(*data, answer)
    assert best >= answer[2] / 2 * (1 - 1e-11)
    assert best <= brute_force(*data) + 1e-9 <= answer[2] + 2e-9
    assert solve_multiple_choice(*data)[1] >= best


def test_half_is_needed() -> None:
    """The rises up to the first that does not fit are worth 1, one option alone 10: greedy without it would be bad."""
    answer = solve_multiple_choice([0, 1, 2], [1.0, 10.0], [1.0, 9.0], 10.0, stop=lambda: True)
    assert answer[0].tolist() == [-1, 1]
    assert answer[1] == 9.0
    assert 9.1 <= answer[2] <= 9.1 * (1 + 2e-12)


def test_stop_is_asked_until_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search in pieces ends as one in one go; one that is stopped half way keeps a choice and a bound."""
    data = family("weakly", 400, 5, 3)
    whole = solve_multiple_choice(*data)
    monkeypatch.setattr(module, "BUDGET", 1)
    asked: list[int] = []
    pieces = solve_multiple_choice(*data, stop=lambda: bool(asked.append(1)))
    assert len(asked) > 3
    assert pieces[1:] == whole[1:]
    assert np.array_equal(pieces[0], whole[0])
    asked.clear()
    part = solve_multiple_choice(*data, stop=lambda: asked.append(1) or len(asked) > 3)
    assert check(*data, part) <= whole[1] <= part[2]


@pytest.mark.parametrize("name", ["MAX_STATES", "MAX_NODES"])
def test_too_many_states_keep_the_bound(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """When memory is full, the best choice so far comes back with the linear bound: equal weights and values, real."""
    rng = np.random.default_rng(1)
    weight = rng.random(150)
    data = np.arange(0, 151, 3), weight, weight, 10.0
    monkeypatch.setattr(module, name, 100)
    answer = solve_multiple_choice(*data)
    assert 9.9 < check(*data, answer) <= 10.0 <= answer[2] <= 10.0 * (1 + 1e-11)


@pytest.mark.parametrize("kind", FAMILIES)
def test_compiled_equals_uncompiled(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All kernels together give the same bits as the Python they are written in."""
    cases = [family(kind, 12, 4, 5), family(kind, 2, 40, 6)]
    compiled = [solve_multiple_choice(*data) for data in cases]
    for name in ("points_kernel", "climb_kernel", "gradients_kernel", "merge_kernel", "expand_kernel"):
        monkeypatch.setattr(module, name, python(getattr(module, name)))
    for data, (chosen, best, bound) in zip(cases, compiled, strict=True):
        plain = solve_multiple_choice(*data)
        assert np.array_equal(plain[0], chosen)
        assert plain[1:] == (best, bound)


@given(CLASSES, st.integers(0, 30), st.integers(0, 9), st.randoms())
def test_order_capacity_and_more_options(classes: Any, capacity: int, more: int, random: Any) -> None:
    """The order of classes and options does not matter; more capacity and more options never hurt."""
    best = solve_multiple_choice(*arrays(classes), float(capacity))[1]
    mixed = [random.sample(options, len(options)) for options in random.sample(classes, len(classes))]
    assert solve_multiple_choice(*arrays(mixed), float(capacity))[1] == best
    assert solve_multiple_choice(*arrays(classes), float(capacity + more))[1] >= best
    fewer = [options[1:] for options in classes]
    assert solve_multiple_choice(*arrays(fewer), float(capacity))[1] <= best


@given(CLASSES, st.integers(0, 30), st.sampled_from([2.0**-40, 0.25, 2.0**30]))
def test_scaling(classes: Any, capacity: int, factor: float) -> None:
    """Weights and capacity, or values, times a power of two: the same choice."""
    indptr, weight, value = arrays(classes)
    best = solve_multiple_choice(indptr, weight, value, float(capacity))[1]
    assert solve_multiple_choice(indptr, weight * factor, value, capacity * factor)[1] == best
    assert solve_multiple_choice(indptr, weight, value * factor, float(capacity))[1] == best * factor


def test_an_exact_fit_is_not_lost_to_rounding() -> None:
    """0.1 + 0.2 is a little more than 0.3 in float64; ten thousand weights fill the capacity that is their sum."""
    assert solve_multiple_choice([0, 1, 2], [0.1, 0.2], [1.0, 1.0], 0.3)[1] == 2.0
    weight = np.random.default_rng(0).random(10_000)
    for capacity in (float(np.cumsum(weight)[-1]), float(weight.sum())):
        assert solve_multiple_choice(np.arange(10_001), weight, np.ones(10_000), capacity)[1] == 10_000.0


def test_whole_weights_have_no_tolerance() -> None:
    """2**45 units hold no unit more."""
    most = 2.0**45
    assert solve_multiple_choice([0, 1, 2], [most, 1.0], [3.0, 2.0], most)[1] == 3.0
    assert solve_multiple_choice([0, 1, 2], [most, 1.0], [3.0, 2.0], most + 1)[1] == 5.0


def test_edges() -> None:
    """No classes, empty classes, no capacity, nothing fits, weight 0, value 0, tiny weights with infinite slopes."""
    assert solve_multiple_choice([0], [], [], 5.0)[1:] == (0.0, 0.0)
    assert solve_multiple_choice([0, 0, 1, 1], [1.0], [2.0], 5.0)[0].tolist() == [-1, 0, -1]
    assert solve_multiple_choice([0, 2], [1.0, 0.0], [2.0, 1.0], 0.0)[0].tolist() == [1]
    assert solve_multiple_choice([0, 2], [6.0, 7.0], [2.0, 1.0], 5.0)[0].tolist() == [-1]
    assert solve_multiple_choice([0, 2], [1.0, 1.0], [0.0, 0.0], 5.0)[0].tolist() == [-1]
    assert solve_multiple_choice([0, 2], [1.0, 1.0], [4.0, 4.0], 5.0)[0].tolist() == [0]
    tiny = solve_multiple_choice([0, 1, 2, 3], [1e-310, 2e-310, 3e-310], [1.0, 5.0, 4.0], 5.5e-310)
    assert tiny[1] == 9.0
    assert 9.0 <= tiny[2] < 10.0


def test_read_only_input_is_left_alone() -> None:
    """Frozen arrays are accepted and unchanged."""
    data = family("whole", 5, 3, 0)
    before = [array.copy() for array in data[:3]]
    for array in data[:3]:
        array.flags.writeable = False
    check(*data, solve_multiple_choice(*data))
    assert all(np.array_equal(*pair) for pair in zip(before, data[:3], strict=True))


@pytest.mark.parametrize(
    ("indptr", "weight", "value", "capacity", "message"),
    [
        ([0, 1], [1.0], [1.0, 2.0], 1.0, r"value: got 2 entries, expected 1, one per weight"),
        ([0, 2], [1.0, -1.0], [1.0, 2.0], 1.0, r"weight\[1\] = -1.0, expected a finite number >= 0"),
        ([0, 1], [1.0], [np.nan], 1.0, r"value\[0\] = nan, expected a finite number >= 0"),
        ([0, 1], [1.0], [1.0], np.inf, r"capacity = inf, expected a finite number >= 0"),
        ([0, 1], [1.0], [1.0], -1.0, r"capacity = -1.0, expected"),
        ([0, 2], [1.0], [1.0], 1.0, r"indptr: expected integers that rise from 0 to 1"),
        ([], [], [], 1.0, r"indptr: expected integers that rise from 0 to 0"),
        ([0, 2, 1], [1.0], [1.0], 1.0, r"indptr: expected integers that rise"),
        ([0.0, 1.0], [1.0], [1.0], 1.0, r"indptr: got dtype float64, expected integers"),
    ],
)
def test_bad_input(indptr: Any, weight: Any, value: Any, capacity: Any, message: str) -> None:
    """Wrong data are refused in one sentence that names the entry."""
    with pytest.raises(InvalidProblemError, match=message):
        solve_multiple_choice(indptr, weight, value, capacity)
