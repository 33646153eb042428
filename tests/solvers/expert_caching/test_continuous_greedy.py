"""Continuous greedy: multilinear extension, lossless rounding, the ratio 1 - (1 + 1/T)^-T."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.errors import EdgeOptError, UnsupportedProblemError
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Heuristic, Ratio
from edgeopt.solvers.expert_caching import continuous_greedy as module
from edgeopt.solvers.expert_caching.continuous_greedy import ContinuousGreedy
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.kernels.facility import server_gradient
from edgeopt.stop import Limit, MaxIterations
from tests.solvers.expert_caching.instances import brute_force, greedy_gadget, instance, random_problem
from tests.solvers.kernels.test_facility import extension

few = settings(max_examples=12)
seeds = st.integers(0, 2**32 - 1)


def problem_of(seed: int) -> ExpertCaching:
    """Return a random problem small enough to enumerate, with devices, two models and two sizes."""
    return random_problem(
        np.random.default_rng(seed), num_servers=3, num_users=5, experts=(3, 2), sizes=(1.0, 2.0), device=0.1
    )


def ranking(facility: Facility) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of every user's servers and its inverse."""
    order = np.argsort(-facility.gain, axis=2, kind="stable")
    return order, np.argsort(order, axis=2, kind="stable")


def expectation(problem: ExpertCaching, mixture: np.ndarray) -> float:
    """Return the mean objective when each server draws one of its T configurations, ``mixture`` [T, N, E], evenly."""
    steps, num_servers, _ = mixture.shape
    draws = itertools.product(range(steps), repeat=num_servers)
    return float(np.mean([problem.objective(Placement(mixture[list(draw), range(num_servers)])) for draw in draws]))


@few
@given(seeds, st.integers(1, 3))
def test_extension_is_the_mean_objective_of_a_mixture(seed: int, steps: int) -> None:
    """The extension at a mixture is the problem's own expected objective over all draws of configurations."""
    problem = problem_of(seed)
    facility = Facility.of(problem)
    shape = (steps, problem.num_servers, problem.num_experts)
    mixture = np.random.default_rng(seed).random(shape) < 0.4
    value = extension(mixture.mean(axis=0), facility.weight, facility.gain, facility.model).sum()
    assert value == pytest.approx(expectation(problem, mixture), abs=1e-12)


@few
@given(seeds)
def test_gradient_is_the_expected_marginal_value(seed: int) -> None:
    """At whole y the derivative is what the objective gains by the expert, with it less without it."""
    problem = problem_of(seed)
    facility = Facility.of(problem)
    y = (np.random.default_rng(seed).random((problem.num_servers, problem.num_experts)) < 0.4).astype(float)
    for n in range(problem.num_servers):
        gradient = server_gradient(n, y, facility.weight, facility.gain, facility.model, *ranking(facility))
        for e in range(problem.num_experts):
            ends = []
            for held in (True, False):
                cached = y > 0
                cached[n, e] = held
                ends.append(problem.objective(Placement(cached)))
            assert gradient[e] == pytest.approx(ends[0] - ends[1], abs=1e-12)


@few
@given(seeds, st.integers(1, 4))
def test_rounding_never_loses(seed: int, steps: int) -> None:
    """The rounded placement is worth at least the mixture, and each server keeps one of its own configurations."""
    problem = problem_of(seed)
    facility = Facility.of(problem)
    shape = (steps, problem.num_servers, problem.num_experts)
    mixture = np.random.default_rng(seed).random(shape) < 0.5
    cached = module._round(facility, mixture, *ranking(facility))
    assert problem.objective(Placement(cached)) >= expectation(problem, mixture) - 1e-12
    for n in range(problem.num_servers):
        assert any(np.array_equal(cached[n], one) for one in mixture[:, n])


@few
@given(seeds, st.sampled_from([1, 2, 5, 20]))
def test_ratio_on_random_problems(seed: int, steps: int) -> None:
    """At least 1 - (1 + 1/T)^-T of the enumerated optimum, already without sweeps; 1/2 for T = 1."""
    problem = problem_of(seed)
    optimum, _ = brute_force(problem)
    result = edgeopt.solve(problem, ContinuousGreedy(steps=steps, max_sweeps=0))
    assert isinstance(result.guarantee, Ratio)
    assert result.guarantee.alpha == pytest.approx(1 - (1 + 1 / steps) ** -steps)
    assert result.objective >= result.guarantee.alpha * optimum - 1e-12
    assert result.bound >= optimum - 1e-12
    assert edgeopt.solve(problem, ContinuousGreedy(steps=steps)).objective >= result.objective


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_ratio_on_the_gadget(steps: int) -> None:
    """Where greedy takes half, the ratio holds too; with more than one step the optimum is found."""
    objective = edgeopt.solve(greedy_gadget(), ContinuousGreedy(steps=steps, max_sweeps=0)).objective
    assert objective >= (1 - (1 + 1 / steps) ** -steps) * 2.0
    if steps > 1:
        assert objective == pytest.approx(2.0)


def test_refuses_sets_that_are_not_modular() -> None:
    """For ``max`` with K = 2 the refusal says what is expected and what was given."""
    with pytest.raises(UnsupportedProblemError, match="expected K = 1 or latency 'sum', got K = 2 with latency 'max'"):
        edgeopt.solve(instance("K = 2, max").problem, ContinuousGreedy())


def test_no_ratio_on_a_rounded_grid() -> None:
    """Sizes that are not whole take the ratio away: the knapsacks are not exact."""
    assert isinstance(ContinuousGreedy().guarantee_for(instance("K = 1, real sizes").problem), Heuristic)


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("max_sweeps", -1)])
def test_refuses_bad_parameters(field: str, value: int) -> None:
    """A parameter out of range is an error that names it."""
    with pytest.raises(EdgeOptError, match=f"{field} = {value}"):
        ContinuousGreedy(**{field: value})


def test_stopping_rounds_the_steps_so_far() -> None:
    """Stopped after two of twenty steps it still returns a placement as good as a mixture of two promises."""
    problem = problem_of(3)
    result = edgeopt.solve(problem, ContinuousGreedy(), stop=MaxIterations(2))
    assert result.limit is Limit.ITERATION
    assert result.objective > 0.0
    assert result.feasible


class Clock:
    """Stops a run once its kernel of gradients has been called so many times."""

    def __init__(self, calls: int) -> None:
        self.calls, self.limit = 0, calls

    def gradient(self, *arguments: object) -> np.ndarray:
        """Count a call."""
        self.calls += 1
        return server_gradient(*arguments)

    def check(self, progress: object) -> Limit | None:
        """Return the limit once there have been enough calls."""
        return Limit.TIME if self.calls >= self.limit else None


def test_looks_at_the_limits_between_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step takes O(N^2 E U): a limit reached at its first server ends it before the second one."""
    clock = Clock(1)
    monkeypatch.setattr(module, "server_gradient", clock.gradient)
    edgeopt.solve(problem_of(3), ContinuousGreedy(), stop=clock)
    assert clock.calls == 1
