"""Expert balancing: objective, limits and bounds against plain Python and enumeration, files, bad input."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeopt
from edgeopt.errors import InvalidProblemError
from edgeopt.problems import ExpertBalancing, Replicas, bundled_trace
from tests.solvers.expert_balancing.instances import TINY, brute_force, random_problem, value

every_tiny = pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.name)
PUBLISHED = ExpertBalancing(load=[[600, 560, 120, 120, 20, 10, 10, 10]], slots=[2] * 8)


@given(seed=st.integers(0, 10_000), draw=st.integers(0, 1000))
def test_objective_and_limits_are_those_of_plain_python(seed: int, draw: int):
    """Any placement costs what adding up device by device says, and is feasible exactly if that finds no broken limit."""
    problem = random_problem(seed)
    rng = np.random.default_rng(draw)
    shape = (problem.num_layers, problem.num_devices, int(problem.slots.max()) + int(draw % 5 == 0))
    solution = Replicas(rng.integers(-1, problem.num_experts, shape))
    held = [[tuple(e for e in row if e >= 0) for row in layer] for layer in solution.experts.tolist()]
    values = [value(problem, layer, tuple(held[layer])) for layer in range(problem.num_layers)]
    assert problem.is_feasible(solution) == np.isfinite(values).all()
    if np.isfinite(values).all():
        assert problem.objective(solution) == pytest.approx(sum(values), rel=1e-12, abs=1e-12)


@given(seed=st.integers(0, 10_000))
def test_nothing_beats_the_lower_bound(seed: int):
    """The bound is at most the optimum of the enumeration."""
    problem = random_problem(seed)
    optimum, _ = brute_force(problem)
    assert problem.lower_bound <= optimum * (1 + 1e-12)


def test_the_bound_by_replicas_is_attained_where_devices_have_one_slot():
    """With one replica per device, the largest replica is all there is: handing out greedily is then optimal."""
    problem = ExpertBalancing(load=[[9.0, 5.0, 1.0]], slots=[1] * 6)
    assert problem.layer_bounds() == pytest.approx(3.0)
    assert brute_force(problem)[0] == pytest.approx(3.0)


def test_a_report_adds_up():
    """Loads of devices add up to the load of the layer; the balance is mean over largest; moves count what is new."""
    problem = ExpertBalancing(load=[[4.0, 1.0]], slots=[2, 1], present=[[[0, -1], [0, -1]]], move_cost=0.5)
    report = problem.report(Replicas([[[0, 1], [0, -1]]]))
    assert report.device_load.tolist() == [[3.0, 2.0]]
    assert (report.largest.tolist(), report.moves, report.balancedness) == ([3.0], 1, pytest.approx(2.5 / 3.0))
    assert problem.objective(Replicas([[[0, 1], [0, -1]]])) == 3.5
    assert problem.objective(Replicas([[[0, -1], [0, -1]]])) == np.inf


@every_tiny
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_files_keep_everything(tiny: Any, suffix: str, tmp_path: Any):
    """A problem read back is equal, and so are its fingerprint and its solutions'."""
    path = tmp_path / f"problem{suffix}"
    tiny.problem.save(path)
    found = edgeopt.load(path)
    assert found == tiny.problem
    assert found.fingerprint() == tiny.problem.fingerprint()
    assert found.solution_from_json(tiny.best.to_json()) == tiny.best
    assert tiny.problem.replace(load=tiny.problem.load + 1.0) != tiny.problem


