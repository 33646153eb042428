"""The rolling horizon: the band is never exceeded, whoever is admitted is done in time, and one moment is one solve."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.errors import EdgeOptError, InvalidProblemError, UnsupportedProblemError
from edgeopt.problems import ModelDownload
from edgeopt.series import TimeSeries
from edgeopt.solvers.model_download import RollingResult, Slide, poisson_arrivals, rolling_horizon
from edgeopt.solvers.model_download.rolling_horizon import USER_FIELDS, least_latency, waiting_problem

VARIANTS: dict[str, dict[str, Any]] = {
    "energy": {},
    "no energy limit": {"energy": None},
    "weighted": {"weighted": True},
    "rewarded": {"rewarded": True},
    "fixed power": {"fixed_power": True},
    "blocks": {"resource_block_hz": 5e6},
    "levels": {"frequency_levels": [0.25, 0.5, 0.75, 1.0]},
}


def drawn(num_users: int = 60, per_s: float = 40.0, seed: int = 0, **arguments: Any) -> tuple[ModelDownload, Any]:
    """Return a random problem and arrivals, busy enough that some wait and some are refused."""
    problem = ModelDownload.random(num_users=num_users, bandwidth_hz=100e6, seed=seed, **arguments)
    return problem, poisson_arrivals(num_users, per_s, seed=seed)


def one_layer(deadlines: list[float]) -> ModelDownload:
    """Return users of one model that takes the whole band one second and needs no computing."""
    return ModelDownload(
        layer_indptr=[0, 1],
        layer_bits=1e6,
        layer_flops=0.0,
        model_names=["one layer"],
        deadline_s=deadlines,
        cycles_per_flop=1.0,
        min_frequency_hz=1e8,
        max_frequency_hz=1e9,
        spectral_efficiency=1.0,
        bandwidth_hz=1e6,
    )


def check(problem: ModelDownload, result: RollingResult) -> None:
    """Assert the invariants of every result, from the record alone."""
    plan, admitted = result.plan, result.admitted
    timeline = problem.simulate(plan)
    # done in time, by the problem's own recursion at the bandwidth and frequencies that the request got
    np.testing.assert_allclose(result.finish_s - result.start_s, np.where(admitted, timeline.completion_s, np.nan))
    slack = result.arrival_s + problem.deadline_s - result.finish_s
    assert (slack[admitted] >= -1e-9 * problem.deadline_s[admitted]).all()
    assert (timeline.energy_j <= problem.energy_j * (1 + 1e-9)).all()
    assert problem.allowed[admitted, plan.model[admitted]].all()
    # the band at every start: what is held then and not yet given back
    for now in result.start_s[admitted]:
        held = admitted & (result.start_s <= now) & (result.downloaded_s > now)
        assert plan.bandwidth_hz[held].sum() <= problem.bandwidth_hz * (1 + 1e-9)
    times, used = result.bandwidth_in_use()
    assert (np.diff(times) > 0).all()
    assert used.max(initial=0.0) <= problem.bandwidth_hz * (1 + 1e-9)
    assert used[-1] == pytest.approx(0.0, abs=1e-6 * problem.bandwidth_hz)
    # nobody starts before arriving, everybody is decided once, refusals have a reason and come before the deadline
    assert (result.waiting_s >= 0).all()
    assert (np.isnan(result.refused_s) == admitted).all()
    assert [bool(reason) for reason in result.reason] == (~admitted).tolist()
    assert (result.waiting_s <= problem.deadline_s).all()


@pytest.mark.parametrize("solver", ["slide", "download-then-infer", "random"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_invariants(variant: str, solver: str):
    """Bandwidth, deadlines, energy and bookkeeping hold for every variant of the problem and several solvers."""
    problem, arrival = drawn(**VARIANTS[variant])
    result = rolling_horizon(problem, arrival, solver)
    check(problem, result)
    assert 0 < result.num_done < result.num_requests
    assert result.waiting_s[result.admitted].max() > 0
    assert result.to_json() == rolling_horizon(problem, arrival, solver).to_json()


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), per_s=st.floats(2.0, 500.0), energy=st.booleans())
def test_invariants_of_any_load(seed: int, per_s: float, energy: bool):
    """The invariants hold from light load to a burst."""
    problem, arrival = drawn(25, per_s, seed, **({} if energy else {"energy": None}))
    check(problem, rolling_horizon(problem, arrival))


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_at_once_starts_with_one_solve(variant: str):
    """If all arrive at time 0, the first decision is the one-shot plan of those who can be served; later ones only add."""
    problem, _ = drawn(**VARIANTS[variant])
    hopeless = [refusal.user for refusal in problem.refusals()]
    users = np.setdiff1d(np.arange(problem.num_users), hopeless)
    part = waiting_problem(problem, users, problem.deadline_s[users], problem.bandwidth_hz)
    once, result = edgeopt.solve(part, "slide"), rolling_horizon(problem, 0.0)
    admitted = once.solution.admitted
    at_once = users[admitted]
    np.testing.assert_array_equal(np.flatnonzero(result.start_s == 0), at_once)
    np.testing.assert_array_equal(result.plan.model[at_once], once.solution.model[admitted])
    np.testing.assert_array_equal(result.plan.bandwidth_hz[at_once], once.solution.bandwidth_hz[admitted])
    np.testing.assert_array_equal(result.finish_s[at_once], part.simulate(once.solution).completion_s[admitted])
    assert once.objective == pytest.approx(edgeopt.solve(problem, "slide").objective)
    assert problem.value[np.arange(60), result.plan.model] @ result.admitted >= once.objective - 1e-9


def test_far_apart_means_alone():
    """Requests that never meet are each decided like a problem of one user, without waiting."""
    problem, _ = drawn(20)
    result = rolling_horizon(problem, 10.0 * np.arange(20))
    for user in range(20):
        alone = waiting_problem(problem, np.array([user]), problem.deadline_s[[user]], problem.bandwidth_hz)
        assert result.admitted[user] == bool(edgeopt.solve(alone, "slide").objective)
    assert result.waiting_s[result.admitted].max() == 0.0


def test_waiting_by_hand():
    """Three users of a 1 Mbit model over 1 MHz at 1 bit/s/Hz: one second each on the whole band.

    At 0 users 0 and 1 need 1/1.5 and 1/2.5 MHz, too much together. User 1 is cheaper and gets the whole band until
    second 1. User 0 would need the whole band at second 0.5, its last chance, and is refused then. User 2 comes at 0.25,
    waits 0.75 s until second 1 and is done at 2, just before its deadline.
    """
    result = rolling_horizon(one_layer([1.5, 2.5, 1.8]), [0.0, 0.0, 0.25])
    np.testing.assert_allclose(result.start_s, [np.nan, 0.0, 1.0])
    np.testing.assert_allclose(result.downloaded_s, [np.nan, 1.0, 2.0])
    np.testing.assert_allclose(result.finish_s, [np.nan, 1.0, 2.0])
    np.testing.assert_allclose(result.waiting_s, [0.5, 0.0, 0.75])
    np.testing.assert_allclose(result.refused_s, [0.5, np.nan, np.nan])
    assert result.reason[0].startswith("no bandwidth in time: after 0.5 s")
    assert result.span_s == 2.5
    assert result.throughput_per_s == pytest.approx(2 / 2.5)
    assert result.utilisation == pytest.approx(2.0 / 2.5)
    np.testing.assert_allclose(result.num_waiting(), [[0.0, 0.25, 0.5, 1.0], [1.0, 2.0, 1.0, 0.0]])
    np.testing.assert_allclose(result.bandwidth_in_use(), [[0.0, 1.0, 2.0], [1e6, 1e6, 0.0]])


@pytest.mark.parametrize("block", [None, 1e5])
def test_free_bandwidth_to_the_last_block(block: float | None):
    """Without sharing what is spare, two users of half the band each overlap, and a third waits until its last chance."""
    problem = one_layer([2.0, 2.0, 2.0]).replace(resource_block_hz=block)
    result = rolling_horizon(problem, [0.0, 0.25, 0.5], Slide(share_spare=False))
    np.testing.assert_allclose(result.start_s[:2], [0.0, 0.25])
    np.testing.assert_allclose(result.plan.bandwidth_hz[:2], 5e5)
    assert result.refused_s[2] == 1.5
    assert result.num_waiting()[1].max() == 1


def test_hopeless_at_arrival():
    """Who could not be served even alone is refused on arrival with the problem's own words, and delays nobody."""
    result = rolling_horizon(one_layer([0.5, 1.0]), [0.0, 0.0])
    problem = one_layer([0.5, 1.0])
    assert result.reason == (problem.refusals()[0].message, "")
    assert result.refused_s[0] == 0.0
    assert result.start_s[1] == 0.0


