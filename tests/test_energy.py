"""Picks under limits of energy and carbon: against all subsets, and in runs."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt import AvailableOnly, Feedback, RoundPlan, StaticPlanner
from edgeopt.energy import EnergyPlanner, best_picks
from edgeopt.errors import InvalidProblemError
from edgeopt.series import TimeSeries

COSTS = st.one_of(st.integers(0, 6).map(float), st.floats(0.1, 9), st.just(np.inf))


def brute_force(p: Any, e: Any, most: int, g: Any, limit: Any, weight: Any) -> tuple[int, float]:
    """Return priority and weighed cost of the best of all subsets."""
    best = (0, 0.0)
    for size in range(most + 1):
        for chosen in itertools.combinations(range(len(p)), size):
            if any(p[c] == 0 or np.isinf(e[c]) for c in chosen):
                continue
            spent = [sum(e[c] for c in chosen if g[c] == group) for group in range(len(limit))]
            if all(s <= top * (1 + 1e-12) for s, top in zip(spent, limit, strict=True)):
                bill = sum(w * s for w, s in zip(weight, spent, strict=True))
                best = min(best, (-sum(p[c] for c in chosen), bill))
    return -best[0], best[1]


@given(st.data())
def test_no_subset_is_better(data: st.DataObject):
    """Of all subsets within the limits none has more priority, and none of as much costs less."""
    count, groups = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 3))
    p = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    e = data.draw(st.lists(COSTS, min_size=count, max_size=count))
    g = data.draw(st.lists(st.integers(0, groups - 1), min_size=count, max_size=count))
    limit = data.draw(st.lists(st.one_of(st.floats(0, 15), st.just(np.inf)), min_size=groups, max_size=groups))
    weight = data.draw(st.lists(st.floats(0, 3), min_size=groups, max_size=groups))
    most = data.draw(st.integers(0, count + 2))
    used = max(g) + 1
    chosen = best_picks(p, e, most, group=g, limit=limit[:used], weight=weight[:used]).tolist()
    value, bill = brute_force(p, e, most, g, limit[:used], weight[:used])
    assert len(set(chosen)) == len(chosen) <= most
    assert sum(p[c] for c in chosen) == value
    assert sum(weight[g[c]] * e[c] for c in chosen) == pytest.approx(bill)
    for group in range(used):
        assert sum(e[c] for c in chosen if g[c] == group) <= limit[group] * (1 + 1e-9)


def test_edges():
    """Nobody, no limit, everybody."""
    assert best_picks([], [], 3).tolist() == []
    assert best_picks([1, 1], [1.0, 2.0], 0).tolist() == []
    assert best_picks([1, 0, 2], [5.0, 1.0, 7.0], 3).tolist() == [0, 2]
    assert best_picks([1, 1, 1], [0.1, 0.2, 0.3], 3, limit=0.6).tolist() == [0, 1, 2]  # 0.6000000000000001 in floats
    with pytest.raises(InvalidProblemError, match=r"priority\[0\] = 0.5: expected an integer >= 0"):
        best_picks([0.5], [1], 1)
    with pytest.raises(InvalidProblemError, match=r"limit: expected shape \[2\], got \[3\]"):
        best_picks([1, 1], [1, 1], 1, group=[0, 1], limit=[1, 2, 3])


def test_many_clients_need_small_tables():
    """No more clients count than fit a limit, nor their number where it cannot matter: else these tables were refused."""
    rng = np.random.default_rng(0)
    chosen = best_picks(rng.integers(1, 100, 5_000), rng.uniform(1, 3, 5_000), 5_000, limit=20.0)
    assert 15 < chosen.size < 20
    dear = best_picks(np.full(20_000, 100_000), np.ones(20_000), 2, group=np.arange(20_000) % 2, limit=[np.inf, 0.5])
    assert dear.tolist() == [0, 2]
    both = best_picks([3, 3, 1, 1, 1, 1], [4.0, 5.0, 1, 1, 1, 1], 3, limit=9.5)  # number and limit forbid something
    assert both.tolist() == [0, 1]


def play(planner: Any, joules: np.ndarray, rounds: int, step_s: float = 1.0) -> list[list[int]]:
    """Return the picks of rounds that take each client the same energy every time."""
    picks, feedback = [], None
    for number in range(rounds):
        plan = planner.plan(number, feedback)
        picks.append(plan.client.tolist())
        feedback = Feedback(
            round=number, plan=plan, seconds=step_s, client_energy_j=joules[plan.client], now_s=step_s * (number + 1)
        )
    return picks


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_batteries_are_never_overdrawn(seed: int):
    """Where rounds take what was expected, nobody spends more than there is, and nobody waits who could be picked."""
    rng = np.random.default_rng(seed)
    joules, battery = rng.uniform(1, 3, 6), rng.uniform(0, 12, 6)
    picks = play(EnergyPlanner(picks=2, energy_j=joules, battery_j=battery), joules, 30)
    times = np.bincount(np.concatenate([np.array(p, int) for p in picks]), minlength=6)
    assert (times * joules <= battery * (1 + 1e-9)).all()
    assert (times == np.floor(battery / joules)).all()  # after 30 rounds all is spent
    used = [len(p) for p in picks]
    assert used == sorted(used, reverse=True)


def test_everybody_has_a_turn():
    """Who has trained less comes first, whatever it costs; then the cheaper one."""
    picks = play(EnergyPlanner(picks=2, energy_j=[3.0, 1.0, 2.0, 4.0]), np.array([3.0, 1.0, 2.0, 4.0]), 4)
    assert picks == [[1, 2], [0, 3], [1, 2], [0, 3]]


def test_what_was_measured_counts():
    """A round that has taken more than expected is expected again; what nobody measured counts as expected."""
    planner = EnergyPlanner(picks=2, energy_j=1.0 * np.ones(2), battery_j=10.0)
    plan = planner.plan(0)
    planner.plan(1, Feedback(round=0, plan=plan, seconds=1, client_energy_j=[9.5, np.nan]))
    assert planner.state()["spent_j"].tolist() == [9.5, 1.0]
    assert planner.plan(2, Feedback(round=1, plan=RoundPlan(client=[]), seconds=1)).client.tolist() == [1]


def test_clean_sites_first():
    """Among equals those whose power is clean now; sites change places, and the planner follows without looking ahead."""
    carbon = TimeSeries.from_table([[100, 500], [500, 100]], 1.0, quantity="carbon")
    planner = EnergyPlanner(picks=1, energy_j=np.ones(4), site=[0, 0, 1, 1], carbon=carbon)
    assert play(planner, np.ones(4), 4) == [[0], [2], [1], [3]]


def test_spare_power_of_sites():
    """A site gives as many joules as its spare watts give in the seconds of a round."""
    power = TimeSeries.from_table([[2.0, 0.0], [0.0, 4.0]], 1.0, quantity="power")
    planner = EnergyPlanner(picks=4, energy_j=[3.0, 2.0, 4.0, 5.0], site=[0, 0, 1, 1], power=power, round_s=2.0)
    assert play(planner, np.array([3.0, 2.0, 4.0, 5.0]), 4) == [[1], [2], [0], [3]]


def test_grams_of_a_round():
    """No round emits more than it may: by hand, with who has trained least first, and the least grams among equals."""
    carbon = TimeSeries.from_table([[360], [720]], 1.0, quantity="carbon")
    joules = np.array([1e4, 2e4, 3e4])  # 1, 2, 3 g, then twice as much
    planner = EnergyPlanner(picks=3, energy_j=joules, carbon=carbon, most_g=4.0)
    assert play(planner, joules, 4) == [[0, 1], [0], [0, 2], [1]]


def test_clean_power_of_an_empty_battery():
    """Who has nothing left is not picked where power is clean either: infinitely many joules of 0 grams are no number."""
    carbon = TimeSeries.constant([0.0, 360.0], "carbon")
    for battery in ([0.0, 5.0, 9.0], [np.inf, 5.0, 9.0]):
        planner = EnergyPlanner(
            picks=3, energy_j=np.ones(3), battery_j=battery, site=[0, 0, 1], carbon=carbon, most_g=1e-5
        )
        assert planner.plan(0).client.tolist() == [c for c in (0, 1) if battery[c] > 0]


def test_turns_count_among_those_who_can_be_picked():
    """A client that never can be picked, or costs more than a round gives, does not make all others equal."""
    for options in (
        {"battery_j": [0.5, 99.0, 99.0]},
        {"available": TimeSeries.constant([0, 1, 1], "availability")},
        {"power": TimeSeries.constant([0.5, 9.0, 9.0], "power"), "round_s": 1.0, "site": [0, 1, 2]},
    ):
        planner = EnergyPlanner(picks=1, energy_j=[1.0, 2.0, 3.0], levels=2, **options)
        assert play(planner, np.array([1.0, 2.0, 3.0]), 6) == [[1], [2]] * 3
    nobody = EnergyPlanner(picks=1, energy_j=[1.0], battery_j=0.5)
    assert len(nobody.plan(0)) == 0


def test_a_restored_planner_goes_on():
    """A checkpoint keeps what was spent."""
    joules = np.array([1.0, 2.0, 3.0])

    def new() -> EnergyPlanner:
        return EnergyPlanner(picks=1, energy_j=joules, battery_j=6.0)

    whole, first = new(), new()
    picks = play(whole, joules, 8)
    play(first, joules, 4)
    second = new()
    second.restore(first.state())
    plan = RoundPlan(client=picks[3])
    assert (
        second.plan(4, Feedback(round=3, plan=plan, seconds=1, client_energy_j=joules[plan.client])).client.tolist()
        == picks[4]
    )
    with pytest.raises(InvalidProblemError, match="state: trained: array is missing"):
        new().restore({"spent_j": joules})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"carbon": TimeSeries.constant([1, 2, 3], "carbon")}, "carbon: 3 columns, expected 2"),
        ({"power": TimeSeries.constant([1, 2], "carbon")}, "power: expected a TimeSeries of the quantity power"),
        ({"power": TimeSeries.constant([1, 2], "power")}, "round_s = 0.0: expected a positive number"),
        ({"most_g": 1.0}, "most_g = 1: expected it with carbon and without power"),
        ({"energy_j": [], "site": 0}, r"energy_j: expected at least one client, got shape \[0\]"),
        ({"site": [0, 2**31 - 1]}, r"site\[1\] = 2147483647: expected an integer from 0 to 1048575"),
        ({"energy_j": [1, 0]}, r"energy_j\[1\] = 0.0: expected a positive number \(J\)"),
    ],
)
def test_bad_options(options: dict, message: str):
    """One line that says what does not fit."""
    with pytest.raises(InvalidProblemError, match=message):
        EnergyPlanner(**{"picks": 1, "energy_j": [1, 1], "site": [0, 1]} | options)


def test_only_who_is_available():
    """Others are left out when the round begins; nobody may be left."""
    when = TimeSeries.from_table([[1, 0], [0, 0]], 10.0, quantity="availability")
    planner = AvailableOnly(StaticPlanner(RoundPlan(client=[0, 1], batch_size=[3, 4])), when)
    assert [(c.client, c.batch_size) for c in planner.plan(0)] == [(0, 3)]
    assert len(planner.plan(1, Feedback(round=0, plan=RoundPlan(client=[0]), seconds=9, now_s=12))) == 0
    with pytest.raises(InvalidProblemError, match=r"client\[0\] = 5: available has 2 columns"):
        AvailableOnly(StaticPlanner(RoundPlan(client=[5])), when).plan(0)
    with pytest.raises(InvalidProblemError, match="available: expected a TimeSeries of the quantity availability"):
        AvailableOnly(StaticPlanner(RoundPlan(client=[5])), TimeSeries.constant(1))
