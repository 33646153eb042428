"""Virtual time that follows a trace: seconds by hand, a run that resumes, planners that are told what is past."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import AvailableOnly, EdgeNetwork, Feedback, LinkBudget, RoundPlan, StaticPlanner
from edgeopt.energy import EnergyPlanner
from edgeopt.errors import InvalidProblemError
from edgeopt.schedule import at_time
from edgeopt.series import TimeSeries
from edgeopt.training import EdgeTiming, FedAvg, Sgd, train
from tests.training.costs.test_timing import PLAN, traffic
from tests.training.small_tasks import small_plan, small_task, small_timing

STEPS = TimeSeries(
    names=["a", "b", "c"],
    indptr=[0, 1, 3, 5],
    time_s=[0, 0, 2, 0, 1],
    value=[1e6, 4000, 1e6, 0, 2e4],
    period_s=[1, 4, 3],
)


def test_a_phase_by_hand():
    """Client 1 sends 6 kbit from 2.504 s on and client 2 has no link for the first of every three seconds."""
    timing = small_timing(uplink=STEPS).at(1.0)
    time = timing.phase(0, PLAN, "train", 0.5, traffic())  # clients 1 and 2 begin at 1.5 s
    np.testing.assert_allclose(time.down_s, [0.004, 0.012])
    np.testing.assert_allclose(time.compute_s, [1.5, 1 / 3])
    first = 6000 / 1e6  # from 3.004 s on: in its second step of 1 Mbit/s
    begun = 1.5 + 0.012 + 1 / 3
    second = (3 - begun) + 1 + (32000 - (3 - begun) * 2e4) / 2e4
    np.testing.assert_allclose(time.up_s, [first, second])
    np.testing.assert_allclose(time.energy_j, [0.2 * first + 3e6 * 1e-10, 0.3 * second + 1e6 * 1e-10])
    assert time.carbon_g is None


def test_constant_series_change_nothing():
    """Rates that stand in a series and never change cost what the same numbers cost."""
    plain = small_timing(rate_sigma=0.4, seed=3)
    series = {"uplink": TimeSeries.constant(plain.uplink_bps), "downlink": TimeSeries.constant(plain.downlink_bps)}
    other = plain.replace(**series).at(123.25)
    for link in ("edge", "fed"):
        one, two = (timing.phase(4, PLAN, "x", 0.5, traffic(link=link)) for timing in (plain, other))
        for name in ("down_s", "compute_s", "up_s", "energy_j"):
            np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-9)
    for name, rate in plain.rates(4, PLAN).items():
        np.testing.assert_allclose(rate, other.rates(4, PLAN)[name])


def test_the_fed_link_is_no_faster_than_it_is():
    """There, a trace counts up to the rate of the link."""
    timing = small_timing(uplink=TimeSeries.from_table([[9e9] * 3, [1e3] * 3], 1.0))
    time = timing.phase(0, PLAN, "fed", 0.0, traffic(link="fed", flops=np.zeros(2)))
    np.testing.assert_allclose(time.up_s, [8 * 750 / 2.5e5, 8 * 4000 / (5e5 / 3)])


def test_rates_are_those_at_the_beginning():
    """What a round measures is what was when it began; nan without a link."""
    plan = RoundPlan(client=[0, 1, 2])
    assert small_timing(uplink=STEPS).rates(0, plan)["uplink_bps"].tolist() == pytest.approx(
        [1e6, 4000, np.nan], nan_ok=True
    )
    assert small_timing(uplink=STEPS).at(2.5).rates(0, plan)["uplink_bps"].tolist() == [1e6, 1e6, 2e4]
    assert small_timing(uplink=STEPS).at(2.5).rates(0, plan)["fed_uplink_bps"].tolist() == [5e5, 2.5e5, 2e4]


def test_carbon_by_hand():
    """Energy is spent evenly while a client computes and while it sends; a kWh is 3.6 MJ."""
    carbon = TimeSeries.from_table([[360.0], [720.0]], 1.0, quantity="carbon")
    timing = small_timing(carbon=carbon, joules_per_flop=1e-6).at(0.5)
    time = timing.phase(0, PLAN, "x", 0.0, traffic())
    (working, sending) = 3.0, 0.2 * 0.012  # client 1: computes from 0.504 to 2.004 s, then sends
    mean = (0.496 * 360 + 1.0 * 720 + 0.004 * 360) / 1.5
    assert time.carbon_g[0] == pytest.approx((working * mean + sending * 360) / 3.6e6)
    each = small_timing(carbon=TimeSeries.constant([0, 1, 1e3], "carbon")).phase(0, PLAN, "x", 0.0, traffic())
    np.testing.assert_allclose(each.carbon_g, each.energy_j * [1, 1e3] / 3.6e6)


class Watch:
    """A planner that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Feedback | None] = []

    def plan(self, round: int, feedback: Feedback | None) -> RoundPlan:
        """Return the same plan in every round."""
        self.told.append(feedback)
        return small_plan()


def run(rounds: int, planner: Any = None, **options: Any) -> Any:
    rates = TimeSeries.random("tunnels", clients=3, mean_bps=(1e3, 1e4), seed=1)
    carbon = TimeSeries.from_table([[100.0], [500.0]], 1.0, quantity="carbon")
    timing = small_timing(uplink=rates, carbon=carbon)
    planner = StaticPlanner(small_plan()) if planner is None else planner
    return train(small_task(), FedAvg(Sgd(0.1)), planner, timing, rounds=rounds, **options), timing


