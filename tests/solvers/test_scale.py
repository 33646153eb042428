"""No unit matters: every solver decides alike whatever gains, times, bytes and weights are measured in, or they are refused.

A change of units multiplies some fields of a problem by powers of one factor, and the objective by a power of it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import InvalidProblemError
from edgeopt.problems import ExpertCaching, RoutedModel
from edgeopt.result import Exact, Status
from edgeopt.solve import configure
from edgeopt.solvers import solvers_of
from tests.solvers.client_selection import instances as selection
from tests.solvers.expert_balancing import instances as balancing
from tests.solvers.expert_caching import instances as caching
from tests.solvers.model_download import instances as download
from tests.solvers.split_training import instances as split

Change = Callable[[Any, float], Any]


def times(**powers: int) -> Change:
    """Return a change that multiplies each field, if the problem has it, by the factor to that power."""

    def change(problem: Any, factor: float) -> Any:
        given = {name: getattr(problem, name) for name in powers}
        fields = {name: value * factor ** powers[name] for name, value in given.items() if value is not None}
        return problem.replace(**fields)

    return change


def bytes_of_caching(problem: Any, factor: float) -> Any:
    names = ("name", "expert_layer", "sets", "indptr", "indices", "probability")
    models = tuple(
        RoutedModel(**{name: getattr(m, name) for name in names}, expert_bytes=m.expert_bytes * factor)
        for m in problem.models
    )
    return problem.replace(models=models, storage_bytes=problem.storage_bytes * factor)


def bits_of_download(problem: Any, factor: float) -> Any:
    """Bits, and hertz too where the rate at fixed power ties the two."""
    rate = (
        {"spectral_efficiency": 1}
        if problem.snr_hz is None
        else {"snr_hz": 1, "bandwidth_hz": 1, "resource_block_hz": 1}
    )
    return times(layer_bits=1, memory_bytes=1, receive_j_per_bit=-1, **rate)(problem, factor)


def seconds_of_download(problem: Any, factor: float) -> Any:
    band = dict.fromkeys(("bandwidth_hz", "resource_block_hz", "snr_hz"), -1)
    processor = {"min_frequency_hz": -1, "max_frequency_hz": -1, "energy_coefficient": 2}
    return times(deadline_s=1, layer_fixed_s=1, **band, **processor)(problem, factor)


RATES = (
    "uplink_bps",
    "downlink_bps",
    "fed_uplink_bps",
    "fed_downlink_bps",
    "server_fed_uplink_bps",
    "server_fed_downlink_bps",
)
BITS = ("activation_bits", "gradient_bits", "parameter_bits", "memory_bits", "memory_bytes")
UNITS: dict[str, dict[str, tuple[Change, int]]] = {  # kind: unit: change, power of the factor in the objective
    "expert-caching": {
        "seconds": (times(server_latency_s=1, cloud_latency_s=1, device_latency_s=1), 1),
        "traffic": (times(user_weight=1), 1),
        "bytes": (bytes_of_caching, 0),
    },
    "model-download": {
        "weight": (times(user_weight=1), 1),
        "reward": (times(model_reward=1), 1),
        "bits": (bits_of_download, 0),
        "seconds": (seconds_of_download, 0),
        "cycles": (times(layer_flops=1, min_frequency_hz=1, max_frequency_hz=1, energy_coefficient=-3), 0),
        "joule": (times(energy_j=1, energy_coefficient=1, receive_j_per_bit=1), 0),
    },
    "split-training": {
        "seconds": (times(device_flops=-1, server_flops=-1, **dict.fromkeys(RATES, -1)), 1),
        "bits": (times(**dict.fromkeys((*RATES, *BITS), 1)), 0),
        "work": (times(forward_flops=1, backward_flops=1, device_flops=1, server_flops=1), 0),
        "gradient": (times(gradient_variance=1, gradient_second_moment=1, target=1, initial_gap=1), 0),
        "loss": (times(initial_gap=1), 1),
    },
    "client-selection": {
        "weights": (times(latency_weight=1, conflict_weight=1, fairness_weight=1), 1),
        "seconds": (times(compute_s=1, timeout_s=1, rate_bps=-1), 0),
        "bits": (times(payload_bits=1, rate_bps=1), 0),
    },
    "expert-balancing": {"load": (times(load=1, move_cost=1), 1)},
}
INSTANCES: dict[str, list[Any]] = {
    "expert-caching": [caching.instance(name) for name in ("greedy gadget", "two sizes", "K = 2, mix")],
    "model-download": [
        download.instance(name) for name in ("one large", "energy", "concave, blocks, rewards", "levels and energy")
    ],
    "split-training": [split.instance(name) for name in ("drift forbids the fast cut", "any 16", "varied 3")],
    "client-selection": [selection.instance(name) for name in ("busy client", "share, regimes")],
    "expert-balancing": [balancing.instance(name) for name in ("two layers", "groups", "all of it")],
}
QUICK = {"iterations": 1, "episodes": 1, "search_work": 1e5, "bound_steps": 3, "finish_seconds": 5.0}


def solvers() -> list[Any]:
    """Return every solver of every kind, set to work little."""
    found = []
    for kind in UNITS:
        for solver in solvers_of(kind):
            quick = {name: value for name, value in QUICK.items() if hasattr(solver, name)}
            found.append(pytest.param(kind, configure(solver, **quick), id=f"{kind}-{solver.name}"))
    return found


every_solver = pytest.mark.parametrize(("kind", "solver"), solvers())
every_kind = pytest.mark.parametrize("kind", UNITS)


def decisions(solution: Any) -> Any:
    """Return what a solution decides, without numbers that have a unit."""
    return solution.model.tolist() if hasattr(solution, "bandwidth_hz") else solution


def supported(kind: str, solver: Any) -> list[Any]:
    return [one for one in INSTANCES[kind] if solver.supports(one.problem) is None]


@pytest.mark.sampled(6)
@every_solver
def test_powers_of_two_change_no_bit(kind: str, solver: Any) -> None:
    """One unit after another by 2**50 or 2**-50: decisions, status, objective and bound are the same to the last bit."""
    for one in supported(kind, solver):
        before = edgeopt.solve(one.problem, solver, deterministic=True)
        for number, (unit, (change, power)) in enumerate(UNITS[kind].items()):
            exponent = 50 if number % 2 else -50
            problem = change(one.problem, 2.0**exponent)
            after = edgeopt.solve(problem, solver, deterministic=True)
            what = f"{one.name}, {unit}: {after.message}"
            assert after.status is before.status, what
            assert after.objective == before.objective * 2.0 ** (power * exponent), what
            assert after.bound == before.bound * 2.0 ** (power * exponent), what
            assert decisions(after.solution) == decisions(before.solution), what


@every_solver
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_any_factor_keeps_what_is_proved(kind: str, solver: Any, factor: float) -> None:
    """What the objective is measured in, by a decimal factor: same status and objective, a bound beyond the optimum.

    Of random search and learning only the same decisions are the same; rounding may sway the search for a bound.
    """
    one, (change, power) = supported(kind, solver)[0], next(iter(UNITS[kind].values()))
    before = edgeopt.solve(one.problem, solver, deterministic=True)
    after = edgeopt.solve(change(one.problem, factor), solver, deterministic=True)
    sign = 1.0 if after.sense == "max" else -1.0
    scale = factor**power
    assert after.status is before.status
    assert after.objective == pytest.approx(before.objective * scale, rel=1e-9)
    assert sign * after.bound >= sign * one.optimum * scale - 1e-9 * abs(one.optimum) * scale
    if isinstance(after.guarantee, Exact):
        assert after.objective == pytest.approx(one.optimum * scale, rel=1e-9)


@every_kind
@pytest.mark.parametrize("factor", [2.0**-900, 1e-300, 1e-200, 1e200, 1e300])
def test_what_is_out_of_range_is_refused(kind: str, factor: float) -> None:
    """Numbers whose products would under- or overflow are refused when the problem is built, each with field and range."""
    for one in INSTANCES[kind]:
        for change, _ in UNITS[kind].values():
            try:
                with np.errstate(over="ignore", under="ignore"):
                    problem = change(one.problem, np.float64(factor))
            except InvalidProblemError as error:
                message = str(error)
                assert "a magnitude from 1e-50 to 1e+50" in message or "expected a" in message
            else:
                assert problem == one.problem  # nothing in this unit but zeros and infinities


@pytest.mark.parametrize("corner", [(1e-48, 1e-48), (1e48, 1e48), (1e-48, 1e48)])
@pytest.mark.parametrize("solver", solvers_of("expert-caching"), ids=lambda solver: solver.name)
def test_products_at_the_ends_of_the_range(solver: Any, corner: tuple[float, float]) -> None:
    """Seconds and traffic at the ends at once, with storage in tiny units: bounds hold, and what is called optimal is."""
    problem: Any = caching.instance("greedy gadget").problem
    units = UNITS["expert-caching"]
    for unit, factor in (("seconds", corner[0]), ("traffic", corner[1]), ("bytes", corner[0])):
        problem = units[unit][0](problem, factor)
    optimum = 2.0 * corner[0] * corner[1]
    result = edgeopt.solve(problem, solver)
    assert result.objective <= optimum * (1 + 1e-9)
    assert result.bound >= optimum * (1 - 1e-9)
    if result.status is Status.OPTIMAL or isinstance(solver.guarantee_for(problem), Exact):
        assert result.status is Status.OPTIMAL
        assert result.objective >= optimum * (1 - 1e-9)


@pytest.mark.parametrize("factor", [3e-16, 3e-40, 1.0, 3e40])
def test_half_the_optimum_is_no_optimum(factor: float) -> None:
    """Greedy takes the gain that blocks another as large, and says so: twice as much may be reached, and is."""
    problem = ExpertCaching.from_facility(
        gain=np.array([[1.0, 0.0], [1.1, 1.0]]) * factor, weight=[[1, 0], [0, 1]], size=[1, 1], capacity=[1, 1]
    )
    greedy, best = edgeopt.solve(problem, "greedy"), edgeopt.solve(problem, "milp")
    assert greedy.status is Status.FEASIBLE
    assert greedy.objective == pytest.approx(1.1 * factor, rel=1e-9)
    assert best.status is Status.OPTIMAL
    assert best.objective == pytest.approx(2 * factor, rel=1e-9)
    assert greedy.bound >= 2 * factor * (1 - 1e-9)


@pytest.mark.parametrize(
    ("gain", "weight", "message"),
    [
        (1e-200, 1e-200, r"gain\[0, 0\] = 1e-200: expected 0 or a magnitude from 1e-50 to 1e\+50"),
        (1e300, 1e300, r"gain\[0, 0\] = 1e\+300: expected 0 or a magnitude from 1e-50 to 1e\+50"),
        (1.0, 1e-60, r"weight\[0, 0\] = 1e-60: expected 0 or a magnitude from 1e-50 to 1e\+50"),
        (1.0, [[1e-30, 1e30]], r"weight\[0, 0\] = 1e-30: expected 0 or at least 1e-50 of the user's total, 1e\+30"),
    ],
)  # fmt: skip
def test_products_that_under_or_overflow_are_refused(gain: float, weight: Any, message: str) -> None:
    """Gain times weight that is no number, or a weight that is nothing beside another, by the names that were given."""
    weights = np.broadcast_to(weight, (1, 2))
    with pytest.raises(InvalidProblemError, match=message):
        ExpertCaching.from_facility(gain=[[gain]], weight=weights, size=[1, 1], capacity=[1])
