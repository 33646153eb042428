"""`slide` against enumeration, and what must hold of optima however large."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.progress import Callback
from edgeopt.result import Exact, Heuristic, Status
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.kernels import multiple_choice
from edgeopt.solvers.model_download import Slide, common, rates
from edgeopt.solvers.model_download.rates import Tables, overlapped_rates
from edgeopt.stop import Limit, Progress
from tests.solvers.model_download.instances import brute_force, instance, least, random_problem

LEVELS = (0.3, 0.6, 1.0)


def variant(seed: int, **given: Any) -> ModelDownload:
    """Return a random small problem with a random choice of options, but for those that are given."""
    rng = np.random.default_rng(seed)
    options: dict[str, Any] = {
        "num_users": int(rng.integers(2, 5)),
        "num_models": int(rng.integers(1, 4)),
        "energy": float(rng.choice([0.0, 0.5, 1.0])),
        "weighted": bool(rng.random() < 0.4),
        "rewarded": bool(rng.random() < 0.4),
        "concave": bool(rng.random() < 0.3),
        "block": 0.3 if rng.random() < 0.3 else None,
        "levels": LEVELS if rng.random() < 0.25 else None,
        "fixed": bool(rng.random() < 0.5),
        "tasks": int(rng.integers(1, 3)),
        "band": float(rng.uniform(0.1, 0.6)),
    }
    return random_problem(rng, **(options | given))


def needs(problem: ModelDownload) -> np.ndarray:
    """Return the bandwidths [K, I] that `slide` finds."""
    with Run(Slide(), problem, SolveOptions()) as run:
        rate, _ = overlapped_rates(run, problem, Tables.of(problem), prune=False)
    return common.bandwidth_needed(problem, rate)


# --- against the oracle ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"concave": True}, {"levels": LEVELS, "energy": 0.0}, {"block": 0.3}], ids=str)
def test_least_bandwidth_of_every_pair(options):
    """Each pair's bandwidth is the one found by bisection on the recursion and the textbook's speeds; inf where none is."""
    for seed in range(40):
        problem = variant(seed, **({"levels": None, "concave": False, "block": None} | options))
        found = needs(problem)
        for k in range(problem.num_users):
            for i in range(problem.num_models):
                assert found[k, i] == pytest.approx(least(problem, k, i)[0], rel=1e-8), (seed, k, i)


@pytest.mark.parametrize("seed", range(60))
def test_optimum_of_small_problems(seed):
    """Every variant has the enumerated optimum; with levels and energy the bound is above it and the value below."""
    problem = variant(seed)
    optimum, _ = brute_force(problem)
    result = edgeopt.solve(problem, "slide")
    assert result.feasible
    assert result.bound >= optimum - 1e-9
    if isinstance(result.guarantee, Exact):
        assert result.status is Status.OPTIMAL
        assert result.objective == pytest.approx(optimum, abs=1e-9)
    else:
        assert result.objective <= optimum + 1e-9


def test_pruning_changes_nothing():
    """The least rate of each user is the same whether models that cannot win are skipped or not."""
    for levels in (None, LEVELS):
        problem = random_problem(np.random.default_rng(1), num_users=200, num_models=5, energy=0.8, levels=levels)
        tables = Tables.of(problem)
        with Run(Slide(), problem, SolveOptions()) as run:
            pruned, _ = overlapped_rates(run, problem, tables, prune=True)
            full, _ = overlapped_rates(run, problem, tables, prune=False)
        assert np.array_equal(pruned.min(axis=1), full.min(axis=1))
        limited = np.isfinite(problem.energy_j)
        assert np.isfinite(pruned[limited]).sum() < np.isfinite(full[limited]).sum()


def test_levels_with_energy_are_no_exact_variant():
    """The guarantee says so, and the rates are at least those of the best choice of levels, mostly equal to them."""
    equal, pairs = 0, 0
    for seed in range(40):
        problem = variant(seed, levels=LEVELS, energy=1.0, concave=False, block=None)
        assert isinstance(Slide().guarantee_for(problem), Heuristic)
        found = needs(problem)
        for k in range(problem.num_users):
            for i in range(problem.num_models):
                best = least(problem, k, i)[0]
                assert found[k, i] >= best * (1 - 1e-9)
                if np.isfinite(best):
                    pairs += 1
                    equal += found[k, i] <= best * (1 + 1e-6)
    assert equal >= 0.5 * pairs


# --- plans -------------------------------------------------------------------------------------------------------


def test_spare_bandwidth():
    """All of the band is given out in proportion; without sharing everybody gets just the least."""
    problem = ModelDownload.random(seed=3)
    shared = edgeopt.solve(problem, Slide()).solution
    least_plan = edgeopt.solve(problem, Slide(share_spare=False)).solution
    admitted = shared.admitted
    assert np.array_equal(admitted, least_plan.admitted)
    assert shared.bandwidth_hz.sum() == pytest.approx(problem.bandwidth_hz, rel=1e-12)
    ratio = shared.bandwidth_hz[admitted] / least_plan.bandwidth_hz[admitted]
    assert ratio == pytest.approx(ratio[0], rel=1e-12)
    assert ratio[0] > 1
    found = needs(problem)[np.arange(problem.num_users), least_plan.model]
    assert least_plan.bandwidth_hz[admitted] == pytest.approx(found[admitted], rel=1e-12)


def test_spare_resource_blocks():
    """Users get whole blocks, nobody fewer than needed, and no block is left over."""
    problem = ModelDownload.random(seed=3, resource_block_hz=0.7e6)
    shared = edgeopt.solve(problem, Slide()).solution
    least_plan = edgeopt.solve(problem, Slide(share_spare=False)).solution
    assert (shared.bandwidth_hz >= least_plan.bandwidth_hz).all()
    assert (shared.bandwidth_hz > least_plan.bandwidth_hz).any()
    assert np.round(shared.bandwidth_hz / 0.7e6).sum() == problem.bandwidth_hz // 0.7e6
    assert problem.is_feasible(shared)


def test_frequencies():
    """Without an energy limit, full speed; with one, all of the time is used and more bandwidth saves energy."""
    problem = ModelDownload.random(num_users=60, energy=(0.0, 0.3), seed=4)
    limited = np.arange(problem.num_users) % 2 == 0
    problem = problem.replace(energy_j=np.where(limited, problem.energy_j, np.inf))
    plans = [edgeopt.solve(problem, Slide(share_spare=share)).solution for share in (True, False)]
    shared, narrow = (problem.simulate(plan) for plan in plans)
    owner = np.repeat(np.arange(problem.num_users), np.diff(shared.indptr))
    frequency = plans[0].frequency_hz
    assert (frequency == problem.max_frequency_hz[owner])[~limited[owner]].all()
    users = np.flatnonzero(plans[0].admitted & limited)
    at_low = np.isin(users, owner[frequency == problem.min_frequency_hz[owner]])
    assert 0 < at_low.sum() < users.size
    in_time = shared.completion_s[users] / problem.deadline_s[users]
    assert in_time[~at_low] == pytest.approx(np.ones((~at_low).sum()), rel=1e-9)
    assert (in_time <= 1 + 1e-9).all()
    assert (shared.energy_j[users] <= narrow.energy_j[users] * (1 + 1e-12)).all()
    assert shared.energy_j[users].sum() < 0.999 * narrow.energy_j[users].sum()


# --- limits ------------------------------------------------------------------------------------------------------


class After(Callback):
    """Stops after a number of iterations."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def on_iteration(self, progress: Progress) -> bool:
        return progress.iteration < self.iterations


