"""Kernels of model download against general-purpose solvers, bisection and finite differences."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import lambertw

from edgeopt.solvers.kernels.download import (
    Layers,
    Users,
    bandwidth_of_rate,
    energy_rate,
    frequencies,
    hull,
    least_deadlines,
    least_energies,
    least_energy,
    round_to_levels,
)
from tests.solvers.model_download.instances import slowest_speeds


class Case:
    """One user and one model with random numbers, and the work arrays of the kernels."""

    def __init__(self, seed: int, *, low: float = 0.0, energy: float = np.inf, fixed: bool = True) -> None:
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 9))
        self.bits = rng.uniform(0.1, 3.0, n)
        self.cycles = np.where(rng.random(n) < 0.2, 0.0, rng.uniform(0.0, 2.0, n))
        self.cycles[rng.integers(n)] = 1.0
        self.fixed = rng.uniform(0.0, 0.2, n) if fixed else np.zeros(n)
        self.deadline = rng.uniform(1.5, 4.0) + self.fixed.sum()
        one = lambda value: np.array([float(value)])
        self.users = Users(one(self.deadline), one(1), one(1), one(0), one(energy), one(low), one(1e9))
        self.layers = Layers(
            np.array([0, n]), np.cumsum(self.bits), np.cumsum(self.cycles[::-1])[::-1].copy(),
            np.cumsum(self.fixed[::-1])[::-1].copy(),
        )  # fmt: skip
        self.work = (np.empty(n + 1), np.empty(n + 1), np.empty(n + 1, np.int64))
        left = self.deadline - self.layers.suffix_fixed
        self.x = rng.uniform(0.05, 0.95) * (left / self.layers.prefix_bits).min()  # seconds per bit

    def limited(self, energy: float) -> "Case":
        """Set the energy limit."""
        self.users.energy[0] = energy
        return self

    def energy(self, x: float) -> tuple[float, float]:
        """Return the least energy and its slope."""
        return least_energy(0, 0, x, self.users, self.layers, *self.work)

    def left(self, x: float) -> np.ndarray:
        """Return the seconds left for computing when each layer has arrived."""
        return self.deadline - x * self.layers.prefix_bits - self.layers.suffix_fixed


def test_hull_is_the_textbook_schedule():
    """Speeds of layers with work are those of repeatedly taking the densest interval, and rise towards the deadline."""
    for seed in range(200):
        case = Case(seed)
        left, work, layer = case.work
        corners = hull(0, 0, case.x, case.users, case.layers, left, work, layer)
        speeds = np.zeros(case.bits.size)
        for j in range(1, corners):
            cycles = work[j] - work[j - 1]
            speeds[layer[j] : layer[j - 1]] = cycles / (left[j] - left[j - 1]) if cycles > 0 else 0.0
        wanted = slowest_speeds(
            case.deadline, 1 / case.x, case.bits.tolist(), case.cycles.tolist(), case.fixed.tolist()
        )
        busy = case.cycles > 0
        assert speeds[busy] == pytest.approx(np.array(wanted)[busy], rel=1e-9), seed
        assert (np.diff(speeds[busy]) >= -1e-9).all()


@pytest.mark.parametrize("seed", range(20))
def test_least_energy_against_a_conic_solver(seed):
    """Over all compute times that leave enough time for the layers that follow, none takes less energy."""
    import cvxpy

    case = Case(seed, low=0.4 if seed % 2 else 0.0)
    busy = case.cycles > 0
    cycles = case.cycles[busy]
    waits = np.triu(np.ones((case.bits.size, case.bits.size)))[:, busy]  # layers that remain to be run with layer l
    seconds = cvxpy.Variable(cycles.size)
    limits = [waits @ seconds <= case.left(case.x)]
    if case.users.low[0]:
        limits.append(seconds <= cycles / case.users.low[0])
    energy = cvxpy.Minimize(cvxpy.sum(cvxpy.multiply(cycles**3, cvxpy.power(seconds, -2))))
    best = cvxpy.Problem(energy, limits).solve(solver="CLARABEL")
    assert case.energy(case.x)[0] == pytest.approx(best, rel=1e-5)


def test_slope_of_the_least_energy():
    """The derivative by seconds per bit agrees with central differences; the -1/2 power of the energy is concave."""
    for seed in range(100):
        case = Case(seed, low=0.3)
        step = 1e-6 * case.x
        below, above = case.energy(case.x - step)[0], case.energy(case.x + step)[0]
        slope = case.energy(case.x)[1]
        assert slope == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-6)
        power = [case.energy(f * case.x)[0] ** -0.5 for f in np.linspace(0.0, 1.0, 30)]
        assert (np.diff(power, 2) <= 1e-9).all()
        assert (np.diff(power) <= 1e-12).all()


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.floats(1e-9, 1e3), st.sampled_from([0.0, 0.3]))
def test_rate_meets_the_energy_limit(seed, factor, low):
    """A rate that is above what the speed needs takes the limit, no less and no more; limits below the least have none."""
    case = Case(seed, low=low)
    case.users.high[0] = 50.0
    lowest = case.energy(0.0)[0]
    fastest = (case.layers.prefix_bits / (case.left(0.0) - case.layers.suffix_flops / 50.0)).max()
    limit = lowest * (1 + factor)
    found = energy_rate(0, 0, fastest, case.limited(limit).users, case.layers, *case.work)
    assert found >= fastest
    used = case.energy(1 / found)[0]
    assert used <= limit * (1 + 1e-11)
    if found > fastest * (1 + 1e-12):  # where energy is steep, a rate lower by its last digits is already too low
        assert used == pytest.approx(limit, rel=1e-9) or case.energy(1 / found * (1 + 1e-11))[0] > limit
    assert energy_rate(0, 0, fastest, case.limited(lowest * (1 - 1e-9)).users, case.layers, *case.work) == np.inf


def test_receiving_takes_its_share():
    """Energy for receiving is taken off the limit; if it takes all, there is no rate."""
    case = Case(3, fixed=False)
    limit = 1.5 * case.energy(0.0)[0]
    alone = energy_rate(0, 0, 1.0, case.limited(limit).users, case.layers, *case.work)
    case.users.receive[0] = 0.5
    total = limit + 0.5 * case.bits.sum()
    assert energy_rate(0, 0, 1.0, case.limited(total).users, case.layers, *case.work) == pytest.approx(alone, rel=1e-9)
    assert energy_rate(0, 0, 1.0, case.limited(0.4 * case.bits.sum()).users, case.layers, *case.work) == np.inf


def test_levels_keep_the_deadline():
    """Rounded frequencies are levels within the range, never late, and take no less energy than free ones."""
    levels = np.array([0.2, 0.5, 1.0, 2.0, 5.0, 100.0])
    for seed in range(200):
        case = Case(seed, low=0.3)
        n = case.bits.size
        speed = np.zeros(n)
        energy = round_to_levels(0, 0, case.x, case.users, case.layers, levels, speed, *case.work)
        assert np.isin(speed, levels[1:]).all()
        if speed.max() == 100.0:  # too slow for some: the caller sees to it that the highest level is enough
            continue
        late = np.cumsum((case.cycles / speed)[::-1])[::-1] - case.left(case.x)
        assert (late <= 1e-9).all()
        assert energy == pytest.approx((case.cycles * speed**2).sum(), rel=1e-12)
        assert energy >= case.energy(case.x)[0] * (1 - 1e-9)


def test_a_layer_goes_down_a_level_when_rounding_leaves_time():
    """Two equal layers, each 0.75 of the top speed at the same time: one at 1 and one at 0.5 do as well, and save energy."""
    users = Users(*(np.array([value]) for value in (4.0, 1.5, 1.0, 0.0, 9.0, 0.1, 1.0)))
    layers = Layers(np.array([0, 2]), np.array([1e-9, 2e-9]), np.array([2.0, 1.0]), np.zeros(2))
    speed, work = np.empty(2), (np.empty(3), np.empty(3), np.empty(3, np.int64))
    levels = np.array([0.45, 1.0])
    energy = round_to_levels(0, 0, 1.0, users, layers, levels, speed, *work)  # 1.5 / 1 + 1.5 / 0.45 = 4.83 > 4
    assert speed.tolist() == [1.0, 1.0]
    users.deadline[0] = 5.0
    energy = round_to_levels(0, 0, 1.0, users, layers, levels, speed, *work)
    assert speed.tolist() == [1.0, 0.45]
    assert energy == pytest.approx(1.5 + 1.5 * 0.45**2)


def test_frequencies_of_refused_and_unlimited_users():
    """Refused users have no layers, users without an energy limit run at full speed, the others at least energy."""
    case = Case(0, energy=1.0)
    n = case.bits.size
    users = Users(*(np.repeat(column, 3) for column in case.users))
    users.energy[2], users.high[:] = np.inf, 77.0
    model, rate = np.array([-1, 0, 0]), np.full(3, 1 / case.x)
    found = frequencies(model, rate, np.array([0, 0, n, 2 * n]), users, case.layers, np.zeros(0))
    assert found.size == 2 * n
    assert (found[n:] == 77.0).all()
    assert (case.cycles * found[:n] ** 2).sum() == pytest.approx(case.energy(case.x)[0], rel=1e-9)


@settings(max_examples=200)
@given(st.floats(-9, -1e-12), st.floats(-6, 12))
def test_bandwidth_of_rate(log_share, log_snr):
    """The bandwidth carries the rate, and nothing narrower does: shares of the ceiling from 1e-9 to almost all of it."""
    snr_hz = 10.0**log_snr
    rate = 10.0**log_share * snr_hz / math.log(2)
    (bandwidth,) = bandwidth_of_rate(np.array([rate]), np.array([snr_hz]))

    def carried(b: float) -> float:
        return b * math.log1p(snr_hz / b) / math.log(2)

    assert carried(bandwidth) == pytest.approx(rate, rel=1e-13)
    assert carried(bandwidth * (1 - 1e-6)) < rate or log_share > -1e-6  # near the ceiling all bandwidths look alike


def test_bandwidth_of_rate_is_lambert_w():
    """Away from the ceiling it is the formula with W_{-1}; at the ceiling and above there is no bandwidth."""
    snr_hz, share = np.full(50, 3.0), np.linspace(0.01, 0.9, 50)
    expected = snr_hz / (-lambertw(-share * np.exp(-share), -1).real / share - 1)
    assert bandwidth_of_rate(share * snr_hz / np.log(2), snr_hz) == pytest.approx(expected, rel=1e-10)
    assert bandwidth_of_rate(np.array([3.0, 4.0, np.inf]) / np.log(2), np.full(3, 3.0)).tolist() == [np.inf] * 3


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5]), st.sampled_from([0.5, 0.9, 1.0]))
@settings(max_examples=40)
def test_least_energy_limit_and_least_deadline(seed: int, low: float, share: float) -> None:
    """A deadline's least energy is the least limit; with a limit, the least deadline is where its least energy is the limit."""
    case = Case(seed, low=low)
    x, all_of_it = np.array([case.x]), np.ones((1, 1), bool)
    budget, _ = case.energy(case.x)
    assert least_energies(x, all_of_it, case.users, case.layers)[0] == pytest.approx(budget, rel=1e-12)
    case.limited(share * budget)
    found = float(least_deadlines(x, all_of_it, case.users, case.layers)[0])
    if found == math.inf:  # not even at the lowest frequency
        assert share * budget < case.layers.suffix_flops[0] * low**2
        return
    assert found <= case.deadline * (1 + 1e-9) or share < 1.0
    case.users.deadline[0] = found
    assert case.energy(case.x)[0] <= share * budget * (1 + 1e-9)
    case.users.deadline[0] = found * (1 - 1e-6)
    assert case.energy(case.x)[0] > share * budget


def test_without_an_energy_limit_the_least_deadline_is_that_of_full_speed() -> None:
    """The largest of arrival and computing over the layers."""
    case = Case(3)
    found = least_deadlines(np.array([case.x]), np.ones((1, 1), bool), case.users, case.layers)[0]
    layers = case.layers
    assert found == pytest.approx((case.x * layers.prefix_bits + layers.suffix_fixed + layers.suffix_flops / 1e9).max())
    assert least_deadlines(np.array([case.x]), np.zeros((1, 1), bool), case.users, layers)[0] == math.inf
