"""Kernels of one expert's location problem against enumeration of all subsets of servers."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.solvers.kernels import location as module

few = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)
# (experts, users, servers, models): one of each in turn
SHAPES = [(3, 5, 4, 2), (1, 4, 3, 1), (3, 1, 2, 1), (4, 6, 1, 2), (1, 1, 1, 1)]
shapes = st.sampled_from(SHAPES)
Shape = tuple[int, int, int, int]


def python(kernel: Any) -> Any:
    """Return the uncompiled kernel; with NUMBA_DISABLE_JIT=1 it is the kernel itself."""
    return getattr(kernel, "py_func", kernel)


class Case:
    """Random arrays of the location problem, and its value by definition."""

    def __init__(self, seed: int, shape: Shape, *, real: bool, dear: float = 1.0) -> None:
        num_experts, num_users, num_servers, num_models = shape
        rng = np.random.default_rng(seed)
        self.weight = rng.integers(0, 5, (num_experts, num_users)) / 4
        self.gain = rng.integers(0, 5, (num_models, num_users, num_servers)) / 4
        self.price = dear * rng.integers(0, 5, num_servers) / 4
        self.size = rng.integers(1, 4, num_experts).astype(float)
        if real:
            for name in ("weight", "gain", "price", "size"):
                array = getattr(self, name)
                setattr(self, name, array * rng.uniform(0.1, 1.0, array.shape))
        self.model = np.sort(rng.integers(0, num_models, num_experts))
        self.held = rng.random((num_experts, num_servers)) < rng.random()
        self.order = np.argsort(-self.gain, axis=2, kind="stable")

    @property
    def by_server(self) -> Any:
        """The gains with a server's users side by side."""
        return np.ascontiguousarray(self.gain.transpose(0, 2, 1))

    def gross(self, e: int, servers: Any) -> float:
        """Return the value of expert e at these servers."""
        gain = self.gain[self.model[e]]
        return float(sum(w * max((gain[u, n] for n in servers), default=0.0) for u, w in enumerate(self.weight[e])))

    def net(self, e: int, held: Any) -> float:
        """Return the value less price of expert e held by servers bool [N]."""
        servers = np.flatnonzero(held)
        return self.gross(e, servers) - self.size[e] * float(sum(self.price[n] for n in servers))

    def best(self, e: int) -> float:
        """Return the best value less price over all subsets."""
        gain = self.gain[self.model[e]]
        every = np.array(list(itertools.product([False, True], repeat=self.price.size)))  # (2^N, N)
        reached = np.where(every[:, None], gain, 0.0).max(axis=2)  # (2^N, U)
        return float((reached @ self.weight[e] - self.size[e] * (every @ self.price)).max())

    def bounds(self, steps: int = 0) -> Any:
        """Return the bounds of dual ascent, after so many subgradient steps."""
        return module.ascent_bounds(
            self.weight, self.gain, self.by_server, self.order, self.model, self.size, self.price, self.held, steps
        )

    def improve(self, moves: int) -> Any:
        """Improve the subsets in place."""
        module.improve_subsets(
            self.weight, self.gain, self.by_server, self.model, self.size, self.price, self.held, moves
        )


@few
@given(seeds, shapes)
def test_values_given_others(seed: int, shape: Shape) -> None:
    """A server's value is what its expert adds to the others', or would be missed by if it is held."""
    case = Case(seed, shape, real=False)
    values = module.values_given_others(case.weight, case.gain, case.by_server, case.model, case.held)
    for e, n in np.ndindex(*values.shape):
        others = [m for m in np.flatnonzero(case.held[e]) if m != n]
        assert values[e, n] == case.gross(e, [*others, n]) - case.gross(e, others)


@settings(max_examples=40)
@given(seeds, shapes, st.booleans(), st.sampled_from([0.0, 0.1, 1.0, 10.0]), st.booleans())
def test_ascent_bounds_are_bounds(seed: int, shape: Shape, real: bool, dear: float, improved: bool) -> None:
    """No bound is below the best subset, whatever the prices, from any starting subsets, empty and full included."""
    case = Case(seed, shape, real=real, dear=dear)
    starts = [case.held, np.zeros_like(case.held), np.ones_like(case.held)]
    for start in starts:
        case.held = start.copy()
        if improved:
            case.improve(3)
        bounds = case.bounds()
        for e in range(shape[0]):
            assert bounds[e] >= case.best(e) * (1 - 1e-12) - 1e-14
            assert bounds[e] >= 0.0
        sharper = case.bounds(40)  # no step loses what was had before
        assert (sharper <= bounds).all()
        for e in range(shape[0]):
            assert sharper[e] >= case.best(e) * (1 - 1e-12) - 1e-14


