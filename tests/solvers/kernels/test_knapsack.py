"""Knapsack kernels against brute force, plain dynamic programming and each other."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import InvalidProblemError
from edgeopt.solvers.kernels import knapsack as module
from edgeopt.solvers.kernels.knapsack import (
    fractional_knapsack,
    knapsack,
    knapsack_profile,
)

ITEMS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=9)
KINDS = ["uncorrelated", "weakly", "strongly", "inverse", "subset-sum", "real"]


def python(kernel: Any) -> Any:
    """Return the uncompiled kernel; with NUMBA_DISABLE_JIT=1 it is the kernel itself."""
    return getattr(kernel, "py_func", kernel)


def brute_force(values: Any, weights: Any, capacity: float) -> float:
    """Best value over all subsets."""
    subsets = itertools.product([0, 1], repeat=len(values))
    return max(float(np.dot(x, values)) for x in subsets if np.dot(x, weights) <= capacity)


def split(items: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights of a list of items."""
    table = np.array(items, np.int64).reshape(-1, 2)
    return table[:, 0].astype(np.float64), table[:, 1]


def family(kind: str, rng: np.random.Generator, n: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights of a family of instances, after Pisinger."""
    w = rng.integers(1, largest + 1, n)
    step = largest // 10 + 1
    v = {
        "uncorrelated": rng.integers(1, largest + 1, n),
        "weakly": np.maximum(1, w + rng.integers(-step, step + 1, n)),
        "strongly": w + step,
        "inverse": np.maximum(1, w - step),
        "subset-sum": w,
        "real": rng.random(n) * largest,
    }[kind]
    return v.astype(np.float64), w


@given(ITEMS, st.integers(0, 40))
def test_matches_brute_force(items: list[tuple[int, int]], capacity: int) -> None:
    """Profile and choice reach the best subset, and the choice is feasible and worth what is claimed."""
    v, w = split(items)
    best, chosen = knapsack(v, w, capacity)
    assert best == brute_force(v, w, capacity)
    assert best == v[chosen].sum()
    assert w[chosen].sum() <= capacity
    profile = knapsack_profile(v, w, capacity)
    assert profile.shape == (capacity + 1,)
    assert profile[capacity] == best
    assert profile[capacity // 2] == brute_force(v, w, capacity // 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tightness", [0.02, 0.3, 0.5, 0.9])
def test_reduction_matches_plain_dynamic_programming(kind: str, tightness: float) -> None:
    """Fixing items by the linear bound loses nothing: same optimum as the table over all items."""
    rng = np.random.default_rng(7)
    for n in (2, 30, 150):
        v, w = family(kind, rng, n, 200)
        capacity = int(w.sum() * tightness)
        best, chosen = knapsack(v, w, capacity)
        assert best == pytest.approx(knapsack_profile(v, w, capacity)[-1], rel=1e-12, abs=0)
        assert w[chosen].sum() <= capacity


@pytest.mark.parametrize("kind", KINDS)
def test_plain_choice_matches_profile(kind: str) -> None:
    """Backtracking the packed choices gives a set worth the table's last entry, over several words and blocks."""
    rng = np.random.default_rng(3)
    for n, largest in ((12, 30), (40, 400)):
        v, w = family(kind, rng, n, largest)
        capacity = max(int(w.sum()) // 2, largest)
        taken = module.dp_choose_kernel(v, w, capacity)
        assert w[taken].sum() <= capacity
        assert v[taken].sum() == pytest.approx(knapsack_profile(v, w, capacity)[-1], rel=1e-12, abs=0)


@pytest.mark.parametrize("kind", ["uncorrelated", "strongly", "real"])
def test_compiled_equals_uncompiled(kind: str) -> None:
    """Compiled kernels give the same bits as the Python they are written in."""
    v, w = family(kind, np.random.default_rng(5), 14, 40)
    capacity = int(w.sum()) // 2
    profiles = [f(v, w, capacity) for f in (module.profile_kernel, python(module.profile_kernel))]
    assert np.array_equal(*profiles)
    choices = [np.zeros((v.size, capacity // 64 + 1), np.uint64) for _ in range(2)]
    tables = [module.dp_kernel(v, w, capacity, choices[0]), python(module.dp_kernel)(v, w, capacity, choices[1])]
    assert np.array_equal(*tables)
    assert np.array_equal(*choices)
    words = np.zeros((2, 1), np.uint64)
    for pack, word in zip((module._pack, python(module._pack)), words, strict=True):
        pack((np.arange(64) % 3).astype(np.float64), np.zeros(64), word)
    assert words[0] == words[1] == sum(1 << t for t in range(64) if t % 3)
    order = np.argsort(-v / w, kind="stable")
    for kernel in (module.knapsack_kernel, module.dp_choose_kernel, module._solve_sorted):
        compiled, plain = kernel(v[order], w[order], capacity), python(kernel)(v[order], w[order], capacity)
        assert all(np.array_equal(x, y) for x, y in zip(compiled, plain, strict=True))
    real = w + 0.25
    assert module.fractional_kernel(v, real, 100.5) == python(module.fractional_kernel)(v, real, 100.5)


def test_helpers_compiled_equal_uncompiled() -> None:
    """Greedy start, reduction and core give the same bits compiled and not."""
    v, w = family("weakly", np.random.default_rng(11), 20, 50)
    order = np.argsort(-v / w, kind="stable")
    v, w = v[order], w[order]
    p, s = np.append(0.0, np.cumsum(v)), np.append(0, np.cumsum(w))
    capacity = int(w.sum()) // 3
    b = int(np.searchsorted(s, capacity, side="right")) - 1
    lower, taken = module._greedy(v, w, p, s, b, capacity)
    lower_python, taken_python = python(module._greedy)(v, w, p, s, b, capacity)
    assert lower == lower_python
    assert np.array_equal(taken, taken_python)
    assert w[taken].sum() <= capacity
    free = module._free_items(v, w, p, s, b, capacity, lower)
    assert np.array_equal(free, python(module._free_items)(v, w, p, s, b, capacity, lower))
    value, best = module._solve_core(v, w, b, capacity, free)
    value_python, best_python = python(module._solve_core)(v, w, b, capacity, free)
    assert value == value_python == knapsack(v, w, capacity)[0]
    assert np.array_equal(best, best_python)


def test_equal_items_are_chosen_by_lowest_index() -> None:
    """Of identical items those listed first are taken, and a repeat gives the same set."""
    for _ in range(2):
        best, chosen = knapsack([5.0] * 6, [2] * 6, 7)
        assert best == 15.0
        assert chosen.tolist() == [True, True, True, False, False, False]


def test_zero_values_and_zero_weights() -> None:
    """An item of weight 0 is always taken, an item of value 0 never, even with room to spare."""
    best, chosen = knapsack([3.0, 0.0, 0.0, 2.0], [0, 0, 1, 1], 10)
    assert best == 5.0
    assert chosen.tolist() == [True, False, False, True]
    assert knapsack_profile([3.0, 0.0, 2.0], [0, 0, 1], 2).tolist() == [3.0, 5.0, 5.0]


def test_edges() -> None:
    """No items, no capacity, one item that fits or not, everything fits."""
    assert knapsack([], [], 5)[0] == 0.0
    assert knapsack_profile([], [], 2).tolist() == [0.0, 0.0, 0.0]
    assert knapsack([4.0], [1], 0)[0] == 0.0
    assert knapsack_profile([4.0], [1], 0).tolist() == [0.0]
    assert knapsack([4.0], [3], 3)[0] == 4.0
    assert knapsack([4.0], [4], 3)[0] == 0.0
    best, chosen = knapsack([1.0, 2.0], [5, 10**12], 10**13)
    assert best == 3.0
    assert chosen.all()


def test_read_only_and_strided_input() -> None:
    """Frozen arrays and slices are accepted and left as they are."""
    v, w = np.arange(20.0)[::2], np.arange(20)[::-2].copy()
    w.flags.writeable = False
    best, chosen = knapsack(v, w, 25)
    assert best == v[chosen].sum() == brute_force(v, w, 25)


@given(ITEMS, st.integers(0, 40), st.integers(0, 10))
def test_more_capacity_or_items_never_hurt(items: list[tuple[int, int]], capacity: int, more: int) -> None:
    """The optimum grows with the capacity and when an item is added; the profile never falls."""
    v, w = split(items)
    assert knapsack(v, w, capacity + more)[0] >= knapsack(v, w, capacity)[0]
    assert knapsack(v[1:], w[1:], capacity)[0] <= knapsack(v, w, capacity)[0]
    assert (np.diff(knapsack_profile(v, w, capacity)) >= 0).all()


@given(ITEMS, st.integers(0, 40), st.randoms())
def test_relabelling_keeps_the_optimum(items: list[tuple[int, int]], capacity: int, random: Any) -> None:
    """The order of the items does not matter to the value."""
    shuffled = random.sample(items, len(items))
    assert knapsack(*split(items), capacity)[0] == knapsack(*split(shuffled), capacity)[0]


REAL_ITEMS = st.lists(st.tuples(st.floats(0, 9), st.floats(0, 3)), max_size=8)


@given(REAL_ITEMS, st.floats(0, 8))
def test_bounds_hold_for_real_weights(items: list[tuple[float, float]], capacity: float) -> None:
    """The linear bound is at least the optimum, and what its price says it is."""
    table = np.array(items).reshape(-1, 2)
    v, w = table[:, 0], table[:, 1]
    linear, price = fractional_knapsack(v, w, capacity)
    assert linear >= brute_force(v, w, capacity) - 1e-9
    fits = w <= capacity
    dual = capacity * price + np.maximum(0.0, v - price * w)[fits & (v > 0)].sum() if price < 1e200 else linear
    assert linear == pytest.approx(dual, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "weights", "capacity", "message"),
    [
        ([1.0, 2.0], [1], 3, r"weights: got 1 entries, expected 2"),
        ([1.0, -2.0], [1, 1], 3, r"values\[1\] = -2.0, expected a finite number >= 0"),
        ([1.0, np.nan], [1, 1], 3, r"values\[1\] = nan"),
        ([1.0, np.inf], [1, 1], 3, r"values\[1\] = inf"),
        ([1.0], [-1], 3, r"weights\[0\] = -1, expected"),
        ([1.0], [0.5], 3, r"weights: got dtype float64, expected integers"),
        (["a"], [1], 3, r"values: got dtype .*, expected real numbers"),
        ([[1.0]], [1], 3, r"values: got 2 dimensions, expected 1"),
        ([1.0], [1], -1, r"capacity = -1, expected an integer >= 0"),
        ([1.0], [1], 2.5, r"capacity = 2.5, expected an integer >= 0"),
        ([1.0], [1], True, r"capacity = True, expected an integer >= 0"),
    ],
)
def test_bad_input(values: Any, weights: Any, capacity: Any, message: str) -> None:
    """Wrong data are refused in one sentence that names the entry."""
    for solve in (knapsack, knapsack_profile):
        with pytest.raises(InvalidProblemError, match=message):
            solve(values, weights, capacity)


def test_bad_real_input() -> None:
    """A capacity that is no usable number is refused."""
    with pytest.raises(InvalidProblemError, match="capacity = nan"):
        fractional_knapsack([1.0], [1.0], np.nan)
