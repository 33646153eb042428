"""Models to take along: in cvxpy the problem's own objective, constraints of one's own, and MPS files that others read."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import edgeopt
from edgeopt.errors import InvalidProblemError, NoSolutionError
from edgeopt.modelling import cvxpy_module
from edgeopt.mps import LinearProgramme
from edgeopt.problems import ExpertCaching, ModelDownload, SplitTraining
from edgeopt.problems.model_download.needs import bandwidths, choice_model, least_rates
from edgeopt.result import Status
from edgeopt.solvers.back_ends import highs_class
from edgeopt.solvers.generic import solve_by_highs
from edgeopt.solvers.highs import own_scheduler
from tests.solvers.expert_caching import instances as caching
from tests.solvers.model_download import instances as download

cp: Any = cvxpy_module()


def value_of_file(path: Path) -> float:
    """Return the optimum that HiGHS finds for an MPS file."""
    highs = highs_class()()
    highs.readModel(str(path))
    highs.setOptionValue("mip_rel_gap", 0.0)
    with own_scheduler():
        highs.run()
    return float(highs.getInfo().objective_function_value)


@pytest.mark.parametrize("one", caching.TINY, ids=lambda one: one.name)
def test_caching_has_our_objective(one: caching.Instance, tmp_path: Path) -> None:
    """The model in cvxpy and the MPS file have the enumerated optimum; its placement is feasible and worth what the model says."""
    model = one.problem.to_cvxpy()
    assert solve_by_highs(model) == "optimal"
    placement = model.solution()
    assert one.problem.is_feasible(placement)
    assert model.value == pytest.approx(one.optimum, rel=1e-6, abs=1e-9)
    assert one.problem.objective(placement) == pytest.approx(model.value, rel=1e-6, abs=1e-9)
    one.problem.write_mps(tmp_path / "caching.mps")
    assert value_of_file(tmp_path / "caching.mps") == pytest.approx(one.optimum, rel=1e-6, abs=1e-9)


@given(st.integers(0, 10_000), st.sampled_from(["sum", "max", "mix"]))
@settings(max_examples=15, deadline=None)
def test_caching_is_worth_what_any_placement_is(seed: int, latency: str) -> None:
    """With the placement given, the model's optimum is our objective: for every K, latency and device."""
    rng = np.random.default_rng(seed)
    problem = caching.random_problem(rng, experts=(4, 3), top_k=(2, 1), latency=latency, theta=rng.random(), device=0.3)
    cached = rng.random((2, 7)) < 0.4
    used = cached @ problem.expert_bytes
    problem = problem.replace(storage_bytes=np.maximum(used, problem.expert_bytes.max()))
    model = problem.to_cvxpy()
    fixed = model.with_constraints(fixed=model.variables["cached"] == cached.astype(float))
    assert solve_by_highs(fixed) == "optimal"
    assert fixed.value == pytest.approx(problem.objective(fixed.solution()), rel=1e-6, abs=1e-9)
    assert (fixed.solution().cached == cached).all()


def test_side_constraints_of_a_user() -> None:
    """No expert on two servers: the model keeps to it, and its value is the best of the placements that do."""
    problem = caching.instance("K = 2, max").problem
    model = problem.to_cvxpy()
    alone = model.with_constraints(once=cp.sum(model.variables["cached"], axis=0) <= 1)
    assert solve_by_highs(alone) == "optimal"
    placement = alone.solution()
    assert placement.cached.sum(axis=0).max() <= 1
    assert set(alone.constraints) == {*model.constraints, "once"}
    assert alone.value == pytest.approx(problem.objective(placement), rel=1e-6)


def test_a_model_says_that_it_was_not_solved() -> None:
    """Before the first solve there is no decision to read."""
    model = caching.instance("K = 1").problem.to_cvxpy()
    assert np.isnan(model.value)
    with pytest.raises(NoSolutionError, match="no solution yet"):
        model.solution()


@pytest.mark.parametrize(
    "name", ["exactly the band", "energy", "levels and energy", "rewards", "concave", "resource blocks"]
)
def test_download_files_have_our_objective(name: str, tmp_path: Path) -> None:
    """The knapsack of the least bandwidths has the known optimum, in cvxpy and as a file."""
    one = download.instance(name)
    one.problem.write_mps(tmp_path / "download.mps")
    assert value_of_file(tmp_path / "download.mps") == pytest.approx(one.optimum, rel=1e-6)
    choice = choice_model(one.problem, bandwidths(one.problem, least_rates(one.problem)[0]))
    assert solve_by_highs(choice) == "optimal"
    assert choice.value == pytest.approx(one.optimum, rel=1e-6)


