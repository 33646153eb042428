"""Greedy solvers: lazy against plain, the ratio 1/2 and where it is attained."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Heuristic, Ratio
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching import common, greedy
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.greedy import DensityGreedy, Greedy, greedy_placement
from edgeopt.solvers.kernels.facility import marginals
from edgeopt.stop import Limit, MaxIterations
from tests.solvers.expert_caching.instances import brute_force, greedy_gadget, random_problem

few = settings(max_examples=20)
seeds = st.integers(0, 2**32 - 1)


def with_ties(seed: int) -> ExpertCaching:
    """Return a problem of multiples of 1/4: sums are exact, ties are common."""
    rng = np.random.default_rng(seed)
    num_users, num_servers, num_experts = (int(count) for count in rng.integers(1, [6, 5, 7]))
    return ExpertCaching.from_facility(
        gain=rng.integers(0, 5, (num_users, num_servers)) / 4,
        weight=2.0 ** rng.integers(-2, 2, (num_users, 1)) * np.ones(num_experts) * (rng.random(num_experts) < 0.8),
        size=rng.choice([1.0, 2.0, 4.0], num_experts),
        capacity=rng.integers(0, 8, num_servers),
    )


@few
@given(seeds, st.sampled_from([Greedy, DensityGreedy]), st.booleans())
def test_lazy_equals_plain(seed: int, solver: type[Greedy] | type[DensityGreedy], ties: bool) -> None:
    """Both ways give the same placement, with many ties and with real numbers and several models."""
    if ties:
        problem = with_ties(seed)
    else:
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, num_servers=3, num_users=7, experts=(6, 5), sizes=(1.0, 3.0), device=0.1)
    lazy, plain = (edgeopt.solve(problem, solver(lazy=one)) for one in (True, False))
    assert lazy.solution == plain.solution
    assert lazy.bound == plain.bound


@pytest.mark.parametrize("solver", [Greedy(), DensityGreedy()], ids=lambda solver: solver.name)
def test_half_is_attained_on_the_gadget(solver: Greedy | DensityGreedy) -> None:
    """The first pick, worth 1.01, blocks the only server of the other user: 1.01 of 2, and 1/2 as eps goes to 0."""
    assert edgeopt.solve(greedy_gadget(), solver).objective == pytest.approx(1.01)
    gain = [[1.0, 0.0], [1.0 + 1e-9, 1.0]]
    problem = ExpertCaching.from_facility(gain=gain, weight=[[1, 0], [0, 1]], size=[1, 1], capacity=[1, 1])
    optimum, _ = brute_force(problem)
    assert edgeopt.solve(problem, solver).objective / optimum == pytest.approx(0.5, abs=1e-8)


@few
@given(seeds, st.sampled_from([Greedy(), DensityGreedy()]))
def test_half_of_the_optimum_for_equal_sizes(seed: int, solver: Greedy | DensityGreedy) -> None:
    """On random problems of equal sizes at least half of the enumerated optimum, as the guarantee says."""
    problem = random_problem(np.random.default_rng(seed), num_servers=2, num_users=5, experts=(6,), storage=0.3)
    result = edgeopt.solve(problem, solver)
    assert isinstance(result.guarantee, Ratio)
    assert result.objective >= 0.5 * brute_force(problem)[0] - 1e-12


def test_guarantee_only_where_it_holds() -> None:
    """Unequal sizes, or sets that are not modular, take the ratio away."""
    rng = np.random.default_rng(0)
    for options in ({"sizes": (1.0, 2.0), "experts": (2, 2)}, {"top_k": 2, "latency": "max"}):
        problem = random_problem(rng, **options)  # type: ignore[arg-type]
        for solver in (Greedy(), DensityGreedy()):
            assert isinstance(solver.guarantee_for(problem), Heuristic)


def test_best_singleton_rescues_density_greedy() -> None:
    """A small dense expert keeps a big one out: plain density gets 2, the best single expert and the solver get 10."""
    problem = ExpertCaching.from_facility(gain=[[1.0]], weight=[[2.0, 10.0]], size=[1.0, 10.0], capacity=[10.0])
    facility = Facility.of(problem)
    solver = DensityGreedy()
    with Run[Placement](solver, problem, SolveOptions()) as run:
        plain = greedy_placement(run, facility, per_byte=True)
    assert problem.objective(Placement(plain)) == pytest.approx(2.0)
    assert edgeopt.solve(problem, solver).objective == pytest.approx(10.0) == pytest.approx(brute_force(problem)[0])


def test_singletons_take_turns() -> None:
    """The single experts of two servers are chosen one after the other: the second server takes what is still missing."""
    problem = ExpertCaching.from_facility(
        gain=np.ones((1, 2)), weight=[[3.0, 10.0, 9.0]], size=[1.0, 10.0, 10.0], capacity=[10.0, 10.0]
    )
    assert edgeopt.solve(problem, DensityGreedy()).objective == pytest.approx(19.0)


def test_ties_go_to_the_lowest_server_and_expert() -> None:
    """When everything is worth the same, server 0 takes expert 0, server 1 the next."""
    problem = ExpertCaching.from_facility(np.ones((1, 2)), np.ones((1, 4)), np.ones(4), np.ones(2))
    for solver in (Greedy(), DensityGreedy(), Greedy(lazy=False), DensityGreedy(lazy=False)):
        cached = edgeopt.solve(problem, solver).solution.cached
        assert np.argwhere(cached).tolist() == [[0, 0], [1, 1]]


def test_stopping_is_no_worse_than_the_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop between two steps returns no less than the picks made so far, with nothing left out that fits."""
    monkeypatch.setattr("edgeopt.solvers.expert_caching.greedy.PICKS_PER_STEP", 2)
    problem = random_problem(np.random.default_rng(4), num_servers=3, num_users=6, experts=(8,))
    full, part = edgeopt.solve(problem, "greedy"), edgeopt.solve(problem, "greedy", stop=MaxIterations(2))
    assert part.limit is Limit.ITERATION
    picked = np.zeros(full.solution.cached.shape, bool)
    for _ in range(4):
        more = [(problem.objective(Placement(picked | at)), at) for at in fitting(problem, picked)]
        picked |= max(more, key=lambda one: one[0])[1]
    assert (picked <= full.solution.cached).all()
    assert part.objective >= problem.objective(Placement(picked)) - 1e-12
    assert not fitting(problem, part.solution.cached)


