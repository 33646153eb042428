"""The bound on planners that know the future: against schedules one by one, another programme, exact solvers, and planners."""

import itertools
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import edgeopt
from edgeopt.errors import InvalidProblemError
from edgeopt.problems import ModelDownload
from edgeopt.series import KINDS, TimeSeries
from edgeopt.solvers.model_download import SOLVERS, clairvoyant_bound, poisson_arrivals, rolling_horizon
from edgeopt.solvers.model_download.clairvoyant_bound import TANGENTS, _Intervals, _pieces
from tests.solvers.model_download.instances import TINY
from tests.solvers.model_download.test_rolling_horizon import VARIANTS, drawn, one_layer

SLOW = ("milp", "generic")  # once each
PLANNERS = [solver.name for solver in SOLVERS if solver.name not in SLOW]


def layered(**changes: Any) -> ModelDownload:
    """Return users of one model: two layers of 4 Mbit, a second of computing each, and 4 Mbit/s on the whole band."""
    fields: dict[str, Any] = {
        "layer_indptr": [0, 2], "layer_bits": 4e6, "layer_flops": 1e9, "model_names": ["two layers"], "deadline_s": [3.0],
        "cycles_per_flop": 1.0, "min_frequency_hz": 1e8, "max_frequency_hz": 1e9, "spectral_efficiency": 4.0, "bandwidth_hz": 1e6,
    }  # fmt: skip
    return ModelDownload(**fields | changes)


def value_of(problem: ModelDownload, arrival: Any, solver: str, rates: TimeSeries | None) -> float:
    """Return what a planner has done in time."""
    result = rolling_horizon(problem, arrival, solver, rates=rates)
    done = result.admitted & ~result.late
    return float(problem.value[np.arange(problem.num_users), result.plan.model][done].sum())


def test_by_hand():
    """Each download takes the whole band for a second: fractions of requests fill what is left before the last deadline."""
    for deadlines, arrivals, expected in (
        ([1.0, 1.0], [0.0, 0.0], 1.0),
        ([1.5, 1.5], [0.0, 0.0], 1.5),
        ([1.0, 1.0], [0.0, 0.25], 1.25),
        ([1.0, 1.0], [0.0, 5.0], 2.0),
        ([0.5, 3.0], [0.0, 0.0], 1.5),
    ):
        assert clairvoyant_bound(one_layer(deadlines), arrivals) == pytest.approx(expected, rel=1e-7)


def test_layers_are_needed_in_time():
    """With 0.1 s too little the first layer, due at 0.9 s, lacks a tenth of its bits; under an energy limit computing takes longer."""
    for deadline, expected in ((3.0, 1.0), (2.9, 0.9), (2.1, 0.1), (2.0, 0.0), (1.9, 0.0)):
        assert clairvoyant_bound(layered(deadline_s=[deadline]), [0.0]) == pytest.approx(expected, abs=1e-7)
    slow = layered(deadline_s=[4.0], energy_coefficient=1e-27, energy_j=0.5)  # 2e9 cycles in 4 s take 1/2 J
    assert clairvoyant_bound(slow, [0.0]) == pytest.approx(0.0, abs=1e-7)
    assert clairvoyant_bound(slow.replace(deadline_s=[4.5]), [0.0]) == pytest.approx(0.5, abs=1e-7)
    for never in ({"energy_j": 0.01, "energy_coefficient": 1e-27}, {"energy_j": 1.0, "receive_j_per_bit": 1e-6}):
        assert clairvoyant_bound(layered(deadline_s=[100.0], **never), [0.0]) == 0.0


