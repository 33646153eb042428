"""Prices: what is proved holds for optima at other values, what is said to be there is found by solving again."""

import json
from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.evaluation.what_if import DEFAULT
from edgeopt.prices import Price
from edgeopt.problem import Problem
from edgeopt.problems import (
    PROBLEMS,
    ClientSelection,
    ExpertBalancing,
    ExpertCaching,
    ModelDownload,
    Placement,
    SplitPlan,
    SplitTraining,
)
from edgeopt.result import Result
from tests.solvers.expert_balancing.instances import brute_force as best_placement
from tests.solvers.expert_caching.instances import TINY as TINY_CACHING
from tests.solvers.model_download.instances import brute_force, random_problem
from tests.solvers.split_training.brute_force import any_problem
from tests.solvers.split_training.instances import enumerate_plans


def raised(problem: Any, price: Price, value: float) -> Any:
    """Return the problem with the limit of a price at another value."""
    field, _, index = price.name.rstrip("]").partition("[")
    if not index:
        return problem.replace(**{field: value})
    values = np.array(getattr(problem, field))
    values[int(index)] = value
    return problem.replace(**{field: values})


def check_form(problem: Problem, result: Result[Any]) -> tuple[Price, ...]:
    prices = result.prices
    json.dumps([price.to_json() for price in prices], allow_nan=False)
    assert all(price.worth >= 0 and price.name in str(price) for price in prices)
    assert all((price.base is None) == (price.claim == "estimate") for price in prices)
    for price in prices:
        if price.base is not None:
            found = price.no_better_than(problem.sense, price.value)
            assert found >= result.objective * (1 - 1e-9) if problem.sense == "max" else found <= result.objective
    return prices


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.kind)
def test_every_kind_has_prices(kind: Any):
    """A result of every kind can be asked, and says what is proved."""
    problem = kind.random(seed=1).tiny_like()
    check_form(problem, edgeopt.solve(problem, DEFAULT[kind.kind], time_limit=2))


def test_without_a_solution_there_are_none():
    """A result that has none, or an infeasible problem, says so."""
    problem = SplitTraining.random(num_devices=2, num_layers=3)
    result = edgeopt.solve(problem.replace(target=0.5 * problem.least_target), "hasfl")
    with pytest.raises(edgeopt.NoSolutionError, match=r"hasfl found no feasible solution .*: there are no prices"):
        _ = result.prices


# --- model download ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [{}, {"weighted": True, "rewarded": True}, {"energy": 0.7}, {"block": 0.5}])
def test_bandwidth(variant: dict[str, Any]):
    """No optimum at any bandwidth beats the line; the next step is there, at which brute force finds the gain."""
    rng = np.random.default_rng(3)
    steps = 0
    for _ in range(6):
        problem = random_problem(rng, **{"num_users": 4, "band": 0.3} | variant)
        result = edgeopt.solve(problem, "slide")
        price = next((price for price in check_form(problem, result) if price.name == "bandwidth_hz"), None)
        if price is None:  # all are served: more is worth nothing
            unserved = {refused.index for refused in problem.explain(result.solution).refused}
            assert unserved <= {refused.index for refused in problem.explain().refused}
            continue
        assert price.claim == "at most"
        for share in (0.3, 0.8, 1.0, 1.3, 3.0):
            value = share * problem.bandwidth_hz
            optimum = brute_force(problem.replace(bandwidth_hz=value))[0]
            assert optimum <= price.no_better_than("max", value) + 1e-9
        if price.step is not None:
            assert price.gain is not None
            steps += 1
            more = problem.replace(bandwidth_hz=(problem.bandwidth_hz + price.step) * (1 + 1e-9))
            assert brute_force(more)[0] >= result.objective + price.gain - 1e-9
    assert steps >= 2


def test_a_price_of_bandwidth_by_hand():
    """Two users of 2 Hz, one of 4, all worth 1, over 5 Hz: the third lacks 3 Hz, and a hertz is worth at most a quarter.

    The least bound is at a price of 1/4: 5/4 + (1 - 2/4) + (1 - 2/4) + 0 = 2.25.
    """
    problem = ModelDownload(
        layer_indptr=[0, 1], layer_bits=[4.0], layer_flops=[0.0], model_names=["one"], deadline_s=[1.0] * 3,
        cycles_per_flop=1.0, min_frequency_hz=1.0, max_frequency_hz=1.0, spectral_efficiency=[2.0, 2.0, 1.0],
        bandwidth_hz=5.0,
    )  # fmt: skip
    price = edgeopt.solve(problem, "slide").prices[0]
    assert (price.name, price.worth, price.base) == ("bandwidth_hz", pytest.approx(0.25), pytest.approx(2.25))
    assert (price.step, price.gain) == (pytest.approx(3.0), 1.0)