@pytest.mark.parametrize("levels", [None, LEVELS], ids=["free", "levels"])
def test_stopped_between_users(monkeypatch, levels):
    """A run that is stopped when some users are done admits only those, and its bound still holds for all."""
    monkeypatch.setattr(rates, "USERS_PER_STEP", 7)
    problem = random_problem(np.random.default_rng(5), num_users=40, energy=1.0, levels=levels, band=0.2)
    whole = edgeopt.solve(problem, "slide")
    for iterations in (1, 3, 5):
        result = edgeopt.solve(problem, "slide", callback=After(iterations))
        assert result.limit is Limit.CALLBACK
        assert result.feasible
        assert result.objective <= whole.objective
        assert result.bound >= whole.objective
    some = edgeopt.solve(problem, "slide", callback=After(3 if levels is None else 9))
    assert 0 < some.objective < whole.objective


# --- properties --------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["bandwidth_hz", "deadline_s", "energy_j", "max_frequency_hz"]),
    st.floats(1.0, 3.0),
)
def test_more_never_serves_fewer(seed, field, factor):
    """More bandwidth, later deadlines, more energy or faster processors never lower the value."""
    problem = variant(seed, num_users=12, levels=None)
    eased = problem.replace(**{field: factor * getattr(problem, field)})
    before, after = edgeopt.solve(problem, "slide"), edgeopt.solve(eased, "slide")
    assert after.feasible
    assert after.objective >= before.objective - 1e-9


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_order_of_users_and_models_does_not_matter(seed):
    """Permuting users, models with their layers, and units of bits and seconds leaves the value alone."""
    problem = variant(seed, num_users=8, levels=None)
    value = edgeopt.solve(problem, "slide").objective
    order = np.random.default_rng(seed).permutation(problem.num_users)
    users = {
        name: getattr(problem, name)[order]
        for name in (*_USER_FIELDS, "snr_hz" if problem.has_concave_rate else "spectral_efficiency")
    }
    assert edgeopt.solve(problem.replace(**users), "slide").objective == pytest.approx(value)
    scaled = problem.replace(
        layer_bits=1e6 * problem.layer_bits,
        memory_bytes=1e6 * problem.memory_bytes,
        receive_j_per_bit=1e-6 * problem.receive_j_per_bit,
        bandwidth_hz=1e6 * problem.bandwidth_hz,
        resource_block_hz=problem.resource_block_hz and 1e6 * problem.resource_block_hz,
        **({"snr_hz": 1e6 * problem.snr_hz} if problem.has_concave_rate else {}),
    )
    assert edgeopt.solve(scaled, "slide").objective == pytest.approx(value)


