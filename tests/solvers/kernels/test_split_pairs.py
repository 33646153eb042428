"""Kernel of split training for batch size and cut together, against definitions and enumeration."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.solvers.kernels import split_pairs as module
from edgeopt.solvers.split_training.common import Costs
from tests.solvers.split_training.instances import varied

few = settings(max_examples=25)
seeds = st.integers(0, 10**6)


class Case:
    """The costs of a random problem, with an interval and batch sizes and cuts that fit the memory."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        problem = varied(seed, devices=5, layers=6, max_batch=20)
        self.costs, self.interval = Costs.of(problem), problem.min_interval
        deepest = self.costs.deepest(np.ones(5, np.int64))
        self.cut = rng.integers(0, deepest + 1)
        self.batch = rng.integers(1, self.costs.limit_at(self.cut) + 1)

    @property
    def fed(self) -> tuple[Any, ...]:
        c = self.costs
        return tuple(value / self.interval for value in (c.fed_up, c.fed_down, c.server_up, c.server_down))

    def ratio(self, batch: np.ndarray, cut: np.ndarray) -> float:
        return self.costs.objective(batch, cut, self.interval) / self.costs.scale

    def improved(self, kernel: Any) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the ratio, batch sizes and cuts of a run of `improve_pairs`."""
        c, batch, cut = self.costs, self.batch.copy(), self.cut.copy()
        ratio = kernel(
            batch, cut, c.forward, c.backward, c.server, c.limit, c.client_bits, *self.fed, c.left(self.interval), c.noise
        )  # fmt: skip
        return ratio, batch, cut


@few
@given(seeds)
def test_ratio(seed: int):
    """The ratio and the slowest times are those of the definition."""
    case, taken = Case(seed), np.empty(4)
    c, device = case.costs, np.arange(5)
    ratio, extra = module.ratio_of(
        case.batch, case.cut, c.forward, c.backward, c.server, c.client_bits, *case.fed, c.left(case.interval), c.noise,
        taken,
    )  # fmt: skip
    assert ratio == pytest.approx(case.ratio(case.batch, case.cut), rel=1e-12)
    held = c.client_bits[case.cut]
    assert extra == pytest.approx((held.max() - held).sum(), rel=1e-12)
    ways = [case.batch * c.forward[device, case.cut], case.batch * c.backward[device, case.cut]]
    assert taken == pytest.approx([times.max() for times in (*ways, held * case.fed[0], held * case.fed[1])])


@few
@given(seeds, st.floats(0.0, 1.0))
def test_pairs_are_best_for_each_device(seed: int, share: float):
    """Each device takes the pair with the least cost among all that the times allow; False if a device has none."""
    case = Case(seed)
    c, rng = case.costs, np.random.default_rng(seed)
    deepest = int(case.cut.max())
    lam_noise, price = float(rng.uniform(0, 2) * c.server[0] * 100), float(rng.choice([0.0, case.fed[2]]))
    allowed = np.array([c.forward[:, 0].max(), c.backward[:, 0].max(), 0, 0]) * rng.uniform(0.5, 20, 4)
    allowed[2:] = np.inf if share > 0.7 else share * c.client_bits[-1] * np.array([f.max() for f in case.fed[:2]])
    batch, cut = case.batch.copy(), case.cut.copy()
    found = module.choose_pairs(
        lam_noise, deepest, allowed, price, c.forward, c.backward, c.server, c.limit, c.client_bits, *case.fed[:2],
        batch, cut,
    )  # fmt: skip
    possible = True
    for i in range(5):
        least = np.inf
        for k in range(deepest + 1):
            b = np.arange(1, c.limit[i, k] + 1)
            fits = (b * c.forward[i, k] <= allowed[0] * (1 + 1e-12)) & (
                b * c.backward[i, k] <= allowed[1] * (1 + 1e-12)
            )
            fits &= c.client_bits[k] * case.fed[0][i] <= allowed[2]
            fits &= c.client_bits[k] * case.fed[1][i] <= allowed[3]
            cost = b * c.server[k] + lam_noise / b + price * (c.client_bits[deepest] - c.client_bits[k])
            least = min(least, cost[fits].min(initial=np.inf))
        possible &= least < np.inf
        if found:
            extra = c.client_bits[deepest] - c.client_bits[cut[i]]
            assert batch[i] * c.server[cut[i]] + lam_noise / batch[i] + price * extra == pytest.approx(least, rel=1e-12)
    assert found == possible


@few
@given(seeds)
def test_improvement_is_real(seed: int):
    """The pattern search returns a plan within the limits with the ratio it says, no worse than the start."""
    case = Case(seed)
    ratio, batch, cut = case.improved(module.improve_pairs)
    assert ratio <= case.ratio(case.batch, case.cut)
    if ratio < np.inf:
        assert ratio == pytest.approx(case.ratio(batch, cut), rel=1e-12)
        assert (batch >= 1).all()
        assert (batch <= case.costs.limit_at(cut)).all()


@pytest.mark.parametrize("seed", range(3))
def test_compiled_is_uncompiled(seed: int):
    """The compiled kernel gives bitwise what the Python code gives."""
    case = Case(seed)
    case.batch = case.costs.limit_at(case.cut)
    first = case.improved(module.improve_pairs)
    second = case.improved(getattr(module.improve_pairs, "py_func", module.improve_pairs))
    assert first[0] == second[0]
    assert np.array_equal(first[1], second[1])
    assert np.array_equal(first[2], second[2])
