"""Kernels of split training for batch sizes: against cvxpy, against each other, against enumeration."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.solvers.kernels import split as module

few = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)


def python(kernel: Any) -> Any:
    """Return the uncompiled kernel; with NUMBA_DISABLE_JIT=1 it is the kernel itself."""
    return getattr(kernel, "py_func", kernel)


class Case:
    """Random devices at fixed cuts. Some cost nothing at the server or on one of the two ways."""

    def __init__(self, seed: int, devices: int = 6, cap: int = 30) -> None:
        rng = np.random.default_rng(seed)
        self.a, self.d, self.s = (
            np.exp(rng.normal(0, 1, devices)) * (rng.random(devices) > share) for share in (0.1, 0.1, 0.2)
        )
        self.s *= rng.choice([0.01, 0.1, 1.0])
        self.cap = rng.integers(1, cap + 1, devices).astype(float)
        self.noise = float(rng.uniform(0.1, 1))
        self.fixed = float(rng.choice([0.0, 1.0, 30.0]))
        self.left = self.noise * float((1 / self.cap).sum()) * float(rng.choice([1.05, 1.5, 3.0, 20.0]))

    @property
    def costs(self) -> tuple[np.ndarray, ...]:
        return self.a, self.d, self.s, self.cap

    @property
    def devices(self) -> tuple[np.ndarray, ...]:
        return self.a, self.d, self.s

    def ratio(self, b: np.ndarray) -> Any:
        """Return the ratio of batch sizes [..., N] by definition, inf where the denominator is not positive."""
        seconds = self.fixed + (b * self.a).max(axis=-1) + (b * self.d).max(axis=-1) + b @ self.s
        left = self.left - self.noise * (1 / b).sum(axis=-1)
        return np.where(left > 0, seconds / np.where(left > 0, left, 1.0), np.inf)

    def inner(self, lam_noise: float) -> float:
        """Return the least of max a b + max d b + sum s b + lam c / b over 1 <= b <= cap, by cvxpy."""
        import cvxpy as cp

        b = cp.Variable(self.a.size)
        value = cp.max(cp.multiply(self.a, b)) + cp.max(cp.multiply(self.d, b)) + self.s @ b
        model = cp.Problem(cp.Minimize(value + lam_noise * cp.sum(cp.inv_pos(b))), [b >= 1, b <= self.cap])
        return float(model.solve(solver=cp.CLARABEL))


def test_respond_by_hand():
    """Square root, the two times allowed, the memory and the least batch size decide in turn."""
    a, d, s = np.array([1.0, 1, 1, 1, 9]), np.array([1.0, 1, 4, 1, 1]), np.array([4.0, 1, 1, 0, 1])
    out = np.empty(5)
    module.respond(36.0, 5.0, 8.0, a, d, s, np.array([9.0, 9, 9, 4, 9]), out)
    assert out.tolist() == [3, 5, 2, 4, 1]


@few
@given(seeds)
def test_thresholds_are_best(seed: int):
    """The inner problem over two thresholds has the value that cvxpy finds over all batch sizes."""
    case = Case(seed)
    lam_noise = float(np.random.default_rng(seed).uniform(0.1, 30))
    up, down = module.best_thresholds(lam_noise, *case.costs)
    b = np.empty(case.a.size)
    module.respond(lam_noise, up, down, *case.costs, b)
    seconds, inverse = module.totals(b, *case.devices)
    assert seconds + lam_noise * inverse == pytest.approx(case.inner(lam_noise), rel=1e-5)


@few
@given(seeds)
def test_dinkelbach_is_optimal(seed: int):
    """At the returned ratio lam the least of numerator - lam denominator is 0, which only the least ratio has."""
    case = Case(seed)
    b, up, down, ratio = module.dinkelbach_batches(case.fixed, case.left, case.noise, *case.costs)
    assert ratio == pytest.approx(float(case.ratio(b)), rel=1e-12)
    assert (b >= 1).all()
    assert (b <= case.cap).all()
    assert (b * case.a).max() <= up * (1 + 1e-12)
    assert (b * case.d).max() <= down * (1 + 1e-12)
    scale = case.fixed + ratio * case.left
    assert case.fixed + case.inner(ratio * case.noise) - ratio * case.left == pytest.approx(0, abs=1e-5 * scale)


@few
@given(seeds)
def test_both_updates_have_one_fixed_point(seed: int):
    """For the same times allowed HASFL's update ends, from anywhere, at the batch sizes of Dinkelbach's method."""
    case = Case(seed)
    rng = np.random.default_rng(seed)
    _, up, down, _ = module.dinkelbach_batches(case.fixed, case.left, case.noise, *case.costs)
    with np.errstate(divide="ignore", invalid="ignore"):
        top = np.maximum(np.fmin(np.fmin(up / case.a, down / case.d), case.cap), 1.0)
    lam, dinkelbach = np.inf, top.copy()
    for _ in range(100):  # Dinkelbach with the thresholds fixed: the ratio of a response is the next ratio
        left = case.left - case.noise * (1 / dinkelbach).sum()
        new = (case.fixed + up + down + dinkelbach @ case.s) / left
        if new >= lam * (1 - 1e-14):
            break
        lam = new
        module.respond(lam * case.noise, up, down, *case.costs, dinkelbach)
    newton = rng.uniform(1, top)
    steps = module.newton_jacobi_batches(case.fixed, case.left, case.noise, up, down, case.s, top, newton, 500)
    assert steps < 500
    assert newton == pytest.approx(dinkelbach, rel=1e-6)
    again = dinkelbach.copy()
    module.newton_jacobi_batches(case.fixed, case.left, case.noise, up, down, case.s, top, again, 1)
    assert again == pytest.approx(dinkelbach, rel=1e-6)


def test_no_batch_reaches_the_target():
    """Where even the largest batches leave nothing, the ratio is inf and nothing is changed."""
    case = Case(1)
    left = case.noise * float((1 / case.cap).sum())
    b, *_, ratio = module.dinkelbach_batches(case.fixed, left, case.noise, *case.costs)
    assert ratio == np.inf
    assert np.array_equal(b, case.cap)
    whole = case.cap.copy()
    assert module.whole_batches(case.fixed, left, case.noise, 1.0, 1.0, 1.0, *case.costs, whole, 9) == (np.inf, 0)


@few
@given(seeds)
def test_whole_batches_are_best(seed: int):
    """Branch and bound finds the least ratio over all whole batch sizes, which is not below that of real ones."""
    case = Case(seed, devices=3, cap=12)
    *_, up, down, ratio = module.dinkelbach_batches(case.fixed, case.left, case.noise, *case.costs)
    whole = case.cap.copy()
    found, _ = module.whole_batches(case.fixed, case.left, case.noise, up, down, ratio, *case.costs, whole, 10**5)
    assert np.array_equal(whole, np.round(whole))
    assert (whole >= 1).all()
    assert (whole <= case.cap).all()
    assert found == pytest.approx(float(case.ratio(whole)), rel=1e-12)
    grids = np.meshgrid(*(np.arange(1, top + 1) for top in case.cap), indexing="ij")
    best = case.ratio(np.stack(grids, axis=-1).reshape(-1, 3)).min()
    assert found == pytest.approx(best, rel=1e-9)
    assert ratio <= best * (1 + 1e-6)


@few
@given(seeds, st.integers(1, 40))
def test_whole_batches_never_worse(seed: int, boxes: int):
    """From any start and after any number of boxes the ratio has not risen."""
    case = Case(seed, devices=8)
    *_, up, down, ratio = module.dinkelbach_batches(case.fixed, case.left, case.noise, *case.costs)
    start = np.floor(np.random.default_rng(seed).uniform(1, case.cap + 1))
    whole = start.copy()
    found, examined = module.whole_batches(
        case.fixed, case.left, case.noise, up, down, ratio, *case.costs, whole, boxes
    )
    assert found <= float(case.ratio(start)) * (1 + 1e-12)
    assert found == pytest.approx(float(case.ratio(whole)), rel=1e-12)
    assert examined <= boxes


@pytest.mark.parametrize("seed", range(5))
def test_compiled_is_uncompiled(seed: int):
    """Compiled kernels give bitwise what the Python code gives."""
    case = Case(seed)
    start = np.ones(case.a.size)
    runs = []
    for form in (lambda kernel: kernel, python):
        thresholds = form(module.best_thresholds)(2.0, *case.costs)
        b, up, down, ratio = form(module.dinkelbach_batches)(case.fixed, case.left, case.noise, *case.costs)
        newton, whole = start.copy(), case.cap.copy()
        steps = form(module.newton_jacobi_batches)(
            case.fixed, case.left, case.noise, up, down, case.s, case.cap, newton, 50
        )
        found = form(module.whole_batches)(case.fixed, case.left, case.noise, up, down, ratio, *case.costs, whole, 300)
        runs.append([*thresholds, *b, up, down, ratio, *newton, steps, *whole, *found])
    assert runs[0] == runs[1]