def fitting(problem: ExpertCaching, cached: np.ndarray) -> list[np.ndarray]:
    """Return bool [N, E] for each copy that there is room for."""
    left = problem.storage_limit - cached @ problem.expert_bytes
    at = np.argwhere(~cached & (problem.expert_bytes <= left[:, None]))
    return [np.isin(np.arange(cached.size), e + n * cached.shape[1]).reshape(cached.shape) for n, e in at]


@pytest.mark.parametrize("name", ["greedy", "density-greedy", "lagrangian"])
@pytest.mark.parametrize("seed", range(3))
def test_a_limit_leaves_no_less_than_chance(name: str, seed: int) -> None:
    """First picks give a few experts to all servers; what a run without time ends with beats a random placement all the same."""
    problem = ExpertCaching.random(num_servers=8, num_users=60, num_layers=4, experts_per_layer=40, seed=seed)
    stopped = edgeopt.solve(problem, name, time_limit=0)
    assert stopped.limit is Limit.TIME
    assert stopped.objective > edgeopt.solve(problem, "random", seed=seed).objective


def test_half_of_the_optimum_despite_rounding() -> None:
    """Storage for three experts holds three, though 0.3 - 0.1 - 0.1 < 0.1: 3 of 5; with two places it would be 2 of 5."""
    problem = ExpertCaching.from_facility(
        gain=[[1.0, 0.0], [1.01, 1.0]], weight=[[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]], size=np.full(5, 0.1),
        capacity=[0.3, 0.3],
    )  # fmt: skip
    optimum, _ = brute_force(problem)
    assert optimum == pytest.approx(5.0)
    assert edgeopt.solve(problem, Greedy()).objective >= 0.5 * optimum


@few
@given(seeds)
def test_first_values(seed: int) -> None:
    """By matrix products they are those of the kernel, up to rounding."""
    facility = Facility.of(random_problem(np.random.default_rng(seed), num_servers=3, num_users=6, experts=(8, 5)))
    values = marginals(facility.weight, facility.gain, facility.model, np.zeros_like(facility.weight)).T
    np.testing.assert_allclose(facility.first_values(), values, rtol=1e-13)
    assert ((1 + greedy.ROUNDING) * facility.first_values() >= values).all()


def test_no_certificate_where_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that is reached ends a run without it, unless it is quick."""
    problem = ExpertCaching.random(num_servers=4, num_users=10, num_layers=2, experts_per_layer=8, seed=2)
    assert np.isfinite(edgeopt.solve(problem, Greedy(), time_limit=0).bound)
    monkeypatch.setattr(common, "QUICK", 1)
    assert not np.isfinite(edgeopt.solve(problem, Greedy(), time_limit=0).bound)
    assert np.isfinite(edgeopt.solve(problem, Greedy()).bound)
