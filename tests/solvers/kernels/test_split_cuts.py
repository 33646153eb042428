"""Kernel of split training for cuts, against enumeration."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.solvers.kernels import split_cuts as module

few = settings(max_examples=40)
seeds = st.integers(0, 2**32 - 1)


class Case:
    """Random devices with fixed batch sizes. Times are not monotone in the cut; memory and drift limit it."""

    def __init__(self, seed: int, devices: int = 3, layers: int = 5) -> None:
        rng = np.random.default_rng(seed)
        shape = (devices, layers)
        self.a, self.d = (np.round(np.exp(rng.normal(0, 1, shape)), 1) for _ in range(2))  # rounded: ties
        self.server = np.append(np.sort(np.exp(rng.normal(0, 1, layers - 1)))[::-1], 0.0) * rng.choice([0.1, 1.0, 3.0])
        self.batch = rng.integers(1, 5, devices).astype(float)
        self.bits = np.cumsum(rng.uniform(0, 1, layers)) * rng.choice([0.0, 1.0, 4.0])
        self.fed_up, self.fed_down = (np.exp(rng.normal(0, 1, devices)) for _ in range(2))
        self.server_up, self.server_down = rng.choice([0.0, 0.1, 3.0], 2).tolist()
        self.left = 1 - np.cumsum(rng.uniform(0, 1, layers)) * rng.choice([0.0, 0.1, 0.6])
        self.deep = rng.integers(0, layers, devices)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (
            self.a, self.d, self.server, self.batch, self.bits, self.fed_up, self.fed_down, self.server_up,
            self.server_down, self.left, self.deep,
        )  # fmt: skip

    def ratio(self, cut: np.ndarray) -> float:
        """Return the ratio of cuts by definition, inf where the denominator is not positive or memory is short."""
        left, device = self.left[cut.max()], np.arange(cut.size)
        if left <= 0 or (cut > self.deep).any():
            return np.inf
        held = self.bits[cut]
        extra = (held.max() - held).sum()
        seconds = self.a[device, cut].max() + self.d[device, cut].max() + self.batch @ self.server[cut]
        seconds += max((held * self.fed_up).max(), extra * self.server_up)
        return float((seconds + max((held * self.fed_down).max(), extra * self.server_down)) / left)

    def best(self) -> float:
        layers = range(self.server.size)
        return min(self.ratio(np.array(cut)) for cut in itertools.product(layers, repeat=self.batch.size))


@few
@given(seeds)
def test_best_cuts_are_best(seed: int):
    """Branch and bound over thresholds finds the least ratio over all cuts, and its bound is that ratio."""
    case = Case(seed)
    cut = np.zeros(3, np.int64)
    ratio, bound, _ = module.best_cuts(*case.arguments, cut, case.ratio(cut), 10**5, 0.0)
    best = case.best()
    assert ratio == pytest.approx(best, rel=1e-12)
    assert case.ratio(cut) == pytest.approx(ratio, rel=1e-12)
    assert bound == pytest.approx(best, rel=1e-12)


@few
@given(seeds, st.integers(1, 30), st.sampled_from([0.0, 0.01, 0.3]))
def test_stopped_early_the_bound_is_valid(seed: int, boxes: int, tolerance: float):
    """After any number of boxes: never worse than the start, the cuts have the ratio, the bound is below the best."""
    case = Case(seed)
    rng = np.random.default_rng(seed)
    start = np.minimum(rng.integers(0, 5, 3), case.deep)
    cut = start.copy()
    ratio, bound, examined = module.best_cuts(*case.arguments, cut, case.ratio(start), boxes, tolerance)
    best = case.best()
    assert ratio <= case.ratio(start)
    if ratio < np.inf:
        assert case.ratio(cut) == pytest.approx(ratio, rel=1e-12)
    assert bound <= best * (1 + 1e-12)
    assert examined <= boxes + case.server.size + 2
    if examined < boxes:
        assert ratio <= best / (1 - tolerance) * (1 + 1e-12)


def test_no_cut_reaches_the_target():
    """Where every deepest cut leaves nothing, the ratio stays inf and the cuts stay."""
    case = Case(3)
    case.left -= 2.0
    cut = np.array([0, 0, 0])
    assert module.best_cuts(*case.arguments, cut, np.inf, 100, 0.0)[:2] == (np.inf, np.inf)
    assert cut.tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_compiled_is_uncompiled(seed: int):
    """The compiled kernel gives bitwise what the Python code gives."""
    case, runs = Case(seed, devices=4), []
    for kernel in (module.best_cuts, getattr(module.best_cuts, "py_func", module.best_cuts)):
        cut = np.zeros(4, np.int64)
        runs.append((*kernel(*case.arguments, cut, case.ratio(cut), 1000, 1e-6), *cut))
    assert runs[0] == runs[1]
