"""The facility-location form: its value, its bound, its storage units, its certificate."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.problems import ExpertCaching, Placement
from edgeopt.solvers.expert_caching.facility import MAX_UNITS, Facility, certificate, storage_units
from edgeopt.solvers.kernels.facility import best_of
from tests.solvers.expert_caching.instances import TINY, brute_force, device_caps, random_problem

few = settings(max_examples=15)
seeds = st.integers(0, 2**32 - 1)
latencies = st.sampled_from(["max", "mix"])


def value(facility: Facility, placement: Placement) -> float:
    """Return the facility form's value of a placement."""
    return float((facility.weight * best_of(placement.cached, facility.gain, facility.model)).sum())


def placements(problem: ExpertCaching, rng: np.random.Generator, count: int = 6) -> list[Placement]:
    """Return random placements of any density, storages ignored, nothing and everything among them."""
    shape = (problem.num_servers, problem.num_experts)
    return [Placement(rng.random(shape) < share) for share in (0.0, 1.0, *rng.random(count))]


@few
@given(seeds, st.sampled_from([1, 2]), st.booleans())
def test_value_is_the_objective(seed: int, top_k: int, bound: bool) -> None:
    """For modular sets both forms value every placement as the problem does, devices and two models included."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, num_servers=3, num_users=4, experts=(4, 3), top_k=top_k, device=0.2)
    facility = Facility.of(problem, bound=bound)
    for placement in placements(problem, rng):
        assert value(facility, placement) == pytest.approx(problem.objective(placement), abs=1e-12)


@few
@given(seeds, latencies, st.sampled_from([2, (2, 3)]), st.sampled_from([0.0, 0.3, 1.0]))
def test_bounding_form_is_above_the_objective(
    seed: int, latency: str, top_k: int | tuple[int, int], theta: float
) -> None:
    """With `bound` no placement is worth more to the problem, whatever the devices hold, slow ones included."""
    rng = np.random.default_rng(seed)
    problem = random_problem(
        rng, num_servers=2, num_users=4, experts=(4, 4), top_k=top_k, latency=latency, theta=theta,
        device=float(rng.choice([0.0, 0.3, 0.9])),
    )  # fmt: skip
    facility = Facility.of(problem, bound=True)
    for placement in placements(problem, rng):
        assert value(facility, placement) >= problem.objective(placement) - 1e-12


def test_dividing_by_k_alone_would_be_no_bound() -> None:
    """An expert on the device makes the surrogate fall below the objective, and the bounding form stays above."""
    problem = device_caps(0.0)
    placement = Placement([[False, True, False], [False, False, True]])
    surrogate, bound = Facility.of(problem), Facility.of(problem, bound=True)
    assert value(surrogate, placement) < problem.objective(placement) <= value(bound, placement)


@few
@given(seeds, latencies)
def test_surrogate_of_max_is_the_mean(seed: int, latency: str) -> None:
    """Without `bound`, one cached expert of a K-set counts for 1/K of its saving in ``max`` and in full in ``mix``."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, experts=(4,), top_k=2, latency=latency)
    modular, surrogate = Facility.of(problem.replace(latency="sum")), Facility.of(problem)
    assert surrogate.weight == pytest.approx(modular.weight / (2 if latency == "max" else 1))


@pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.name)
def test_certificate_is_above_the_optimum(tiny) -> None:
    """From nothing, from everything, from the optimum and from random placements the certificate is a bound."""
    problem = tiny.problem
    facility = Facility.of(problem, bound=True)
    for placement in [tiny.best, *placements(problem, np.random.default_rng(0), 3)]:
        assert certificate(problem, facility, placement) >= tiny.optimum - 1e-12


