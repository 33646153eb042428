"""Virtual time and energy: the formula by hand, and randomness that is a function of the round."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import EdgeNetwork, RoundPlan
from edgeopt.errors import InvalidProblemError
from edgeopt.problems import SplitTraining
from edgeopt.schedule import RATES
from edgeopt.training import EdgeTiming
from edgeopt.training.costs.timing import Traffic, no_rates
from edgeopt.training.messages import CATEGORIES
from tests.training.small_tasks import small_timing

PLAN = RoundPlan(client=[2, 0, 1])


def traffic(**changes: Any) -> Traffic:
    """Return two entries, 2 and 0 of the plan: clients 1 and 2."""
    down, up = np.zeros((2, len(CATEGORIES)), np.int64), np.zeros((2, len(CATEGORIES)), np.int64)
    down[:, 0], up[:, 0], up[:, 1] = [1000, 2000], [500, 0], [250, 4000]
    fields: dict[str, Any] = {
        "entry": np.array([2, 0]),
        "down_bytes": down,
        "up_bytes": up,
        "flops": np.array([3e6, 1e6]),
        "served": np.array([2, 0]),
        "server_flops": np.array([1e6, 2e6]),
        "lost": np.zeros(2, np.bool_),
    }
    return Traffic(**(fields | changes))


def test_a_phase_by_hand():
    """Down, compute and up follow one another at each client; the server works after the slowest, for one after another."""
    time = small_timing().phase(0, PLAN, "train", 7.0, traffic())
    np.testing.assert_allclose(time.down_s, [8 * 1000 / 2e6, 8 * 2000 / (4e6 / 3)])
    np.testing.assert_allclose(time.compute_s, [3e6 / 2e6, 1e6 / 3e6])
    np.testing.assert_allclose(time.up_s, [8 * 750 / 5e5, 8 * 4000 / (1e6 / 3)])
    np.testing.assert_allclose(time.client_s, [0.004 + 1.5 + 0.012, 0.012 + 1 / 3 + 0.096])
    np.testing.assert_allclose(time.server_s, [0.1, 0.2])
    np.testing.assert_allclose(time.seconds, 1.516 + 0.3)
    np.testing.assert_allclose(time.energy_j, [0.2 * 0.012 + 3e6 * 1e-10, 0.3 * 0.096 + 1e6 * 1e-10])
    assert (time.name, time.start_s, time.straggler) == ("train", 7.0, 2)


def test_the_fed_link():
    """On the way to the fed server its own rates count, and the edge server's exchange runs at the same time."""
    timing = small_timing()
    alone = timing.phase(0, PLAN, "fed", 0.0, traffic(link="fed", server_flops=np.zeros(2)))
    np.testing.assert_allclose(alone.down_s, [8 * 1000 / 1e6, 8 * 2000 / (2e6 / 3)])
    np.testing.assert_allclose(alone.up_s, [8 * 750 / 2.5e5, 8 * 4000 / (5e5 / 3)])
    busy = timing.phase(
        0, PLAN, "fed", 0.0, traffic(link="fed", server_flops=np.zeros(2), server_up_bytes=1e7, server_down_bytes=5e6)
    )
    np.testing.assert_allclose(busy.seconds, 8 * 1e7 / 1e7 + 8 * 5e6 / 2e7)
    assert busy.seconds > alone.seconds == alone.client_s.max()


def test_what_takes_time():
    """Labels and scalars are sent in no time unless they are asked to count; statistics take time."""
    sizes = np.tile(100 * 2 ** np.arange(len(CATEGORIES)), (2, 1))  # by category
    sent = traffic(up_bytes=sizes, down_bytes=np.zeros((2, len(CATEGORIES)), np.int64))
    default = small_timing().phase(0, PLAN, "x", 0.0, sent)
    np.testing.assert_allclose(default.up_s, 8 * 3900 / np.array([5e5, 1e6 / 3]))
    everything = small_timing(timed=frozenset(CATEGORIES)).phase(0, PLAN, "x", 0.0, sent)
    np.testing.assert_allclose(everything.up_s, 8 * 6300 / np.array([5e5, 1e6 / 3]))


def test_an_empty_phase():
    """Nobody is waited for."""
    none = np.zeros((0, len(CATEGORIES)), np.int64)
    empty: Any = {name: np.zeros(0) for name in ("flops", "server_flops")}
    empty |= {name: np.zeros(0, np.int64) for name in ("entry", "served")}
    time = small_timing().phase(
        0, PLAN, "train", 0.0, Traffic(**empty, down_bytes=none, up_bytes=none, lost=np.zeros(0, np.bool_))
    )
    assert (time.seconds, time.straggler, time.client_s.size) == (0.0, None, 0)