def test_rates_over_time():
    """What counts is the rate between arrival and deadline: half of it is a tunnel for the first, all of it for the second."""
    rates = TimeSeries.from_table([[0.0, 0.0], [1e6, 0.0], [1e6, 5e6]], 0.5)
    problem = one_layer([1.0, 1.0])
    assert clairvoyant_bound(problem, [0.0, 0.0], rates=rates) == pytest.approx(0.5, rel=1e-7)
    assert clairvoyant_bound(problem, [0.5, 0.5], rates=rates) == pytest.approx(1.8, rel=1e-7)  # 0.8 s and 0.2 s
    assert clairvoyant_bound(problem, [0.5, 0.0], rates=TimeSeries.constant([0.0, 0.0])) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_no_schedule_is_above(seed: int):
    """Of all ways to give each of five slots of a second to one of three requests or to two by halves, none is worth more."""
    rng = np.random.default_rng(seed)
    problem = ModelDownload(
        layer_indptr=[0, 2, 3], layer_bits=[1e6, 2e6, 1.5e6], layer_flops=[1e9, 5e8, 4e8], model_names=["a", "b"],
        accuracy=[0.9, 0.5], model_reward=[2.0, 1.0], deadline_s=rng.uniform(2, 5, 3), cycles_per_flop=rng.uniform(0.2, 2, 3),
        min_frequency_hz=1e8, max_frequency_hz=1e9, spectral_efficiency=1.0, bandwidth_hz=1e6, user_weight=[1.0, 2.0, 1.0],
    )  # fmt: skip
    arrival, table = rng.integers(0, 3, 3).astype(float), rng.uniform(0, 3e6, (5, 3))
    give = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    plans = np.array(list(itertools.product(range(6), repeat=5)))
    there = np.arange(5)[:, None] >= arrival
    arrived = np.cumsum(give[plans] * table * there, axis=1)  # [plans, slots, requests]
    worth = np.zeros((len(plans), 3))
    for k, model in itertools.product(range(3), range(2)):
        done = np.zeros(len(plans))
        own = slice(problem.layer_indptr[model], problem.layer_indptr[model + 1])
        for bits, flops in zip(problem.prefix_bits[own], problem.layer_flops[own], strict=True):
            before = np.pad(arrived[:, :, k], ((0, 0), (1, 0)))
            at = (before[:, 1:] < bits).sum(axis=1)  # the slot in which the last of these bits arrives
            row, inside = np.arange(len(plans)), np.minimum(at, 4)
            rate = arrived[row, inside, k] - before[row, inside]
            when = np.where(
                at < 5, inside + np.divide(bits - before[row, inside], rate, where=rate > 0, out=0 * rate), np.inf
            )
            done = np.maximum(done, when) + flops * problem.cycles_per_flop[k] / 1e9
        in_time = done <= arrival[k] + problem.deadline_s[k]
        worth[:, k] = np.maximum(worth[:, k], in_time * problem.value[k, model])
    best = worth.sum(axis=1).max()
    bound = clairvoyant_bound(problem, arrival, rates=TimeSeries.from_table(np.vstack([table, np.zeros((5, 3))]), 1.0))
    assert 0 < best <= bound <= problem.value.max(axis=1).sum() * (1 + 1e-8)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_another_programme(seed: int, traced: bool):
    """The same bound by a programme written down plainly: bits by request, model and interval, each layer due by itself."""
    problem, arrival = drawn(7, 20.0, seed, energy=None, weighted=True, rewarded=True)
    problem = problem.replace(bandwidth_hz=3e7)
    rates = TimeSeries.random("fading", clients=7, duration_s=9, mean_bps=(3e7, 3e8), seed=seed) if traced else None
    latest, pairs = {}, np.argwhere(problem.allowed).tolist()
    for k, i in pairs:
        own = slice(problem.layer_indptr[i], problem.layer_indptr[i + 1])
        work = (
            problem.layer_fixed_s + problem.layer_flops * problem.cycles_per_layer_flop[k] / problem.max_frequency_hz[k]
        )
        left = np.cumsum(work[own][::-1])[::-1]
        latest[k, i] = arrival[k] + problem.deadline_s[k] - left
    pairs = [(k, i) for k, i in pairs if latest[k, i][0] > arrival[k]]
    changes = np.arange(9.0) if traced else np.zeros(0)
    urgent = []
    for k, i in pairs:
        bits = problem.prefix_bits[problem.layer_indptr[i] : problem.layer_indptr[i + 1]]
        urgent.append(latest[k, i][(bits / (latest[k, i] - arrival[k])).argmax()])
    cuts = np.unique(np.concatenate([arrival, changes, urgent, [latest[pair][-1] for pair in pairs]]))
    cuts = cuts[cuts >= arrival.min()]
    spans, columns = list(pairwise(cuts)), len(pairs) * len(cuts)
    y = np.arange(len(pairs), columns).reshape(len(pairs), -1)
    rows, limits, upper = [], [], np.ones(columns)
    for p, (k, i) in enumerate(pairs):
        for t, (start, end) in enumerate(spans):
            bps = float(rates.at(0.5 * (start + end))[k] if rates else problem.rate_bps(problem.bandwidth_hz)[k])
            upper[y[p, t]] = bps * (end - start) / 1e6 if arrival[k] <= start < latest[k, i][-1] else 0.0
        for due, bits in zip(latest[k, i], problem.prefix_bits[problem.layer_indptr[i] :], strict=False):
            row = np.zeros(columns)
            row[p] = bits / 1e6
            row[y[p, : np.searchsorted(cuts, due)]] = -1.0  # intervals that begin before it is due
            rows.append(row), limits.append(0.0)
    for t, (start, end) in enumerate(spans):
        row = np.zeros(columns)
        full = upper[y[:, t]] / (end - start)
        row[y[:, t]] = np.divide(1.0, full, where=full > 0, out=np.zeros_like(full))
        rows.append(row), limits.append(end - start)
    for k in range(7):
        rows.append(np.array([float(p < len(pairs) and pairs[p][0] == k) for p in range(columns)])), limits.append(1.0)
    value = np.array([problem.value[k, i] for k, i in pairs] + [0.0] * (columns - len(pairs)))
    plain = linprog(-value, np.array(rows), limits, bounds=np.column_stack([np.zeros(columns), upper]))
    total = problem.value.max(axis=1).sum()
    bound = clairvoyant_bound(problem, arrival, rates=rates)
    assert bound == pytest.approx(-plain.fun, rel=1e-6)
    assert bound < 0.99 * total  # the band is short


