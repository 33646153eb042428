"""Plans of a broadcast: exact for their table."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
from edgeopt import EdgeNetwork
from edgeopt.coding import BroadcastPlan, PsnrTable, link_snr_db
from edgeopt.errors import InvalidProblemError


def random_table(rng: np.random.Generator) -> PsnrTable:
    return PsnrTable(
        snr_db=[0, 5, 10], symbols=[100, 200, 350], iterations=[1, 4], psnr_db=rng.integers(15, 25, (3, 3, 2)), nothing_db=18.0,
        header_symbols=20, flops_per_iteration=100.0, flops=1e4,
    )  # fmt: skip


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(["mean", "worst"]), st.sampled_from([0.0, 3.0]))
def test_against_brute_force(seed: int, goal: str, price: float):
    """No stop of the stream, and no choice of every receiver within it, has more; what is planned is in time."""
    rng = np.random.default_rng(seed)
    table, users = random_table(rng), 2
    snr, flops = rng.uniform(0, 12, users), rng.uniform(1e5, 1e6, users)
    deadline = rng.uniform(0.05, 0.8, users)
    plan = BroadcastPlan.best(
        table, snr_db=snr, symbols_per_s=1e3, flops=flops, deadline_s=deadline, goal=goal, price_db_per_s=price
    )
    quality = table.at(snr)
    options = [(0, 0), *itertools.product(table.symbols, table.iterations)]

    def psnr(u: int, n: int, rounds: int) -> float:
        if n == 0:
            return table.nothing_db
        seconds = (20 + n) / 1e3 + (1e4 + 100.0 * n * rounds) / flops[u]
        at = list(table.symbols).index(n), list(table.iterations).index(rounds)
        return quality[u][at] if seconds <= deadline[u] else -np.inf

    best = -np.inf
    for stop in (0, *table.symbols):
        for choice in itertools.product([o for o in options if o[0] <= stop], repeat=users):
            values = [psnr(u, *choice[u]) for u in range(users)]
            best = max(best, (np.mean(values) if goal == "mean" else min(values)) - price * (20 + stop) / 1e3)
    assert plan.value == pytest.approx(best)
    planned = [psnr(u, plan.symbols[u], plan.iterations[u]) for u in range(users)]
    assert planned == pytest.approx(plan.psnr_db.tolist())
    assert (plan.symbols <= plan.stop).all()
    aim = np.mean(planned) if goal == "mean" else min(planned)
    assert plan.value == pytest.approx(aim - price * plan.stream_s)


def test_between_measured_ratios():
    """On the line between two, held above the largest, refused below the least."""
    table = random_table(np.random.default_rng(0))
    np.testing.assert_allclose(table.at([2.5])[0], table.psnr_db[:2].mean(0))
    np.testing.assert_array_equal(table.at([99.0])[0], table.psnr_db[-1])
    with pytest.raises(
        InvalidProblemError, match=r"snr_db\[1\] = -1: expected at least 0, the least that was measured"
    ):
        table.at([1.0, -1.0])


def test_slow_receivers_run_fewer_iterations_and_a_stream_that_nobody_needs_stops():
    """Ties go to the earlier stop and to what is done first; `most_iterations` is kept."""
    table = PsnrTable([0], [100, 200], [1, 8], [[[20, 24], [20, 24]]], 10.0, 0, 100.0, 0.0)
    plan = BroadcastPlan.best(table, snr_db=[0, 0], symbols_per_s=1e3, flops=[1e9, 2e5], deadline_s=0.2)
    assert (plan.stop, plan.iterations.tolist()) == (100, [8, 1])
    plan = BroadcastPlan.best(
        table, snr_db=[0, 0], symbols_per_s=1e3, flops=1e9, deadline_s=0.2, most_iterations=[8, 1], goal="worst"
    )
    assert (plan.iterations.tolist(), plan.value) == ([8, 1], 20)
    late = BroadcastPlan.best(table, snr_db=[0], symbols_per_s=1e3, flops=[1e9], deadline_s=0.05)
    assert (late.stop, late.symbols.tolist(), late.psnr_db.tolist()) == (0, [0], [10.0])


def test_in_a_network():
    """Ratios and speeds are the network's; whoever hears too little is left out."""
    network = EdgeNetwork.random(1, 30, seed=2)
    table = random_table(np.random.default_rng(1))
    snr = link_snr_db(network, 0, 2e6)
    plan, devices = BroadcastPlan.of_network(table, network, deadline_s=1.0, bandwidth_hz=2e6)
    assert devices.tolist() == np.flatnonzero(snr >= 0).tolist()
    other = BroadcastPlan.best(
        table, snr_db=snr[devices], symbols_per_s=4e6, flops=network.device_flops[devices], deadline_s=1.0
    )
    assert plan.value == other.value
    with pytest.raises(InvalidProblemError, match="no device hears server 0"):
        BroadcastPlan.of_network(table, network, deadline_s=1.0, bandwidth_hz=1e30)


def test_what_is_refused():
    """Goals that there are not, tables that do not ascend, numbers that are none."""
    table = random_table(np.random.default_rng(0))
    with pytest.raises(InvalidProblemError, match="expected one of mean, worst"):
        BroadcastPlan.best(table, snr_db=[1], symbols_per_s=1, flops=1, deadline_s=1, goal="best")
    with pytest.raises(InvalidProblemError, match=r"snr_db\[0\] = nan"):
        BroadcastPlan.best(table, snr_db=[np.nan], symbols_per_s=1, flops=1, deadline_s=1)
    with pytest.raises(InvalidProblemError, match="symbols: expected at least one number, ascending"):
        PsnrTable([0], [200, 100], [1], [[[1], [2]]], 0, 0, 0, 0)