def test_loads_of_a_trace_are_its_counts():
    """Each token counts for each of its K experts; users can be left out, as those of another window."""
    trace = bundled_trace("mixtral8")
    problem = ExpertBalancing.from_trace(trace, num_devices=4, slots=3)
    assert problem.load.sum(axis=1) == pytest.approx(trace.top_k * trace.tokens_per_user.sum())
    halves = [ExpertBalancing.from_trace(trace, num_devices=4, users=range(i, trace.num_users, 2)) for i in (0, 1)]
    assert (halves[0].load + halves[1].load == problem.load).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": [[1.0, -2.0]]}, r"load\[0, 1\] = -2.0: expected a non-negative number"),
        ({"load": [[1.0, np.nan]]}, r"load\[0, 1\] = nan: expected"),
        ({"load": np.zeros((0, 2))}, "expected at least one layer, one expert and one device"),
        ({"slots": [1]}, "slots: 1 in all, expected at least one for each of 2 experts"),
        ({"slots": [1, 1.5]}, r"slots\[1\] = 1.5: expected an integer >= 0"),
        ({"expert_group": [0, 1, 2]}, r"expert_group: expected shape \[2\], got \[3\]"),
        ({"device_group": [0, 1]}, "group 0 has 2 experts, expected at most 1, the slots of device group 0"),
        ({"move_cost": 1.0}, "move_cost = 1.0: expected a present placement to move from"),
        ({"move_cost": -1.0, "present": [[[0], [1]]]}, "move_cost = -1.0: expected a non-negative number"),
        ({"move_cost": 1e60, "present": [[[0], [1]]]}, "move_cost = 1e\\+60: expected 0 or a magnitude from"),
        ({"expert_group": [0, 2**31 - 1]}, r"expert_group\[1\] = 2147483647: expected an integer from 0 to 1048575"),
        ({"present": [[[0], [2]]]}, "present: found expert 2, expected at most 1"),
        ({"present": [[[0]]]}, r"present: expected shape \[1, 2, any\], got \[1, 1, 1\]"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str):
    """Every error names field, index, value and what was expected."""
    with pytest.raises(InvalidProblemError, match=message):
        ExpertBalancing(**{"load": [[2.0, 1.0]], "slots": [1, 1], **changes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_groups": 9}, "num_groups = 9: expected at most num_devices = 8"),
        ({"num_devices": 0}, "num_devices = 0: expected an integer >= 1"),
        ({"skew": -1.0}, "skew = -1.0: expected a non-negative number"),
        ({"num_layers": 1 << 40}, "expected at most"),
    ],
)
def test_bad_sizes_are_named(arguments: dict[str, Any], message: str):
    """The random problem refuses what makes none."""
    with pytest.raises(InvalidProblemError, match=message):
        ExpertBalancing.random(**arguments)


def test_random_problems_repeat():
    """Same seed, same problem; groups and a present placement as asked for."""
    arguments: dict[str, Any] = {"num_groups": 2, "move_cost": 1.0, "seed": 3}
    first, second = ExpertBalancing.random(**arguments), ExpertBalancing.random(**arguments)
    assert first == second
    assert first != ExpertBalancing.random(**{**arguments, "seed": 4})
    assert first.is_grouped
    assert first.present is not None


@pytest.mark.parametrize(("devices", "experts", "groups"), [(8, 64, 2), (5, 7, 3), (7, 40, 3), (3, 10, 3), (4, 4, 4)])
def test_random_groups_of_any_size(devices: int, experts: int, groups: int):
    """Sizes of groups differ by one at most, each has room, and what is placed at present is a placement."""
    problem = ExpertBalancing.random(num_devices=devices, num_experts=experts, num_groups=groups, move_cost=1.0, seed=1)
    for group in (problem.device_group, problem.expert_group):
        assert np.ptp(np.bincount(group, minlength=groups)) <= 1
        assert np.unique(group).size == groups
    assert problem.present is not None
    assert problem.is_feasible(Replicas(problem.present))


def test_random_loads_of_any_skew():
    """However uneven, loads are numbers that add up to the tokens; what is too small beside the largest is none."""
    problem = ExpertBalancing.random(num_experts=16, num_layers=2, skew=1e5, tokens=1e4)
    assert problem.load.sum(axis=1) == pytest.approx(1e4)
    assert problem.load.max() == pytest.approx(1e4)
    assert (problem.load == 0).any()
