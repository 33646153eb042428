"""What must hold for the exact optimum whichever solver finds it: monotony, invariance, scaling."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.problems import ExpertCaching, RoutingTrace
from edgeopt.result import Status
from edgeopt.solvers.expert_caching.lagrangian import Lagrangian
from edgeopt.solvers.expert_caching.milp import Milp
from tests.solvers.expert_caching.instances import brute_force, random_problem

few = settings(max_examples=5)
seeds = st.integers(0, 2**32 - 1)
exact = pytest.mark.parametrize("solver", [Lagrangian(), Milp()], ids=lambda solver: solver.name)


class Form:
    """A random Top-1 problem in facility-location form, whole sizes."""

    def __init__(self, seed: int, num_servers: int = 3, num_users: int = 4, num_experts: int = 5) -> None:
        self.rng = np.random.default_rng(seed)
        self.gain = np.round(self.rng.random((num_users, num_servers)), 2) * (self.rng.random((num_users, 1)) < 0.9)
        self.weight = np.round(self.rng.random((num_users, num_experts)), 2)
        self.size = self.rng.integers(1, 4, num_experts).astype(float)
        self.capacity = self.rng.integers(0, 6, num_servers).astype(float)

    def optimum(self, solver: Lagrangian | Milp) -> float:
        """Return the optimum that the solver proves."""
        return solved(ExpertCaching.from_facility(self.gain, self.weight, self.size, self.capacity), solver)


def solved(problem: ExpertCaching, solver: Lagrangian | Milp) -> float:
    """Return the optimum that the solver proves."""
    result = edgeopt.solve(problem, solver)
    assert result.status is Status.OPTIMAL
    return result.objective


@exact
@few
@given(seed=seeds)
def test_more_storage_never_hurts(solver: Lagrangian | Milp, seed: int) -> None:
    """One more unit on any server gives at least the optimum before; storage for everything gives the most there is."""
    form = Form(seed)
    before = form.optimum(solver)
    form.capacity[form.rng.integers(form.capacity.size)] += 1.0
    after = form.optimum(solver)
    assert after >= before * (1 - 1e-8)
    form.capacity[:] = form.size.sum()
    most = float((form.weight.sum(axis=1) * form.gain.max(axis=1)).sum())
    assert form.optimum(solver) == pytest.approx(most, rel=1e-8) and most >= after * (1 - 1e-8)  # noqa: PT018


@exact
@few
@given(seed=seeds)
def test_names_do_not_matter(solver: Lagrangian | Milp, seed: int) -> None:
    """Experts, servers and users in another order: the same optimum."""
    form = Form(seed)
    before = form.optimum(solver)
    users, servers, experts = (
        form.rng.permutation(count) for count in (*form.gain.shape, form.size.size)
    )  # fmt: skip
    form.gain = form.gain[np.ix_(users, servers)]
    form.weight = form.weight[np.ix_(users, experts)]
    form.size, form.capacity = form.size[experts], form.capacity[servers]
    assert form.optimum(solver) == pytest.approx(before, rel=1e-8)


@exact
@few
@given(seed=seeds, factor=st.sampled_from([1e-6, 0.5, 1e6]))
def test_gains_scale_the_optimum(solver: Lagrangian | Milp, seed: int, factor: float) -> None:
    """Gains times a factor: the optimum times that factor, from microseconds to days."""
    form = Form(seed)
    before = form.optimum(solver)
    form.gain = form.gain * factor
    assert form.optimum(solver) == pytest.approx(before * factor, rel=1e-7)


@exact
@few
@given(seed=seeds)
def test_bytes_scale_nothing(solver: Lagrangian | Milp, seed: int) -> None:
    """Sizes and storages in another unit: the same optimum."""
    form = Form(seed)
    before = form.optimum(solver)
    form.size, form.capacity = 1024.0 * form.size, 1024.0 * form.capacity
    assert form.optimum(solver) == pytest.approx(before, rel=1e-8)


@exact
@few
@given(seed=seeds)
def test_another_server_never_hurts(solver: Lagrangian | Milp, seed: int) -> None:
    """One more server gives at least the optimum before; one without storage or out of reach gives the same."""
    form = Form(seed, num_servers=2)
    before = form.optimum(solver)
    gain, capacity = form.gain, form.capacity
    for useful, storage in ((True, 2.0), (False, 2.0), (True, 0.0)):
        form.gain = np.column_stack([gain, form.rng.random(len(gain)) * useful])
        form.capacity = np.append(capacity, storage)
        after = form.optimum(solver)
        assert after >= before * (1 - 1e-8)
        if not useful or not storage:
            assert after == pytest.approx(before, rel=1e-8)


@exact
@few
@given(seed=seeds)
def test_another_user_never_hurts(solver: Lagrangian | Milp, seed: int) -> None:
    """One more user adds at least nothing and at most its own best saving; two copies of all users double everything."""
    form = Form(seed)
    before = form.optimum(solver)
    gain, weight = form.gain, form.weight
    form.gain = np.vstack([gain, form.rng.random((1, gain.shape[1]))])
    form.weight = np.vstack([weight, form.rng.random((1, weight.shape[1]))])
    most = before + form.weight[-1].sum() * form.gain[-1].max()
    assert before * (1 - 1e-8) <= form.optimum(solver) <= most * (1 + 1e-8)
    form.gain, form.weight = np.vstack([gain, gain]), np.vstack([weight, weight])
    assert form.optimum(solver) == pytest.approx(2 * before, rel=1e-8)


@exact
@settings(max_examples=5)
@given(seed=seeds)
def test_users_of_models_can_be_relabelled(solver: Lagrangian | Milp, seed: int) -> None:
    """Users and servers of a problem with devices and two models in another order: the enumerated optimum all the same."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, num_servers=2, num_users=4, experts=(3, 4), sizes=(1.0, 2.0), device=0.2)
    users, servers = rng.permutation(4), rng.permutation(2)
    held = [problem.holds(u) for u in users]
    other = problem.replace(
        storage_bytes=problem.storage_bytes[servers],
        request=problem.request[users],
        profile=problem.profile[users],
        server_latency_s=problem.server_latency_s[:, users][:, :, servers],
        cloud_latency_s=problem.cloud_latency_s[:, users],
        device_latency_s=problem.device_latency_s[:, users],
        device_indptr=np.cumsum([0, *map(len, held)]),
        device_experts=np.concatenate(held),
        user_weight=problem.user_weight[users],  # type: ignore[index]
        access_server=None,
    )
    assert solved(other, solver) == pytest.approx(brute_force(problem)[0], rel=1e-8)