def test_sums_are_those_of_the_requests():
    """Summary, steps, JSON and data frame say the same as the arrays."""
    problem, arrival = drawn()
    result = rolling_horizon(problem, arrival)
    times, used = result.bandwidth_in_use()
    held = (used[:-1] * np.diff(times)).sum()
    assert result.utilisation == pytest.approx(held / (problem.bandwidth_hz * result.span_s))
    times, waiting = result.num_waiting()
    assert (waiting[:-1] * np.diff(times)).sum() == pytest.approx(result.waiting_s.sum())
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["done"] + document["refused"] == document["requests"] == 60
    assert document["waiting_mean_s"] == pytest.approx(result.waiting_s[result.admitted].mean())
    assert len(document["per_request"]) == 60
    refused = next(row for row in document["per_request"] if not row["admitted"])
    assert (refused["start_s"], refused["model"]) == (None, -1)
    frame = result.to_frame()
    assert int(frame["admitted"].sum()) == result.num_done
    np.testing.assert_array_equal(frame["finish_s"], result.finish_s)


def test_relabelling():
    """Numbering the requests in another order changes nothing but their numbers."""
    problem, arrival = drawn(energy=None)
    order = np.random.default_rng(3).permutation(60)
    shuffled = waiting_problem(problem, order, problem.deadline_s[order], problem.bandwidth_hz)
    first, second = rolling_horizon(problem, arrival), rolling_horizon(shuffled, arrival[order])
    np.testing.assert_array_equal(first.start_s[order], second.start_s)
    np.testing.assert_allclose(first.finish_s[order], second.finish_s)