def test_rounds_follow_the_trace():
    """Rounds that send the same take unequal times; each begins where the one before ended; planners know the past."""
    watch = Watch()
    history, timing = run(6, watch)
    assert len(set(history.column("round_seconds").round(6).tolist())) > 1
    now = np.concatenate([[0], history.column("seconds")])
    for feedback, start, end in zip(watch.told[1:], now, now[1:], strict=False):
        assert feedback.now_s == pytest.approx(end)
        np.testing.assert_array_equal(feedback.uplink_bps, timing.at(start).rates(0, small_plan())["uplink_bps"])
    grams = history.column("carbon_g")
    assert (np.diff(grams, prepend=0) > 0).all()
    low, high = 100 * history.column("energy_j") / 3.6e6, 500 * history.column("energy_j") / 3.6e6
    assert ((low <= grams * (1 + 1e-9)) & (grams < high)).all()


def test_a_resumed_run_is_the_same(tmp_path: Path):
    """Where a run has stopped, the trace goes on."""
    whole, _ = run(5, Watch())
    run(2, Watch(), checkpoint=tmp_path / "a.safetensors")
    later = Watch()
    again, _ = run(5, later, checkpoint=tmp_path / "a.safetensors", resume=True)
    for name in ("seconds", "carbon_g", "energy_j", "train_loss"):
        np.testing.assert_array_equal(whole.column(name), again.column(name))
    assert later.told[0].now_s == whole.column("seconds")[1]


def test_budgets_follow_the_trace():
    """A slot carries what the link has when the round begins."""
    planner = LinkBudget(StaticPlanner(RoundPlan(client=[0, 1, 2])), small_timing(uplink=STEPS), slot_s=8.0)
    assert planner.plan(0).budget_bytes.tolist() == [1e6, 4000, np.inf]
    told = Feedback(round=0, plan=PLAN, seconds=2.5, now_s=2.5)
    assert planner.plan(1, told).budget_bytes.tolist() == [1e6, 1e6, 2e4]


def test_a_timing_without_time_stays():
    """What does not change over time needs no method for it."""
    timing, other = small_timing(), object()
    assert at_time(timing, 5.0) is timing
    assert at_time(other, 5.0) is other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uplink": STEPS.take([0, 1])}, "uplink: 2 columns, expected 3: see TimeSeries.for_clients"),
        ({"carbon": STEPS}, "carbon: expected a TimeSeries of the quantity carbon, got"),
        ({"downlink": TimeSeries.constant([1, 0, 1])}, "downlink: '1' never has a link, expected a rate above 0"),
        ({"now_s": -1}, "now_s = -1.0: expected a non-negative number"),
    ],
)
def test_bad_series(options: dict[str, Any], message: str):
    """One line that says which series and why."""
    with pytest.raises(InvalidProblemError, match=message):
        small_timing(**options)


def test_from_a_network():
    """The fed link carries what it can; the network's own rates are those of links without a trace."""
    network = EdgeNetwork.random(1, 3, seed=0)
    timing = EdgeTiming.from_network(network, uplink=STEPS, fed_rate_bps=3e6)
    assert (timing.fed_uplink_bps == 3e6).all()
    assert (timing.fed_downlink_bps == np.minimum(network.downlink_rate_bps[:, 0], 3e6)).all()


def test_rounds_wait_for_clients():
    """While nobody can be picked rounds last as long as they are said to, and then training goes on."""
    when = TimeSeries.from_table([[1] * 3, [0] * 3], 0.02, quantity="availability")
    timing = small_timing(carbon=TimeSeries.constant(1, "carbon"), idle_s=0.003)
    planner = AvailableOnly(StaticPlanner(small_plan()), when)
    history = train(small_task(), FedAvg(Sgd(0.1)), planner, timing, rounds=40)
    starts = np.concatenate([[0], history.column("seconds")])[:-1]
    idle = history.column("planned") == 0
    assert 0 < idle.sum() < 40
    np.testing.assert_array_equal(idle, when.at(starts, np.zeros(40, int)) == 0)
    assert history.column("round_seconds")[idle] == pytest.approx(0.003)


def test_clients_tell_what_they_have_spent():
    """Energy by entry, which adds up to that of the row; a run within batteries ends when they are empty."""
    watch = Watch()
    history, _ = run(3, watch)
    for feedback, total in zip(watch.told[1:], np.diff(history.column("energy_j"), prepend=0), strict=False):
        assert feedback.client_energy_j.sum() == pytest.approx(total)
    timing = small_timing()
    once = train(small_task(), FedAvg(Sgd(0.1)), StaticPlanner(small_plan()), timing, rounds=1, on_round=None)
    each = sum(phase.energy_j for phase in once.last.phases)
    planner = EnergyPlanner(picks=3, energy_j=each, battery_j=each * [2.5, 1, 3], batch_size=2, local_steps=2)
    limited = train(small_task(), FedAvg(Sgd(0.1)), planner, timing, rounds=5)
    assert limited.column("planned").tolist() == [3, 2, 1, 0, 0]