def test_small_objectives_are_not_called_optimal() -> None:
    """A greedy result of half the optimum is no optimum, in whatever unit the gains are."""
    problem = ExpertCaching.from_facility(
        gain=1e-10 * np.array([[1.0, 0.0], [1.01, 1.0]]), weight=[[1, 0], [0, 1]], size=[1, 1], capacity=[1, 1]
    )
    result = edgeopt.solve(problem, "greedy")
    assert result.objective < 0.6 * brute_force(problem)[0]
    assert result.status is Status.FEASIBLE


# --- sets that are worth nothing unless whole --------------------------------------------------------------------

JOINT = ("greedy", "density-greedy", "successive", "max-convolution", "lagrangian", "milp", "cp-sat")


def pairs(seed: int, latency: Literal["max", "mix"]) -> ExpertCaching:
    """Return a problem of Top-2 of three experts on two servers that hold one expert each: a pair takes both."""
    rng = np.random.default_rng(seed)
    taste = np.stack([rng.permuted(-1.5 * np.log([1, 2, 3])) for _ in range(4)]).reshape(2, 2, 3)
    noise = rng.gumbel(size=(2, 30, 2, 3)) + taste[:, None]
    ids = np.argsort(-noise, axis=-1)[..., :2].reshape(60, 2, 2)
    trace = RoutingTrace.from_expert_ids(ids, num_experts=3, user=np.repeat([0, 1], 30))
    network = edgeopt.EdgeNetwork.random(2, 4, seed=seed)
    return ExpertCaching.from_traces(trace, network, models=["switch-base-8"], storage=0.2, latency=latency, theta=0.9)


@pytest.mark.parametrize("solver", JOINT)
@settings(max_examples=10)
@example(seed=2)
@given(seed=seeds)
def test_no_solver_is_worse_than_popularity(solver: str, seed: int) -> None:
    """Where single experts save nothing, what popularity makes of pairs is not lost."""
    problem = pairs(seed, "max" if seed % 3 else "mix")
    least = edgeopt.solve(problem, "popularity").objective
    assert edgeopt.solve(problem, solver, seed=0).objective >= least * (1 - 1e-12)