def test_every_field_of_a_user_is_taken():
    """No array with one entry per user is left behind when the waiting users are picked."""
    problem = ModelDownload.random(num_users=37, num_models=3, weighted=True)
    arrays = [name for name in problem.to_data()[1] if getattr(problem, name).shape == (37,)]
    assert sorted(arrays) == sorted(set(USER_FIELDS) - {"snr_hz"})
    part = waiting_problem(problem, np.array([5, 9]), np.array([1.0, 2.0]), 1e6)
    assert part.num_users == 2
    np.testing.assert_array_equal(part.energy_j, problem.energy_j[[5, 9]])
    assert (part.deadline_s.tolist(), part.bandwidth_hz) == ([1.0, 2.0], 1e6)


@pytest.mark.parametrize("arguments", [{"energy": None}, {"energy": None, "fixed_power": True}, {}])
def test_least_latency_is_never_beaten(arguments: dict[str, Any]):
    """A user alone is never done before `least_latency`, and without an energy limit it can be done by then."""
    problem, _ = drawn(12, **arguments)
    least = least_latency(problem)
    for user in np.flatnonzero(np.isfinite(least)):
        for factor in (1 - 1e-6, 1 + 1e-6):
            alone = waiting_problem(problem, np.array([user]), factor * least[[user]], problem.bandwidth_hz)
            done = bool(edgeopt.solve(alone, "slide").objective)
            assert not done or factor > 1
            assert done or factor < 1 or problem.is_energy_limited


def test_less_than_a_block_is_no_bandwidth():
    """While less than a resource block is free nothing is solved: once at the start and once when the download ends."""
    problem = one_layer([3.0, 3.0]).replace(resource_block_hz=0.4e6)
    result = rolling_horizon(problem, [0.0, 0.5])
    assert result.num_done == 2
    assert result.start_s.tolist() == [0.0, 1.25]
    assert result.num_solves == 2


def test_poisson_arrivals():
    """Ascending, of the given rate, the same for the same seed, and longer lists start like shorter ones."""
    times = poisson_arrivals(4000, 50.0, seed=2)
    assert (np.diff(times) > 0).all()
    assert times[-1] == pytest.approx(80.0, rel=0.1)
    np.testing.assert_array_equal(poisson_arrivals(10, 50.0, seed=2), times[:10])
    for wrong in ((0, 1.0), (1.5, 1.0), (5, 0.0), (5, math.inf), (5, math.nan), (3, "a")):
        with pytest.raises(EdgeOptError, match="expected"):
            poisson_arrivals(*wrong)


