"""Expert balancing: the published example, EPLB's rule in plain Python, the exact programme against enumeration."""

import heapq
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.problems import ExpertBalancing, Replicas
from edgeopt.result import Status
from edgeopt.solvers.expert_balancing import LocalSearch
from edgeopt.solvers.expert_balancing.local_search import _renamed
from tests.solvers.expert_balancing.instances import brute_force, random_problem

PUBLISHED = ExpertBalancing(load=[[600, 560, 120, 120, 20, 10, 10, 10]], slots=[2] * 8)


def test_the_published_example():
    """EPLB ends at 232, as published; the search finds the optimum, below FlashLB's 205."""
    found = {name: edgeopt.solve(PUBLISHED, name) for name in ("eplb", "local-search")}
    assert found["eplb"].objective == pytest.approx(232.0)
    assert found["local-search"].objective == pytest.approx(560 / 3 + 10)


@pytest.mark.slow
def test_the_published_example_is_proved():
    """The programme has the same optimum."""
    found = edgeopt.solve(PUBLISHED, "milp")
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(560 / 3 + 10)


def eplb(load: list[float], slots: list[int]) -> float:
    """Return the largest load after handing out and packing, by heaps."""
    replicas = [1] * len(load)
    for _ in range(sum(slots) - len(load)):
        most = max(range(len(load)), key=lambda e: (load[e] / replicas[e], -e))
        replicas[most] += 1
    shares = sorted((load[e] / replicas[e] for e in range(len(load)) for _ in range(replicas[e])), reverse=True)
    free = [(0.0, device, room) for device, room in enumerate(slots) if room]
    heapq.heapify(free)
    largest = 0.0
    for share in shares:
        total, device, room = heapq.heappop(free)
        largest = max(largest, total + share)
        if room > 1:
            heapq.heappush(free, (total + share, device, room - 1))
    return largest