_USER_FIELDS = (
    "task", "min_accuracy", "memory_bytes", "deadline_s", "samples", "cycles_per_flop", "min_frequency_hz",
    "max_frequency_hz", "energy_j", "energy_coefficient", "receive_j_per_bit", "user_weight",
)  # fmt: skip


def test_model_without_computing():
    """Models that need no computing take bits over deadline, whatever the energy limit, unless receiving exceeds it."""
    tiny = instance("small for all").problem
    assert needs(tiny.replace(energy_j=[1e-9, 1.0, np.inf]))[:, 0] == pytest.approx([2.0, 2.0, 2.0])
    assert needs(tiny.replace(energy_j=[1.0, 3.0, 9.0], receive_j_per_bit=[1.0] * 3))[:, 0] == pytest.approx(
        [np.inf, 2.0, 2.0]
    )


def test_energy_limit_at_the_lowest_frequency():
    """A limit of exactly what the lowest frequency takes is met at a finite rate, a little less is not met at all."""
    one = instance("exactly the band").problem.replace(min_frequency_hz=[0.8, 0.8])
    assert needs(one.replace(energy_j=[1.28, 1.28 * (1 - 1e-9)]))[:, 0] == pytest.approx([8.0, np.inf])


# --- rounding ----------------------------------------------------------------------------------------------------


def test_frequencies_with_levels_stay_when_bandwidth_is_spare():
    """A rounded schedule for the actual rate may take more energy than that for the least rate: it is not used.

    Over all of the band of 1.73 Hz, rounding the speeds for that rate would exceed the limit of 4.29 J.
    """
    problem = ModelDownload(
        layer_indptr=[0, 5], layer_bits=[0.91, 3.47, 0.57, 0.72, 3.42], layer_flops=[1.19, 1.05, 0.88, 0.94, 1.07],
        model_names=("five layers",), deadline_s=[3.32], cycles_per_flop=0.6, min_frequency_hz=0.27,
        max_frequency_hz=1.34, energy_j=4.29, energy_coefficient=1.0, receive_j_per_bit=0.03,
        spectral_efficiency=3.13, bandwidth_hz=1.7276, frequency_levels=LEVELS,
    )  # fmt: skip
    result = edgeopt.solve(problem, "slide")
    assert result.feasible
    assert result.objective == 1
    wide = result.solution.bandwidth_hz
    assert wide == pytest.approx([1.7276])
    tables, model = Tables.of(problem), result.solution.model
    for bandwidth, fits in ((0.667 * wide, True), (wide, False)):
        frequency = tables.frequencies(problem, model, problem.rate_bps(bandwidth))
        plan = DownloadPlan(model=model, bandwidth_hz=wide, frequency_hz=frequency)
        assert problem.is_feasible(plan) == fits