def test_bad_input():
    """Arrivals of another length or before time 0, and solvers of another problem, are errors that say so."""
    problem, arrival = drawn(5)
    with pytest.raises(InvalidProblemError, match=r"arrival_s: expected shape \[5\]"):
        rolling_horizon(problem, arrival[:4])
    with pytest.raises(InvalidProblemError, match=r"arrival_s\[2\] = -1.0"):
        rolling_horizon(problem, [0.0, 1.0, -1.0, 2.0, 3.0])
    with pytest.raises(InvalidProblemError, match="problem: expected a ModelDownload, got str"):
        rolling_horizon("x", arrival)  # type: ignore[arg-type]
    with pytest.raises(EdgeOptError, match="did you mean 'slide'"):
        rolling_horizon(problem, arrival, "slyde")
    with pytest.raises(UnsupportedProblemError, match="greedy"):
        rolling_horizon(problem, arrival, edgeopt.solvers.get_solver("expert-caching", "greedy"))


def test_many_requests():
    """Two thousand requests: nothing grows with their number but their number."""
    problem, arrival = drawn(2000, 60.0, energy=None)
    result = rolling_horizon(problem, arrival)
    check(problem, result)
    assert result.num_solves <= 2 * 2000


@pytest.mark.parametrize("seed", [0, 1])
def test_against_download_then_infer(seed: int):
    """The same requests under both: who can be served at all is the same, and so is the span that rates refer to.

    More than that is not provable over time, since an admission can block a later one; the documentation has figures.
    """
    problem, arrival = drawn(seed=seed)
    ours, theirs = rolling_horizon(problem, arrival), rolling_horizon(problem, arrival, "download-then-infer")
    assert ours.span_s == theirs.span_s
    hopeless = {refusal.user: refusal.message for refusal in problem.refusals()}
    for user, reason in hopeless.items():
        assert ours.reason[user] == theirs.reason[user] == reason


# --- measured rates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["no energy limit", "fixed power"])
def test_constant_rates_are_those_of_the_problem(variant: str):
    """Where rates never change, results are those without a trace, for problems whose rates are linear in bandwidth."""
    problem, arrival = drawn(30, seed=3, **VARIANTS[variant])
    if problem.snr_hz is not None:  # then the trace says what the whole band carries, and shares of it are linear
        problem = problem.replace(
            spectral_efficiency=problem.rate_bps(problem.bandwidth_hz) / problem.bandwidth_hz, snr_hz=None
        )
    plain = rolling_horizon(problem, arrival)
    rates = TimeSeries.constant(problem.rate_bps(problem.bandwidth_hz))
    traced = rolling_horizon(problem, arrival, rates=rates)
    assert not traced.late.any()
    np.testing.assert_allclose(
        traced.finish_s[plain.admitted & traced.admitted], plain.finish_s[plain.admitted & traced.admitted], rtol=1e-6
    )
    assert traced.num_done >= plain.num_done - 1  # decisions at other moments


def test_downloads_follow_the_trace():
    """A link that fades after the decision makes a request late; one without a link waits until it is there."""
    fades = TimeSeries.from_table([[1e6, 0], [0.25e6, 0], [1e6, 2e6]], 0.5)  # then again
    result = rolling_horizon(one_layer([1.1, 3.0]), [0.0, 0.0], rates=fades)
    assert result.start_s.tolist() == [0, 1.0 + 0.375]  # the band is free when the first is done
    assert result.downloaded_s[0] == pytest.approx(0.5 + 0.5 + 0.375)  # 0.5 + 0.125 + 0.375 Mbit
    assert result.late.tolist() == [True, False]
    assert (result.num_done, result.num_refused, result.summary()["late"]) == (1, 0, 1)
    never = TimeSeries.constant([1e6, 0])
    gone = rolling_horizon(one_layer([2.0, 3.0]), [0.0, 0.0], rates=never)
    assert (gone.num_done, gone.num_refused, gone.refused_s[1]) == (1, 1, 3.0)


def test_bad_rates():
    """One column for each request, of rates."""
    problem = one_layer([1.0, 1.0])
    with pytest.raises(InvalidProblemError, match="rates: 1 columns, expected 2: one for each request"):
        rolling_horizon(problem, [0, 0], rates=TimeSeries.constant([1.0]))
    with pytest.raises(InvalidProblemError, match="rates: expected a TimeSeries of the quantity rate"):
        rolling_horizon(problem, [0, 0], rates=TimeSeries.constant([1.0, 1.0], "carbon"))
