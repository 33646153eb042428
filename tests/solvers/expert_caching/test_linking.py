"""The linking dual: knapsacks by counts, bounds against every placement, and what is forgotten."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Status
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching import lagrangian
from edgeopt.solvers.expert_caching.dual import minimise_dual
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.lagrangian import Lagrangian
from edgeopt.solvers.expert_caching.linking import Linking
from edgeopt.solvers.expert_caching.pricing import Prices, SubsetPricing, start_prices
from edgeopt.solvers.kernels.linking import fill_servers, switching_costs
from edgeopt.solvers.kernels.subsets import cached_to_masks
from tests.solvers.expert_caching.instances import brute_force, random_problem

few = settings(max_examples=12)
seeds = st.integers(0, 2**32 - 1)


def fills(worth: np.ndarray, weight: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Return every choice [C, n] that fits, and its worth [C]."""
    choices = (np.arange(1 << worth.size)[:, None] >> np.arange(worth.size) & 1).astype(bool)
    choices = choices[choices @ weight <= room]
    return choices, choices @ worth


@few
@given(seeds, st.integers(1, 4), st.integers(0, 9))
def test_knapsacks_by_counts(seed: int, num_sizes: int, num_pairs: int) -> None:
    """The best value, a choice that attains it, and the loss of every forced pair, by enumeration, whatever the order before."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice(np.arange(1, 9), num_sizes, replace=False)
    group = np.sort(rng.integers(0, num_sizes, num_pairs))
    worth, room = np.round(rng.normal(0.5, 1.0, num_pairs), 1), int(rng.integers(0, 20))  # rounded: equal ones
    first = np.searchsorted(group, np.arange(num_sizes + 1))
    # two servers: an empty one before it
    pair_first, rooms = np.append(np.zeros(num_sizes, np.int64), first), np.array([3, room])
    order = np.concatenate([rng.permutation(np.arange(a, b)) for a, b in itertools.pairwise(first)]).astype(np.int64)
    value, chosen = fill_servers(worth, sizes, rooms, pair_first, order)
    choices, values = fills(worth, sizes[group], room)
    assert value == pytest.approx([0.0, values.max()])
    assert worth[chosen].sum() == pytest.approx(values.max())
    assert sizes[group][chosen].sum() <= room
    out, into = switching_costs(worth, sizes, rooms, pair_first, order)
    for i in range(num_pairs):
        assert out[i] == pytest.approx(values.max() - values[~choices[:, i]].max())
        assert into[i] == pytest.approx(values.max() - values[choices[:, i]].max(initial=-math.inf))


def test_many_sizes_are_a_general_knapsack() -> None:
    """Too many combinations of counts: the same best value, and no pair's loss is claimed."""
    rng = np.random.default_rng(3)
    sizes, worth = np.arange(3, 21), rng.normal(0.5, 1.0, 18)  # 2 ** 17 combinations
    order, first = np.arange(18), np.arange(19)
    value, chosen = fill_servers(worth, sizes, np.array([60]), first, order)
    _, values = fills(worth, sizes, 60)
    assert value[0] == pytest.approx(values.max())
    assert worth[chosen].sum() == pytest.approx(values.max())
    assert sizes[chosen].sum() <= 60
    out, into = switching_costs(worth, sizes, np.array([60]), first, order)
    assert not out.any()
    assert not into.any()


def small(seed: int) -> ExpertCaching:
    """Return a random problem small enough to enumerate, of two sizes."""
    rng = np.random.default_rng(seed)
    return random_problem(rng, num_servers=2, num_users=4, experts=(4, 3), sizes=(2.0, 3.0), device=0.1, storage=0.4)


def relaxed(problem: ExpertCaching, allowed: float = math.inf) -> tuple[Prices, Linking]:
    """Return a good dual point, and the linking dual over the columns near it."""
    facility = Facility.of(problem).in_units()
    assert facility.exact_units
    table = SubsetPricing(facility)
    start = start_prices(facility, np.zeros((problem.num_servers, problem.num_experts), bool))
    prices = minimise_dual(facility, table, start, 200, lambda *_: 0.0)
    return prices, Linking(facility, prices, table.near(prices, allowed))