def test_the_bound_with_levels_starts_at_the_lowest_level():
    """Two cycles at the lowest level of 0.8 Hz take 1.28 J; free frequencies could do with 0.89 J, but there are none."""
    one = instance("exactly the band").problem.replace(frequency_levels=[0.8, 1.0], bandwidth_hz=1e3)
    assert edgeopt.solve(one.replace(energy_j=[1.2, 1.3]), "slide").bound == 1


@pytest.mark.parametrize("blocks", [1, 3, 6, 7, 12, 23, 39])
@pytest.mark.parametrize("users", [3, 7, 10])
def test_exactly_so_many_resource_blocks(blocks, users):
    """Users who need exactly n blocks of 0.1 Hz get n, not n + 1 by rounding: all of them fit exactly."""
    problem = ModelDownload(
        layer_indptr=[0, 1], layer_bits=[0.1 * blocks], layer_flops=[0.0], model_names=("m",),
        deadline_s=np.ones(users), cycles_per_flop=1.0, min_frequency_hz=0.1, max_frequency_hz=1.0,
        spectral_efficiency=1.0, bandwidth_hz=0.1 * blocks * users, resource_block_hz=0.1,
    )  # fmt: skip
    result = edgeopt.solve(problem, "slide")
    assert result.feasible
    assert result.objective == users


def test_the_last_spare_block_is_given_out():
    """0.3 Hz are three blocks of 0.1 Hz, though 0.3 / 0.1 is less than 3 as computed."""
    assert 0.3 / 0.1 < 3
    problem = instance("exactly the band").problem.replace(bandwidth_hz=0.3, resource_block_hz=0.1)
    assert common.share_spare_bandwidth(problem, np.array([0.1, 0.0])) == pytest.approx([0.3, 0.0])


# --- messages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["slide", "download-then-infer", "equal-bandwidth", "milp", "random"])
def test_the_message_says_who_cannot_be_served(solver):
    """How many cannot be served even alone, for what reasons, and the first of them; nothing if everybody is served."""
    problem = instance("exactly the band").problem
    if solver == "slide":
        assert edgeopt.solve(problem, solver).message == ""
    late = problem.replace(deadline_s=[3.0, 2.0])
    assert edgeopt.solve(late, solver).message == (
        "1 of 2 users cannot be served even alone (1 deadline); user 1: deadline_s = 2, computing two layers takes 2 s at 1 Hz"
    )


def test_no_message_about_users_that_were_beaten():
    """Users who could be served if there were more bandwidth left for them are no cause for a message."""
    result = edgeopt.solve(instance("just too little").problem, "slide")
    assert result.objective == 1
    assert result.message == ""


def test_a_knapsack_out_of_memory_says_so(monkeypatch):
    """Without a limit on the run, a bound above the value has a reason: the message names it."""
    problem = random_problem(np.random.default_rng(3), num_users=60, num_models=1, weighted=True, band=0.3)
    problem = problem.replace(user_weight=np.random.default_rng(0).uniform(1.0, 2.0, 60))
    assert "knapsack" not in edgeopt.solve(problem, "slide").message
    monkeypatch.setattr(multiple_choice, "MAX_STATES", 4)
    result = edgeopt.solve(problem, "slide")
    assert result.limit is None
    assert result.status is Status.FEASIBLE
    assert result.bound > result.objective >= result.bound / 2
    assert "memory of the knapsack" in result.message
