"""Certificates of the quick solvers: both bound the optimum, and the dual is the better one."""

from typing import Any

import numpy as np
import pytest

import edgeopt
from edgeopt.errors import EdgeOptError
from edgeopt.problems import ExpertCaching
from edgeopt.solve import configure
from edgeopt.solvers import get_solver
from edgeopt.solvers.expert_caching import Greedy, pricing
from edgeopt.solvers.expert_caching.dual import minimise_dual
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.pricing import AscentPricing, Prices, Stopped
from tests.solvers.expert_caching.instances import Instance

QUICK = ("greedy", "density-greedy", "successive", "continuous-greedy", "popularity", "random")


@pytest.mark.parametrize("name", QUICK)
def test_the_dual_bounds_the_optimum(name: str, tiny: Instance) -> None:
    """On every tiny instance: not below the optimum, not above the marginal certificate, and the placement is the same."""
    solver = get_solver("expert-caching", name)
    if solver.supports(tiny.problem) is not None:
        pytest.skip("not supported")
    plain, dual = (
        edgeopt.solve(tiny.problem, configure(solver, certificate=certificate)) for certificate in ("marginal", "dual")
    )
    assert tiny.optimum - 1e-9 <= dual.bound <= plain.bound + 1e-12
    assert dual.solution == plain.solution


def test_the_dual_is_much_tighter() -> None:
    """On a random problem of ordinary size the certified gap of greedy falls to less than a fifth."""
    problem = ExpertCaching.random(num_servers=6, num_users=40, num_layers=4, experts_per_layer=16, seed=1)
    plain, dual = (edgeopt.solve(problem, Greedy(certificate=certificate)) for certificate in ("marginal", "dual"))
    assert dual.gap < plain.gap / 5


@pytest.mark.parametrize("name", QUICK)
def test_other_certificates_are_refused(name: str) -> None:
    """The message says what there is."""
    with pytest.raises(EdgeOptError, match="certificate = 'triple': expected 'marginal' or 'dual'"):
        configure(get_solver("expert-caching", name), certificate="triple")


def facility() -> Facility:
    """Return a facility of more servers than subsets are tabulated for."""
    return Facility.of(ExpertCaching.random(num_servers=20, num_users=12, num_layers=2, experts_per_layer=8, seed=2))


def test_dual_ascent_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expert by expert, between looks at the clock, the dual point is what it is at once."""
    form = facility()
    price = np.full(form.num_servers, 1e-12)
    whole = AscentPricing(form).evaluate(price)
    monkeypatch.setattr(pricing, "CHUNK", 1)
    pieces = AscentPricing(form).evaluate(price)
    assert whole.bound == pieces.bound
    assert (whole.choice == pieces.choice).all()
    assert (whole.value == pieces.value).all()


def test_dual_ascent_is_left_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop is seen between pieces: the first evaluation says so, a later one ends the descent with the best point."""
    form = facility()
    price = np.zeros(form.num_servers)
    monkeypatch.setattr(pricing, "CHUNK", 1)
    with pytest.raises(Stopped):
        AscentPricing(form, lambda: True).evaluate(price)
    looks = {"count": 0}

    def stopped() -> bool:
        looks["count"] += 1
        return looks["count"] > form.num_experts + 3

    seen: list[Any] = []

    def on_step(step: int, now: Prices, best: Prices) -> float:
        seen.append(step)
        return 0.0

    best = minimise_dual(form, AscentPricing(form, stopped), price, 50, on_step)
    assert seen == [1]
    assert best.bound == AscentPricing(form).evaluate(price).bound