@pytest.mark.parametrize("snr_db", [-20.0, 5.0, 40.0])
def test_concave_rates_by_tangents(snr_db: float):
    """What the pieces carry, filled in turn, is never below the rate, and is the rate at shares of the band of 1, 1/2, 1/4, ..."""
    problem = ModelDownload.random(num_users=1, fixed_power=True, snr_db=snr_db)
    intervals = _Intervals.between(np.array([0.0, 1.0]), np.zeros(1), np.ones(1))
    pieces = _pieces(problem, None, np.array([0]), intervals, np.array([0.5]), np.array([1.0]))
    bps, most = pieces.bps[0], pieces.most[0]
    assert (np.diff(bps[1:]) <= 0).all()  # so that filling them in turn is best
    for share in [0.0, *np.geomspace(1e-6, 1.0, 40), *0.5 ** np.arange(TANGENTS)]:
        left = np.maximum(share - np.concatenate([[0.0, 0.0], np.cumsum(most[1:-1])]), 0.0)
        carried = bps @ np.where(pieces.cost > 0, np.minimum(left, most), most)
        rate = problem.rate_bps(share * problem.bandwidth_hz)[0]
        assert carried >= rate * (1 - 1e-9)
        if np.log2(share or 0.3).is_integer() and share > 0.5**TANGENTS:
            assert carried == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_at_once(variant: str):
    """Where all arrive at the same time, no plan of one moment is worth more: the optimum of `slide`."""
    for seed in range(2):
        problem, _ = drawn(40, seed=seed, **VARIANTS[variant])
        once = edgeopt.solve(problem, "slide")
        bound = clairvoyant_bound(problem, 2.0)
        assert once.objective <= bound < 2.0 * once.objective
        if problem.snr_hz is None:
            rates = TimeSeries.constant(problem.rate_bps(problem.bandwidth_hz))
            assert clairvoyant_bound(problem, 2.0, rates=rates) == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.name)