@few
@given(seeds, shapes)
def test_ascent_bounds_without_prices_are_exact(seed: int, shape: Shape) -> None:
    """Where storage is free every server holds the expert, and the bound from that subset is its value."""
    case = Case(seed, shape, real=False, dear=0.0)
    case.improve(100)
    for e, bound in enumerate(case.bounds()):
        assert bound == case.best(e) == case.net(e, case.held[e])


def test_ascent_bounds_are_mostly_tight() -> None:
    """On random cases the bound from locally optimal subsets is the optimum, most of the time: it is worth having."""
    tight = []
    for seed in range(25):
        case = Case(seed, SHAPES[0], real=True, dear=0.5)
        case.improve(100)
        tight += [bound <= case.best(e) + 1e-9 for e, bound in enumerate(case.bounds())]
    assert np.mean(tight) > 0.8


@few
@given(seeds, shapes, st.booleans(), st.integers(0, 3))
def test_improving_never_worsens(seed: int, shape: Shape, real: bool, moves: int) -> None:
    """Every expert's value less price after a few moves is at least what it was; no moves change nothing."""
    case = Case(seed, shape, real=real)
    before, held = [case.net(e, case.held[e]) for e in range(shape[0])], case.held.copy()
    case.improve(moves)
    for e in range(shape[0]):
        assert case.net(e, case.held[e]) >= before[e] - 1e-12
    if moves == 0:
        assert np.array_equal(case.held, held)


@few
@given(seeds, shapes, st.booleans())
def test_improving_ends_locally_optimal(seed: int, shape: Shape, real: bool) -> None:
    """With many moves no addition, removal or swap is left that gains anything."""
    case = Case(seed, shape, real=real)
    case.improve(1000)
    for e in range(shape[0]):
        here, held = case.net(e, case.held[e]), case.held[e]
        inside, outside = np.flatnonzero(held), np.flatnonzero(~held)
        moves = [[n] for n in range(shape[2])] + [[r, n] for r in inside for n in outside]
        for move in moves:
            changed = held.copy()
            changed[move] ^= True
            assert case.net(e, changed) <= here + 1e-11


def test_improving_takes_the_lowest_server_at_a_tie() -> None:
    """Of equal servers the first one is opened, and no second one."""
    held = np.zeros((1, 3), bool)
    module.improve_subsets(
        np.ones((1, 2)), np.ones((1, 2, 3)), np.ones((1, 3, 2)), np.zeros(1, np.int64), np.ones(1), np.ones(3), held, 9
    )
    assert held.tolist() == [[True, False, False]]


def test_swaps_are_needed() -> None:
    """A subset that no addition or removal improves is left by a swap: one shared server for the price of one."""
    case = Case(0, (1, 2, 2, 1), real=False)
    case.weight, case.gain = np.ones((1, 2)), np.array([[[2.0, 3.0], [2.0, 3.0]]])
    case.price, case.size, case.held = np.array([2.5, 2.5]), np.ones(1), np.array([[True, False]])
    case.improve(9)
    assert case.held.tolist() == [[False, True]]
    assert case.net(0, case.held[0]) == case.best(0) == 3.5


@pytest.mark.parametrize("what", ["weight", "gain"])
def test_nothing_to_gain(what: str) -> None:
    """Without demand or gains nothing is worth holding at a price, and the bound is zero."""
    case = Case(4, SHAPES[0], real=True)
    case.price = case.price + 0.5
    setattr(case, what, 0.0 * getattr(case, what))
    case.held[:] = True
    case.improve(100)
    assert not case.held.any()
    assert not case.bounds().any()


@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_equals_uncompiled(shape: Shape) -> None:
    """Compiled kernels give the same bits as the Python they are written in."""
    for seed in range(3):
        case = Case(seed, shape, real=True)
        reach, by_server, held = case.gain[case.model[0]], case.by_server[case.model[0]], case.held[0]
        served = module._served(held, by_server)
        for kernel, arguments in (
            (module._served, (held, by_server)),
            (module._changes, (case.weight[0], reach, *served, held)),
            (module.values_given_others, (case.weight, case.gain, case.by_server, case.model, case.held)),
            (
                module.ascent_bounds,
                (case.weight, case.gain, case.by_server, case.order, case.model, case.size, case.price, case.held, 9),
            ),
        ):
            compiled, plain = kernel(*arguments), python(kernel)(*arguments)
            pairs = zip(compiled, plain, strict=True) if isinstance(compiled, tuple) else [(compiled, plain)]
            assert all(np.array_equal(x, y) for x, y in pairs), kernel
        subsets = []
        for kernel in (module.improve_subsets, python(module.improve_subsets)):
            changed = case.held.copy()
            kernel(case.weight, case.gain, case.by_server, case.model, case.size, case.price, changed, 5)
            subsets.append(changed)
        assert np.array_equal(*subsets)