@few
@given(seeds)
def test_certificate_on_random_problems(seed: int) -> None:
    """The certificate is a bound for real sizes too, in bytes and in whole units."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, experts=(3, 4), sizes=(1.0, 2.0) if seed % 2 else (0.7, math.pi), storage=0.4)
    optimum, best = brute_force(problem)
    for facility in (Facility.of(problem), Facility.of(problem).in_units()):
        for placement in [best, *placements(problem, rng, 2)]:
            assert certificate(problem, facility, placement) >= optimum - 1e-12


@few
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=6),
    st.lists(st.floats(0, 400), min_size=1, max_size=4),
    st.integers(1, 10**9),
)
def test_whole_sizes_have_exact_units(sizes: list[int], storages: list[float], scale: int) -> None:
    """Whole sizes are divided by their greatest common divisor, and a set fits in units just when it fits in bytes."""
    size, capacity = scale * np.array(sizes, float), scale * np.array(storages)
    units, capacity_units, exact = storage_units(size, capacity)
    assert exact
    assert math.gcd(*units.tolist()) == 1
    assert np.array_equal(units * math.gcd(*(scale * one for one in sizes)), size)
    for mask in range(1 << size.size):
        chosen = (mask >> np.arange(size.size) & 1).astype(bool)
        for n in range(capacity.size):
            excess = size[chosen].sum() - capacity[n]
            if abs(excess) > 1e-9 * max(1.0, capacity[n]):  # nearer than that, rounding may decide
                assert (units[chosen].sum() <= capacity_units[n]) == (excess <= 0)


@few
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.lists(st.floats(0, 40), min_size=1, max_size=4))
def test_rounded_units_never_let_too_much_through(sizes: list[float], storages: list[float]) -> None:
    """What fits in units fits in bytes; on scarce storage every set that wastes 1 % still fits."""
    size, capacity = np.array(sizes), np.array(storages)
    units, capacity_units, _ = storage_units(size, capacity)
    scarce = capacity < size.sum()
    for mask in range(1 << size.size):
        chosen = (mask >> np.arange(size.size) & 1).astype(bool)
        used = size[chosen].sum()
        fits = units[chosen].sum() <= capacity_units
        assert (used <= capacity[fits] * (1 + 1e-9)).all()
        assert (fits | (used * 1.01 > capacity))[scarce].all()


def test_too_fine_sizes_are_rounded() -> None:
    """Sizes without a common divisor, on storage of many units, are put on a grid and said not to be exact."""
    size = np.array([2.0**31 - 1, 2.0**31, 2.0**30 + 1])
    units, capacity_units, exact = storage_units(size, np.array([2.0**32]))
    assert not exact
    assert capacity_units.max() <= MAX_UNITS
    assert (units / capacity_units >= size / 2.0**32).all()


def test_equal_real_sizes_have_exact_units() -> None:
    """Storage for exactly twenty experts of one real size holds twenty of them."""
    units, capacity_units, _ = storage_units(np.full(50, 1.37), np.array([20 * 1.37]))
    assert capacity_units[0] // units[0] == 20


def test_enough_storage_holds_everything() -> None:
    """A server with a tenth more storage than all experts take holds all of them, in units as in bytes."""
    units, capacity_units, _ = storage_units(np.array([1.0, 1.722994763380642]), np.array([3.0]))
    assert units.sum() <= capacity_units[0]


def test_in_units_changes_nothing_but_the_unit() -> None:
    """In units the sizes are whole numbers; without exact units the facility is returned as it is."""
    exact = Facility.of(random_problem(np.random.default_rng(1), experts=(3, 3), sizes=(2.0, 6.0)))
    whole = exact.in_units()
    assert whole.size.tolist() == [1, 1, 1, 3, 3, 3]
    assert np.array_equal(whole.capacity, np.floor(np.minimum(exact.capacity, exact.size.sum()) / 2))
    assert whole.weight is exact.weight
    rounded = Facility.of(random_problem(np.random.default_rng(1), experts=(2, 2), sizes=(1.0, math.pi)))
    assert rounded.in_units() is rounded