def placements(problem: ExpertCaching) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks [C, E] and objectives [C] of all feasible placements of a problem with two servers."""
    fit = []
    for limit in problem.storage_limit:
        every = np.array(list(itertools.product([False, True], repeat=problem.num_experts)))
        fit.append(every[every @ problem.expert_bytes <= limit * (1 + 1e-9)])
    cached = np.array([np.stack(pair) for pair in itertools.product(*fit)])
    facility = Facility.of(problem)
    reach = np.where(cached[:, :, None, :], facility.gain[facility.model].transpose(2, 1, 0), 0.0).max(axis=1)
    return cached[:, 0] + 2 * cached[:, 1].astype(np.int64), np.einsum("cue,eu->c", reach, facility.weight)


@few
@given(seeds)
def test_no_placement_falls_short_by_less(seed: int) -> None:
    """At any prices of the copies: D against the optimum, and each column's figure against the best placement with it."""
    problem = small(seed)
    prices, links = relaxed(problem)
    masks, values = placements(problem)
    short = prices.bound - values
    assert short.min() == pytest.approx(prices.bound - brute_force(problem)[0], abs=1e-12)
    rng = np.random.default_rng(seed)
    for spread in (0.0, 0.01, 0.1):
        delta = spread * rng.normal(size=links._delta.shape) * prices.bound
        links._delta[:] = delta
        assert links.evaluate(delta[links._pair])[0] <= short.min() + 1e-12
        expert = links.columns.expert
        for column, least in enumerate(links.reduced()):
            using = masks[:, expert[column]] == links.columns.mask[column]
            assert least <= short[using].min(initial=math.inf) + 1e-12
    links._delta[:] = 0.0
    assert links.evaluate(np.zeros(links._pair[0].size))[0] >= -1e-12


@few
@given(seeds, st.floats(0.0, 1.0))
def test_what_is_forgotten_is_no_better(seed: int, share: float) -> None:
    """From any incumbent below the optimum the bound stays above the optimum, and the columns of the optimum stay."""
    problem = small(seed)
    optimum, best = brute_force(problem)
    prices, _ = relaxed(problem)
    incumbent = share * optimum
    _, links = relaxed(problem, (prices.bound - incumbent) * (1 + 1e-9))
    before = links.columns.mask.size
    with Run[Placement](Lagrangian(), problem, SolveOptions()) as run:
        run.offer(Placement(np.zeros_like(best.cached)))
        run.objective = incumbent
        run.tighten(prices.bound)
        links.close(run, 60)
        assert run.bound >= optimum - 1e-9
        assert links.columns.mask.size <= before
        if incumbent < optimum * (1 - 1e-6):
            held = links.columns.mask == cached_to_masks(best.cached)[links.columns.expert]
            assert held.sum() == problem.num_experts or problem.objective(best) < optimum


def test_closer_than_prices() -> None:
    """Where sizes do not fill the storages the bound falls to the optimum or near it, which the prices alone miss."""
    problem = ExpertCaching.random(num_servers=4, num_users=20, num_models=2, num_layers=2, seed=4, storage=0.2)
    exact = edgeopt.solve(problem, Lagrangian())
    assert exact.status is Status.OPTIMAL
    optimum = exact.objective
    prices, _ = relaxed(problem)
    _, links = relaxed(problem, (prices.bound - optimum) * (1 + 1e-6))
    with Run[Placement](Lagrangian(), problem, SolveOptions()) as run:
        run.offer(exact.solution)
        links.close(run, 600)
        assert run.bound >= optimum * (1 - 1e-9)
        assert run.bound - optimum < 0.7 * (prices.bound - optimum)


def test_one_server_is_proved() -> None:
    """With one server the bound is its knapsack's: the run ends as optimal without branch and bound."""
    problem = ExpertCaching.from_facility([[2.0]], [[3.0, 2.5]], [2.0, 3.0], [4.0])
    prices, links = relaxed(problem, math.inf)
    assert prices.bound > 7.0
    with Run[Placement](Lagrangian(), problem, SolveOptions()) as run:
        run.offer(Placement(np.array([[True, False]])))
        run.tighten(prices.bound)
        links.close(run, 100)
        assert run.bound == pytest.approx(6.0)
    result = edgeopt.solve(problem, Lagrangian(finish_seconds=0))
    assert (result.status, result.objective) == (Status.OPTIMAL, pytest.approx(6.0))


def test_part_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the linking dual the bound of the same run is worse."""
    problem = ExpertCaching.random(num_servers=5, num_users=20, num_models=2, num_layers=2, seed=4, storage=0.2)
    solver = Lagrangian(finish_seconds=0, rounds=3)
    bound = edgeopt.solve(problem, solver).bound
    monkeypatch.setattr(lagrangian, "LINK_COLUMNS", 0)
    assert bound < edgeopt.solve(problem, solver).bound