def test_deadlines_and_energy_are_slopes():
    """They are the difference quotients of the bound, which is that of a problem whose limit is a thousandth larger."""
    problem = random_problem(np.random.default_rng(1), num_users=5, energy=1.0, band=0.3)
    prices = edgeopt.solve(problem, "slide").prices
    bandwidth = next(price for price in prices if price.name == "bandwidth_hz")
    others = [price for price in prices if price.name.startswith(("deadline_s", "energy_j"))]
    assert {price.name.split("[")[0] for price in others} == {"deadline_s", "energy_j"}
    for price in others:
        again = raised(problem, price, price.value * 1.001)
        more = next(p for p in edgeopt.solve(again, "slide").prices if p.name == "bandwidth_hz")
        assert bandwidth.base is not None
        assert more.base is not None
        assert (
            more.base <= bandwidth.base + price.worth * 0.001 * price.value + 1e-9
        )  # the least bound is at most this one


# --- expert caching ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instance", TINY_CACHING[::2], ids=lambda instance: instance.name)
def test_storage(instance: Any):
    """No optimum with more or less storage beats the line, and the expert to add fits and saves what it says."""
    problem: ExpertCaching = instance.problem
    result = edgeopt.solve(problem, "lagrangian", time_limit=0.5)
    rng = np.random.default_rng(1)
    prices = check_form(problem, result)
    for price in prices:
        for share in rng.uniform(0.0, 2.5, 1).tolist():
            value = share * max(price.value, float(problem.expert_bytes.max()))
            optimum = edgeopt.solve(raised(problem, price, value), "milp", time_limit=2)
            assert optimum.objective <= price.no_better_than("max", value) * (1 + 1e-9) + 1e-12
        if price.step is None or price.gain is None:
            continue
        server = int(price.name[len("storage_bytes[") : -1])
        more = raised(problem, price, price.value + price.step)
        found = []
        for expert in np.flatnonzero(~result.solution.cached[server]):
            cached = result.solution.cached.copy()
            cached[server, expert] = True
            if more.is_feasible(Placement(cached)):
                found.append(more.objective(Placement(cached)) - result.objective)
        assert max(found) >= price.gain - 1e-12


# --- split training ----------------------------------------------------------------------------------------------


def test_split_training():
    """What a larger limit is said to save is saved by the best plan there, by brute force, if not more."""
    seen = set()
    for seed in range(6):
        problem = any_problem(seed, max_batch=6)
        optimum, _ = enumerate_plans(problem)
        result = edgeopt.solve(problem, "exact")
        assert result.objective == pytest.approx(optimum)
        for price in check_form(problem, result):
            assert price.step is not None
            assert price.gain is not None
            again = raised(problem, price, price.value + price.step)
            assert enumerate_plans(again)[0] <= optimum - price.gain + 1e-9 * optimum
            seen.add(price.name.split("[")[0])
    assert {"target", "memory_bytes", "device_flops", "uplink_bps", "server_flops"} <= seen


def test_the_price_of_the_target_by_hand():
    """At one plan seconds are c / Den, so that one per cent more of the target saves c / Den - c / (Den + 0.01 target)."""
    problem = SplitTraining.random(num_devices=3, num_layers=3, seed=1)
    result = edgeopt.solve(problem, "hasfl")
    plan: SplitPlan = result.solution
    left = problem.report(plan).accuracy_share["initial gap"]
    price = next(price for price in result.prices if price.name == "target")
    assert price.gain == pytest.approx(result.objective * (1 - left / (left + 0.01)))


# --- expert balancing and client selection -----------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_slots(groups: int):
    """With one slot more, brute force finds a placement that is better by the gain, if not more."""
    found = 0
    for seed in range(6):
        size = 2 + groups
        size += size % groups
        problem = ExpertBalancing.random(num_devices=size, num_experts=size, slots=1, num_groups=groups, seed=seed)
        result = edgeopt.solve(problem, "milp")
        for price in check_form(problem, result):
            assert price.gain is not None
            again = raised(problem, price, price.value + 1)
            assert best_placement(again)[0] <= result.objective - price.gain + 1e-9
            found += 1
    assert found >= 3


def test_selection():
    """The plan itself brings so much more with a longer time-out, and with faster links."""
    problem = ClientSelection.random(num_servers=2, num_clients=8, picks=2, rounds=10, seed=2)
    result = edgeopt.solve(problem, "reservation")
    prices = {price.name: price for price in check_form(problem, result)}
    assert set(prices) == {"timeout_s", "rate_bps"}
    for name, more in (("timeout_s", problem.timeout_s * 1.01), ("rate_bps", problem.rate_bps * 1.01)):
        gain = problem.replace(**{name: more}).objective(result.solution) - result.objective
        assert prices[name].gain == pytest.approx(gain)