@given(st.integers(0, 10_000), st.permutations([0, 1, 2]))
def test_fading_and_failures_are_functions_of_round_and_client(round: int, order: list[int]):
    """Asking again, in another order of clients, gives every client the same luck."""
    timing = small_timing(rate_sigma=0.5, failure_probability=0.5, seed=3)
    plain, mixed = RoundPlan(client=[0, 1, 2]), RoundPlan(client=order)
    np.testing.assert_array_equal(timing.lost(round, plain)[order], timing.lost(round, mixed))
    for name, values in timing.rates(round, plain).items():
        np.testing.assert_array_equal(values[order], timing.rates(round, mixed)[name])


def test_fading_has_mean_one_and_failures_their_probability():
    """Over many rounds the factor averages to one, and clients are lost as often as stated; speeds do not fade."""
    timing = small_timing(rate_sigma=0.5, failure_probability=0.2)
    plan = RoundPlan(client=[0, 1, 2])
    factors = np.array([timing.rates(round, plan)["uplink_bps"] / timing.uplink_bps for round in range(2000)])
    lost = np.array([timing.lost(round, plan) for round in range(2000)])
    assert abs(factors.mean() - 1) < 4 * factors.std() / np.sqrt(factors.size)
    assert abs(np.log(factors).std() - 0.5) < 0.02
    assert abs(lost.mean() - 0.2) < 4 * np.sqrt(0.16 / lost.size)
    np.testing.assert_array_equal(timing.rates(5, plan)["device_flops"], timing.device_flops)


def test_a_faded_phase_takes_the_measured_rates():
    """What a round charges and what it reports as measured agree."""
    timing = small_timing(rate_sigma=0.5)
    time, rates = timing.phase(4, PLAN, "x", 0.0, traffic()), timing.rates(4, PLAN)
    np.testing.assert_allclose(time.up_s, 8 * np.array([750, 4000]) / rates["uplink_bps"][[2, 0]])
    np.testing.assert_allclose(time.down_s, 8 * np.array([1000, 2000]) / rates["downlink_bps"][[2, 0]])


def test_without_randomness():
    """By default nobody is lost, nothing fades, and there are no conflicts."""
    timing = small_timing()
    assert not timing.lost(0, PLAN).any()
    assert not timing.conflicts(0, PLAN).any()
    assert set(timing.rates(0, PLAN)) == set(RATES) == set(no_rates(3))
    assert np.isnan(no_rates(3)["uplink_bps"]).all()


def test_from_a_network():
    """Rates to the chosen server are the network's; the link behind it limits the way to the fed server."""
    network = EdgeNetwork.random(2, 4, seed=0)
    network = network.replace(coverage=np.ones_like(network.coverage))
    timing = EdgeTiming.from_network(network, server=1, fed_rate_bps=1e6)
    np.testing.assert_array_equal(timing.uplink_bps, network.uplink_rate_bps[:, 1])
    np.testing.assert_array_equal(timing.fed_downlink_bps, np.minimum(network.downlink_rate_bps[:, 1], 1e6))
    np.testing.assert_array_equal(timing.device_power_w, network.device_power_w)
    assert timing.server_flops == network.server_flops[1]
    assert timing.server_fed_uplink_bps == 1e6
    assert EdgeTiming.from_network(network).server_fed_uplink_bps == network.cloud_rate_bps[0]
    with pytest.raises(InvalidProblemError, match="server = 2: expected an integer from 0 to 1"):
        EdgeTiming.from_network(network, server=2)
    cut_off = network.replace(coverage=network.coverage & (np.arange(4) != 2)[:, None])
    with pytest.raises(InvalidProblemError, match="device 2 has no link"):
        EdgeTiming.from_network(cut_off)


def test_from_a_problem():
    """Speeds and rates are the problem's."""
    problem = SplitTraining.random(num_devices=4, num_layers=5, seed=1)
    timing = EdgeTiming.from_problem(problem)
    assert timing.num_clients == 4
    for name in (*RATES, "server_flops", "server_fed_uplink_bps", "server_fed_downlink_bps"):
        np.testing.assert_array_equal(getattr(timing, name), getattr(problem, name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uplink_bps": [1e6, 0.0, 1e6]}, r"uplink_bps\[1\]"),
        ({"uplink_bps": [1e6, 1e6]}, "uplink_bps"),
        ({"server_flops": -1.0}, "server_flops"),
        ({"failure_probability": 1.5}, "failure_probability = 1.5"),
        ({"rate_sigma": -0.1}, "rate_sigma"),
        ({"timed": frozenset({"letters"})}, "timed: 'letters'"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_fields_are_refused(changes: dict[str, Any], message: str):
    """The message names the field."""
    with pytest.raises(InvalidProblemError, match=message):
        small_timing(**changes)


def test_unknown_clients_are_refused():
    """A plan for a client that the timing does not know names the entry."""
    with pytest.raises(InvalidProblemError, match=r"client\[1\] = 3: the timing knows clients 0 to 2"):
        small_timing().lost(0, RoundPlan(client=[0, 3]))
