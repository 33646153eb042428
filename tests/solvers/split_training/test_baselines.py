"""Ablations and baselines: what each one fixes, draws and chooses, and how it repairs itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt import EdgeOptError
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.solvers.split_training import AdaptSfl, BatchOnly, CutOnly, Fixed, Hasfl, RandomBatch, RandomCut
from tests.solvers.split_training.instances import enumerate_plans, varied

few = settings(max_examples=15)
seeds = st.integers(0, 10**6)


def roomy(seed: int = 1, **options: object) -> SplitTraining:
    """Return a problem whose memory and target allow any baseline what it asks for."""
    made = SplitTraining.random(**({"num_devices": 6, "num_layers": 9, "seed": seed} | options))  # type: ignore[arg-type]
    return made.replace(target=10 * made.least_target, memory_bytes=np.inf)


def test_fixed_is_fixed():
    """One batch size and one cut for all, the middle one by default, the best interval if there is a choice."""
    problem = roomy()
    plan = edgeopt.solve(problem, Fixed(batch=20)).solution
    assert plan == SplitPlan(batch_size=[20] * 6, cut_layer=[5] * 6, aggregation_interval=8)
    plan = edgeopt.solve(problem, Fixed(batch=20, cut=2)).solution
    assert plan.cut_layer.tolist() == [2] * 6
    assert edgeopt.solve(problem, Fixed(batch=99, cut=99)).solution.batch_size.max() == 64
    free = problem.replace(min_interval=1, max_interval=30)
    found = edgeopt.solve(free, Fixed(batch=20)).objective
    values = [
        free.objective(SplitPlan(batch_size=[20] * 6, cut_layer=[5] * 6, aggregation_interval=one))
        for one in range(1, 31)
    ]
    assert found == min(values)


@few
@given(seeds)
def test_batch_only_is_best_for_its_cut(seed: int):
    """`batch-only` keeps uniform cuts and has the best batch sizes for them."""
    problem = varied(seed)
    result = edgeopt.solve(problem, BatchOnly(cut=2))
    plan = result.solution
    interval = plan.aggregation_interval
    fixed = problem.replace(min_interval=interval, max_interval=interval)
    assert enumerate_plans(fixed, cuts=[tuple(plan.cut_layer.tolist())])[0] == pytest.approx(result.objective, rel=1e-9)
    fitting = (problem.batch_limit > 0).sum(axis=1)
    assert np.array_equal(plan.cut_layer, np.minimum(plan.deepest_cut, fitting))


@pytest.mark.parametrize("seed", range(4))
def test_cut_only_tries_every_doubling(seed: int):
    """Near the least target the first batch size that barely reaches it is not the best one, and `cut-only` sees that."""
    problem = roomy(seed)
    for factor in (1.1, 2.0, 8.0):
        aim = problem.replace(target=factor * problem.least_target)
        alone = [edgeopt.solve(aim.replace(max_batch=most), CutOnly(batch=64)) for most in (16, 32, 64)]
        best = min(result.objective for result in alone if result.feasible)
        assert edgeopt.solve(aim, CutOnly()).objective <= best * (1 + 2e-4)


def test_cut_only_keeps_its_batch():
    """`cut-only` keeps one batch size, and no cut of a single device alone does better."""
    problem = roomy()
    result = edgeopt.solve(problem, CutOnly(batch=24))
    plan = result.solution
    assert set(plan.batch_size.tolist()) <= {24, 48, 64}
    assert np.ptp(plan.batch_size) == 0
    for i in range(6):
        for cut in range(1, 10):
            cuts = plan.cut_layer.copy()
            cuts[i] = cut
            other = SplitPlan(
                batch_size=plan.batch_size, cut_layer=cuts, aggregation_interval=plan.aggregation_interval
            )
            assert problem.objective(other) >= result.objective * (1 - 2e-4)


@pytest.mark.parametrize("factor", [1.3, 2.0, 10.0])
def test_adaptsfl_is_the_best_uniform_plan(factor: float):
    """`adaptsfl` has the best of all cuts and intervals for its batch size and every doubling of it."""
    problem = roomy(interval=(1, 20))
    problem = problem.replace(target=factor * problem.least_target)
    result = edgeopt.solve(problem, AdaptSfl(batch=6))
    best = min(
        problem.objective(SplitPlan(batch_size=[batch] * 6, cut_layer=[cut] * 6, aggregation_interval=interval))
        for batch in (6, 12, 24, 48, 64)
        for cut in range(1, 10)
        for interval in range(1, 21)
    )
    assert result.objective == pytest.approx(best, rel=1e-12)


def test_random_baselines_depend_on_the_seed():
    """The same seed gives the same plan, another one another; batches and cuts are drawn from all that fit."""
    problem = roomy(num_devices=40)
    for solver in (RandomBatch(), RandomCut()):
        first, second, other = (edgeopt.solve(problem, solver, seed=seed) for seed in (1, 1, 2))
        assert first.solution == second.solution
        assert first.solution != other.solution
    batch = edgeopt.solve(problem, RandomBatch()).solution.batch_size
    assert batch.min() <= 8
    assert batch.max() >= 57
    cut = edgeopt.solve(problem, RandomCut()).solution.cut_layer
    assert set(range(1, 10)) == set(cut.tolist())


def test_repairs():
    """Where what a baseline asks for misses the target or the memory, it gives way instead of giving up."""
    problem = varied(13)
    tight = problem.replace(target=1.2 * problem.least_target)
    for solver in (Fixed(batch=1), CutOnly(batch=1), AdaptSfl(batch=1), BatchOnly(cut=4), RandomBatch(), RandomCut()):
        result = edgeopt.solve(tight, solver)
        assert result.feasible, result.message
    scarce = roomy()
    scarce = scarce.replace(memory_bytes=(scarce.memory_bits[:3].sum() * 20 + 3 * scarce.parameter_bits[:3].sum()) / 8)
    plan = edgeopt.solve(scarce, Fixed(batch=64)).solution
    assert scarce.is_feasible(plan)
    assert plan.cut_layer.max() > 1


def test_ablations_lose_against_hasfl():
    """On uneven devices every ablation and baseline takes longer than the full method."""
    problem = roomy(seed=5, num_devices=20, heterogeneity=2.0)
    best = edgeopt.solve(problem, Hasfl()).objective
    for solver in (BatchOnly(), CutOnly(), AdaptSfl(), Fixed(), RandomBatch(), RandomCut()):
        assert edgeopt.solve(problem, solver).objective > best


@pytest.mark.parametrize(
    ("solver", "name"), [(Fixed, "batch"), (Fixed, "cut"), (BatchOnly, "cut"), (CutOnly, "batch"), (AdaptSfl, "batch")]
)
@pytest.mark.parametrize("value", [0, 1.5, "2"])
def test_settings_out_of_range(solver: type, name: str, value: object):
    """Batch sizes and cuts below one, and anything but integers, are refused."""
    with pytest.raises(EdgeOptError, match=f"{name} = {value!r}: expected an integer >= 1"):
        solver(**{name: value})