@pytest.mark.parametrize(
    "name", ["energy", "concave", "some energy, fixed seconds", "weights", "concave, blocks, rewards", "levels"]
)
def test_the_whole_download_model_admits_the_optimum(name: str) -> None:
    """With the optimal admission given, the conic programme is feasible; with one user more, it is not. Its relaxation bounds the optimum."""
    one = download.instance(name)
    problem = one.problem
    best = edgeopt.solve(problem, "milp").solution
    assert best is not None
    model = problem.to_cvxpy()
    user, which = np.nonzero(problem.allowed)
    chosen = (best.model[user] == which).astype(float)
    assert relaxed_status(model, chosen) in ("optimal", "optimal_inaccurate")
    refused = np.flatnonzero(best.model < 0)
    more = [
        np.maximum(chosen, (np.arange(user.size) == p).astype(float)) for p in np.flatnonzero(np.isin(user, refused))
    ]
    if problem.is_unit_value:
        assert all(relaxed_status(model, admitted) == "infeasible" for admitted in more)


def relaxed_status(model: Any, serve: np.ndarray) -> str:
    """Return how the model ends with the admission given, its other integers relaxed, by Clarabel."""
    free = [variable >= 0 for variable in model.variables.values()]  # what binaries are by themselves
    constraints = [*model.constraints.values(), model.variables["serve"] == serve, *free]
    task = cp.Problem(model.problem.objective, constraints)
    for variable in model.variables.values():
        variable.attributes["boolean"] = variable.attributes["integer"] = False
    task.solve(solver=cp.CLARABEL)
    return str(task.status)


def test_a_part_is_the_longest_download() -> None:
    """Two layers of 4 Mbit and a second each: until 3 s, half must be there at 1 s and all at 2 s, so it may take two seconds."""
    problem = ModelDownload(
        layer_indptr=[0, 2], layer_bits=4e6, layer_flops=1e9, model_names=["two layers"], deadline_s=[3.0],
        cycles_per_flop=1.0, min_frequency_hz=1e8, max_frequency_hz=1e9, spectral_efficiency=4.0, bandwidth_hz=1e6,
    )  # fmt: skip
    part = problem.to_cvxpy(0, 0)
    assert solve_by_highs(part) == "optimal"
    assert part.value == pytest.approx(2.0)
    assert part.solution().frequency_hz == pytest.approx([1e9, 1e9])
    with pytest.raises(InvalidProblemError, match=r"user = 7: expected an integer from 0 to 0"):
        problem.to_cvxpy(7, 0)
    with pytest.raises(InvalidProblemError, match="expected both or neither"):
        problem.to_cvxpy(0)  # type: ignore[call-overload]


def test_split_programmes_bound_the_ratio() -> None:
    """At the optimal ratio no programme is below zero by more than rounding, and one is at zero."""
    problem = SplitTraining.random(num_devices=3, num_layers=3, max_batch=6, seed=2)
    exact = edgeopt.solve(problem, "exact")
    assert exact.objective is not None
    ratio = exact.objective / problem.time_scale
    values = []
    for deepest in range(1, 4):
        for interval in range(problem.min_interval, problem.max_interval + 1):
            model = problem.to_cvxpy(interval=interval, deepest=deepest, ratio=ratio)
            assert solve_by_highs(model) == "optimal"
            values.append(model.value / (ratio * problem.target))
    assert min(values) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(InvalidProblemError, match="deepest = 9: expected an integer from 1 to 3"):
        problem.to_cvxpy(interval=problem.min_interval, deepest=9, ratio=1.0)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(6))
def test_generic_agrees_with_our_exact_solvers(seed: int) -> None:
    """To 1e-6, on random problems of all three kinds."""
    for problem, ours in (
        (
            ExpertCaching.random(
                num_servers=3,
                num_users=5,
                num_layers=2,
                experts_per_layer=5,
                top_k=2,
                latency="max",
                storage=0.2,
                seed=seed,
            ),
            "milp",
        ),
        (ModelDownload.random(num_users=6, num_models=3, seed=seed), "milp"),
        (SplitTraining.random(num_devices=3, num_layers=3, max_batch=4, interval=3, seed=seed), "exact"),
    ):
        generic, exact = edgeopt.solve(problem, "generic"), edgeopt.solve(problem, ours)
        assert generic.status is Status.OPTIMAL
        assert generic.objective == pytest.approx(exact.objective, rel=1e-6)


def test_mps_marks_what_is_whole(tmp_path: Path) -> None:
    """One whole and one free column: 1 + 1/2, where two free ones would give 3/2 + ... and whole ones 1."""
    programme = LinearProgramme(
        name="halves", cost=np.array([1.0, 1.0]), matrix=sparse.csr_array(np.array([[2.0, 0.0], [0.0, 2.0]])),
        upper=np.array([1.0, 1.0]), is_integer=np.array([True, False]), columns=["whole", "free"], rows=["a", "b"],
    )  # fmt: skip
    programme.write(tmp_path / "halves.mps")
    assert value_of_file(tmp_path / "halves.mps") == pytest.approx(0.5)


def test_import_is_still_light() -> None:
    """`import edgeopt` loads no cvxpy."""
    code = "import sys, edgeopt, edgeopt.problems; print('cvxpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