def test_known_optima(tiny: Any):
    """The same of the tiny instances whose optima are known by brute force, and with a hundred times the band."""
    assert tiny.optimum <= clairvoyant_bound(tiny.problem, 0.0)
    wide = tiny.problem.replace(bandwidth_hz=100 * tiny.problem.bandwidth_hz)
    assert clairvoyant_bound(wide, 0.0) >= clairvoyant_bound(tiny.problem, 0.0) * (1 - 1e-8)


@settings(max_examples=5)
@given(
    seed=st.integers(0, 10**6),
    per_s=st.floats(2.0, 500.0),
    variant=st.sampled_from(sorted(VARIANTS)),
    kind=st.sampled_from((None, *KINDS)),
)
def test_no_planner_is_above(seed: int, per_s: float, variant: str, kind: str | None):
    """Whatever the load, the problem and the links, for every solver."""
    problem, arrival = drawn(12, per_s, seed, **VARIANTS[variant])
    mean = {"mean_bps": (1e8, 8e8), "duration_s": 7.0, "clients": 12, "seed": seed}
    rates = None if kind is None else TimeSeries.random(kind, **mean)
    bound = clairvoyant_bound(problem, arrival, rates=rates)
    for solver in PLANNERS:
        assert value_of(problem, arrival, solver, rates) <= bound


@pytest.mark.parametrize("solver", SLOW)
def test_no_exact_planner_is_above(solver: str):
    """The solvers that take long, once each."""
    if solver == "generic":
        pytest.importorskip("cvxpy")
    problem = layered(deadline_s=[4.0, 4.5, 7.0, 4.0], energy_j=3.0)
    rates = TimeSeries.from_table([[4e6], [3e6], [5e6]], 1.0).for_clients(4)
    arrival = [0.0, 0.5, 0.7, 3.0]
    value = value_of(problem, arrival, solver, rates)
    assert 1 <= value <= clairvoyant_bound(problem, arrival, rates=rates)


def test_scales_do_not_matter():
    """Other units of time, bits and value give the same bound."""
    problem, arrival = drawn(20, energy=None, weighted=True)
    bound = clairvoyant_bound(problem, arrival)
    other = problem.replace(
        layer_bits=1e5 * problem.layer_bits, bandwidth_hz=1e2 * problem.bandwidth_hz, deadline_s=1e3 * problem.deadline_s,
        layer_fixed_s=1e3 * problem.layer_fixed_s, layer_flops=1e3 * problem.layer_flops, user_weight=1e-6 * problem.user_weight,
        memory_bytes=1e5 * problem.memory_bytes,
    )  # fmt: skip
    assert clairvoyant_bound(other, 1e3 * arrival) == pytest.approx(1e-6 * bound, rel=1e-6)


def test_bad_input():
    """Arrivals and rates are checked as by the rolling horizon."""
    problem = one_layer([1.0, 1.0])
    with pytest.raises(InvalidProblemError, match=r"arrival_s: expected shape \[2\]"):
        clairvoyant_bound(problem, poisson_arrivals(3, 1.0))
    with pytest.raises(InvalidProblemError, match="rates: 1 columns, expected 2: one for each request"):
        clairvoyant_bound(problem, 0.0, rates=TimeSeries.constant([1.0]))
    with pytest.raises(InvalidProblemError, match="problem: expected a ModelDownload, got str"):
        clairvoyant_bound("x", 0.0)  # type: ignore[arg-type]