@given(seed=st.integers(0, 10_000))
def test_eplb_is_the_rule(seed: int):
    """The kernels give what a plain heap gives."""
    rng = np.random.default_rng(seed)
    devices, experts = int(rng.integers(1, 6)), int(rng.integers(1, 12))
    slots = rng.integers(1, 4, devices) + -(-experts // devices)
    load = rng.exponential(size=(1, experts))
    problem = ExpertBalancing(load=load, slots=slots)
    assert edgeopt.solve(problem, "eplb").objective == pytest.approx(eplb(load[0].tolist(), slots.tolist()))


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_the_programme_is_exact_and_the_search_in_between(seed: int):
    """Of any small problem `milp` finds the optimum of the enumeration, or that there is none; nothing beats it."""
    problem = random_problem(seed)
    optimum, _ = brute_force(problem)
    result = edgeopt.solve(problem, "milp")
    if not np.isfinite(optimum):
        assert result.status is Status.INFEASIBLE
        return
    assert result.status is Status.OPTIMAL, result.message
    assert result.objective == pytest.approx(optimum, rel=1e-6, abs=1e-6)
    searched = edgeopt.solve(problem, "local-search")
    if searched.solution is not None:
        assert optimum - 1e-9 <= searched.objective


def test_the_search_is_never_worse_than_its_starts():
    """Neither than what is packed, nor than what is there, nor than a warm start."""
    for seed in range(10):
        problem = ExpertBalancing.random(num_devices=6, num_experts=20, num_layers=2, move_cost=300.0, seed=seed)
        found = edgeopt.solve(problem, "local-search").objective
        assert found <= edgeopt.solve(problem, "eplb").objective
        assert found <= problem.objective(Replicas(problem.present))  # type: ignore[arg-type]
        start = edgeopt.solve(problem, LocalSearch(kicks=0)).solution
        assert edgeopt.solve(problem, "local-search", initial_solution=start).objective <= problem.objective(start)


def test_moves_fall_with_their_cost():
    """The dearer a move, the fewer; where one costs more than all load, nothing moves."""
    loads = ExpertBalancing.random(num_devices=6, num_experts=24, move_cost=1.0, seed=2)
    moves = []
    for cost in (0.0, 100.0, 1000.0, 1e6):
        problem = loads.replace(move_cost=cost)
        moves.append(problem.report(edgeopt.solve(problem, "local-search").solution).moves)
    assert moves == sorted(moves, reverse=True)
    assert moves[-1] == 0 < moves[0]


def test_the_search_beats_the_baseline_at_the_size_of_servers():
    """256 experts in 288 slots on 32 devices: at most a tenth of the baseline's distance to the bound."""
    for seed in range(3):
        problem = ExpertBalancing.random(num_devices=32, num_experts=256, slots=9, seed=seed)
        near, far = (edgeopt.solve(problem, name).objective - problem.lower_bound for name in ("local-search", "eplb"))
        assert 0 <= near <= 0.1 * far


def test_rows_stay_where_they_are_if_they_can():
    """Placements that differ by the names of devices cost no moves; devices of other sizes are no match."""
    present = np.eye(4, dtype=np.int64)
    placed = np.array([[3], [2], [0], [1]])
    assert _renamed(placed, present, np.ones(4, np.int64))[:, 0].tolist() == [0, 1, 2, 3]
    found: Any = _renamed(np.array([[1, -1], [0, 2]]), np.array([[1, 0, 1], [0, 1, 0]]), np.array([1, 2]))
    assert found.tolist() == [[1, -1], [0, 2]]


@pytest.mark.parametrize(
    ("load", "move_cost", "optimum"),
    [
        ([[0.0, 0.0]], 1e-9, 0.0),  # nothing to serve: moves are all that counts, however little they cost
        ([[0.0, 0.0]], 1e40, 0.0),
        ([[3.0, 1.0]], 1e25, 3.0),  # no load is worth a move
        ([[3.0, 1.0]], 1e-30, 2.0),
        ([[3e-8, 1e-8], [62e6, 671e6]], 1e-12, 366.5e6 + 2e-8 + 2e-12),
        ([[3e-40, 1e-40]], 1e-28, 3e-40),
        ([[3e40, 1e40]], 1e-8, 2e40),
        ([[3e-8, 1e-8], [3e8, 1e8], [0.0, 0.0]], 1e-12, 2e8 + 2e-8 + 3e-12),
    ],
)
def test_moves_of_any_cost(load: list[list[float]], move_cost: float, optimum: float):
    """Whatever the unit of loads and of moves: where two slots hold expert 0 and one expert 1, 3 is the largest load."""
    present = np.broadcast_to([[0, -1], [1, -1]], (len(load), 2, 2))
    problem = ExpertBalancing(load=load, slots=[2, 2], present=present, move_cost=move_cost)
    assert brute_force(problem)[0] == pytest.approx(optimum, rel=1e-7)
    found = edgeopt.solve(problem, "milp")
    assert found.status is Status.OPTIMAL, found.message
    assert found.objective == pytest.approx(optimum, rel=1e-7)


@pytest.mark.parametrize("move_cost", [1e12, 1e-9])
def test_moves_that_must_be_made(move_cost: float):
    """Where an expert is nowhere yet, the least that can be done is proved, too."""
    problem = ExpertBalancing(
        load=[[3.0, 1.0, 2.0], [0.0] * 3], slots=[2, 2], present=[[[0, -1], [0, -1]]] * 2, move_cost=move_cost
    )
    found = edgeopt.solve(problem, "milp")
    assert (found.status, found.message) == (Status.OPTIMAL, "")
    assert found.objective == pytest.approx(brute_force(problem)[0], rel=1e-9)


class _Checked:
    """Stops at a check, and counts them."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def check(self, progress: Any) -> Any:
        self.seen += 1
        return edgeopt.stop.Limit.TIME if self.seen >= self.at else None


def test_limits_count_between_descents():
    """A layer is not searched to its end when time is up; what was found until then is kept."""
    problem = ExpertBalancing.random(num_devices=4, num_experts=16)
    values = []
    for at in (3, 30, 10**9):
        stop = _Checked(at)
        found = edgeopt.solve(problem, LocalSearch(kicks=200), stop=stop)
        assert stop.seen >= min(at, 200)
        assert (found.limit is not None) == (at < 10**9)
        values.append(found.objective)
    assert values == sorted(values, reverse=True)


def test_what_attains_its_bound():
    """HiGHS takes a bound on the load for none where what attains it differs by its tolerance: here all is forced."""
    problem = ExpertBalancing(load=[[3.77e-8, 3e-10], [62e6, 671e6]], slots=[2])
    found = edgeopt.solve(problem, "milp")
    assert found.status is Status.OPTIMAL, found.message
    assert found.objective == 733e6 + 3.8e-8
