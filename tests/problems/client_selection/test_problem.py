"""`ClientSelection`, `SelectionPlan` and the scenario: the objective by its definition, every refusal, files."""

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt import EdgeNetwork
from edgeopt.errors import InvalidFileError, InvalidProblemError
from edgeopt.problems import ClientSelection, SelectionPlan
from edgeopt.problems.client_selection.replay import jain_index
from edgeopt.problems.client_selection.scenario import draw_scenarios, stationary
from edgeopt.series import TimeSeries
from tests.solvers.client_selection.instances import hand_made, random_plan, random_problem, simulate

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=50)


# --- truth -------------------------------------------------------------------------------------------------------


@given(seeds)
@few
def test_the_report_is_what_the_plain_model_says(seed: int):
    """Objective, rates, times, fairness, staleness and bytes of random plans equal those of plain Python."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    picks = random_plan(problem, rng)
    played = simulate(problem, picks)
    plan = SelectionPlan.from_lists(picks)
    assert problem.violations(plan) == ()
    assert problem.objective(plan) == pytest.approx(played.objective, abs=1e-12)
    report = problem.report(plan)
    np.testing.assert_allclose(report.reward, played.reward, atol=1e-12)
    np.testing.assert_allclose(report.round_s, played.round_s, atol=1e-12)
    np.testing.assert_array_equal(report.conflicts, played.conflicts)
    total = problem.rounds * problem.picks.sum()
    assert report.conflict_rate == pytest.approx(np.sum(played.conflicts) / total)
    busy = draw_scenarios(problem, [problem.seed]).busy[0]
    flat = [(t, s, c) for t, row in enumerate(picks) for s, chosen in enumerate(row) for c in chosen]
    assert report.busy_rate == pytest.approx(np.mean([busy[t, c] for t, _, c in flat]))
    collide = [sum(c in other for other in picks[t]) > 1 for t, _, c in flat]
    assert report.collision_rate == pytest.approx(np.mean(collide))
    assert report.delivery_rate == pytest.approx(len(played.delivered) / total)
    counts = np.bincount([c for *_, c in played.delivered], minlength=problem.num_clients)
    np.testing.assert_array_equal(report.deliveries, counts)
    assert report.jain_index == pytest.approx(counts.sum() ** 2 / (len(counts) * max(1, (counts**2).sum())))
    payload = problem.payload_bits / 8
    assert report.bytes_sent == pytest.approx(played.sent * payload)
    assert report.bytes_wasted == pytest.approx((played.sent - len(played.delivered)) * payload)
    stale = [
        t - max((at for at, _, who in played.delivered if who == c and at <= t), default=-1)
        for t in range(problem.rounds)
        for c in range(problem.num_clients)
    ]
    assert report.mean_staleness == pytest.approx(np.mean(stale))
    assert report.max_staleness == max(stale)
    assert report.mean_round_s == pytest.approx(np.mean(played.round_s))
    assert report.tail_round_s == pytest.approx(np.quantile(played.round_s, 0.95))
    np.testing.assert_allclose(report.total_s, np.sum(played.round_s, axis=0))


def test_a_conflict_by_hand():
    """Both servers pick client 1: in `fail` both wait 4 s for nothing; in `share` 1 + 2 s, and both get the update."""
    plan = SelectionPlan([[[1], [1]], [[0], [1]]])
    fail, share = hand_made(), hand_made(mode="share")
    assert fail.report(plan).reward.tolist() == [[-2.0, -2.0], [0.5, 0.5]]
    # round 0: 1 - 3/4 - 1; round 1: server 0 has a new client, server 1 gets client 1 again after half a cycle
    assert share.report(plan).reward.tolist() == [[-0.75, -0.75], [0.5, 0.0]]
    assert share.report(plan).bytes_wasted == 0.0
    assert fail.report(plan).bytes_wasted == 2 * 1e6 / 8


@given(seeds)
@few
def test_names_of_clients_do_not_matter(seed: int):
    """Renumbering the clients of a problem whose chance is recorded leaves the objective as it is."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, rate_sigma=0.0, regime_transition=None, busy_probability=None)
    order = rng.permutation(problem.num_clients)
    other = problem.replace(
        coverage=problem.coverage[:, order], compute_s=problem.compute_s[order], rate_bps=problem.rate_bps[..., order],
        busy=None if problem.busy is None else problem.busy[:, order],
    )  # fmt: skip
    picks = random_plan(problem, rng)
    new_name = np.argsort(order)
    renamed = [[new_name[chosen].tolist() for chosen in row] for row in picks]
    value = problem.objective(SelectionPlan.from_lists(picks))
    assert other.objective(SelectionPlan.from_lists(renamed)) == pytest.approx(value, abs=1e-12)


def test_violations_name_round_and_server():
    """Clients out of coverage, doubles and wrong numbers are listed by row, with how many."""
    problem = hand_made(picks=[2, 1])
    plan = SelectionPlan([[[0, 1], [0, -1]], [[1, 1], [1, 2]]])
    found = [(v.constraint, v.index, v.amount, v.message) for v in problem.violations(plan)]
    assert found == [
        ("coverage", 1, 1.0, "round 0: server 1 picks client 0, which it does not cover"),
        ("double", 2, 1.0, "round 1: server 0 picks client 1 twice"),
        ("number", 3, 1.0, "round 1: server 1 picks 2 clients, expected 1"),
    ]
    assert not problem.is_feasible(plan)
    assert np.isfinite(problem.objective(plan))  # told apart from being worthless


@pytest.mark.parametrize("call", ["objective", "violations", "report"])
def test_solutions_of_the_wrong_kind_are_refused(call: str):
    """Type, shape and range are checked before anything is said about a plan."""
    problem = hand_made()
    with pytest.raises(InvalidProblemError, match="expected a SelectionPlan, got list"):
        getattr(problem, call)([[[0], [1]]] * 2)
    with pytest.raises(InvalidProblemError, match=r"picks: expected shape \[2, 2, any\], got \[1, 2, 1\]"):
        getattr(problem, call)(SelectionPlan([[[0], [1]]]))
    with pytest.raises(InvalidProblemError, match=r"picks\[1, 0, 0\] = 3: expected a client from 0 to 2"):
        getattr(problem, call)(SelectionPlan([[[0], [1]], [[3], [1]]]))


def test_jain_index_of_nothing_is_zero():
    assert jain_index(np.zeros(3)) == 0.0


# --- chance ------------------------------------------------------------------------------------------------------


def test_the_seed_decides_and_episodes_do_not_mix():
    """The same seed gives the same episode alone and among others; another seed another one; other draws stay."""
    problem = ClientSelection.random(num_clients=20, rounds=30, seed=3)
    alone, among = draw_scenarios(problem, [7]), draw_scenarios(problem, [5, 7])
    for name in ("regime", "busy", "fading"):
        np.testing.assert_array_equal(getattr(alone, name)[0], getattr(among, name)[1])
        assert (getattr(among, name)[0] != getattr(among, name)[1]).any()
    longer = draw_scenarios(problem.replace(rounds=40), [7])
    np.testing.assert_array_equal(longer.regime[:, :30], alone.regime)
    without = draw_scenarios(problem.replace(rate_sigma=0.0), [7])
    np.testing.assert_array_equal(without.busy, alone.busy)
    assert (without.fading == 1).all()


def test_regimes_move_as_the_matrix_says():
    """Over many draws: moves, busy shares, the stationary start and the mean of fading are those of the problem."""
    transition = [[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.0, 0.7]]
    problem = hand_made(rounds=400, regime_transition=transition, busy_probability=[0.1, 0.5, 0.9], rate_sigma=0.5)
    drawn = draw_scenarios(problem, range(200))
    start = stationary(problem.regime_transition)
    np.testing.assert_allclose(start @ problem.regime_transition, start, atol=1e-12)
    np.testing.assert_allclose(np.bincount(drawn.regime.ravel(), minlength=3) / drawn.regime.size, start, atol=0.01)
    for r in range(3):
        before = drawn.regime[:, :-1] == r
        after = np.bincount(drawn.regime[:, 1:][before], minlength=3) / before.sum()
        np.testing.assert_allclose(after, transition[r], atol=0.01)
        assert drawn.busy[drawn.regime == r].mean() == pytest.approx(problem.busy_probability[r], abs=0.01)
    np.testing.assert_allclose(np.bincount(drawn.regime[:, 0].ravel(), minlength=3) / 600, start, atol=0.08)
    assert drawn.fading.mean() == pytest.approx(1.0, abs=0.01)
    assert np.log(drawn.fading).std() == pytest.approx(0.5, abs=0.01)


def test_two_closed_regimes_start_evenly_mixed():
    """A chain with several stationary distributions still gives one of them."""
    np.testing.assert_allclose(stationary(np.eye(2)), [0.5, 0.5])


def test_recorded_tables_are_played_as_they_are():
    """The first rounds of longer tables are used, round by round."""
    busy = np.array([[True, False, False], [False, True, False], [True, True, True]])
    problem = hand_made(busy=busy, rate_bps=np.arange(1.0, 19.0).reshape(3, 2, 3) * 1e5)
    np.testing.assert_array_equal(draw_scenarios(problem, [4, 5]).busy, [busy[:2]] * 2)
    np.testing.assert_array_equal(problem.rate_at(1), [[7e5, 8e5, 0.0], [0.0, 11e5, 12e5]])


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picks": [1, 3]}, "picks[1] = 3: expected at most 2, the clients that server 1 covers"),
        ({"picks": 4}, "picks[0] = 4: expected at most 2, the clients that server 0 covers"),
        ({"picks": 0}, "picks[0] = 0: expected an integer >= 1"),
        ({"picks": [1, 1, 1]}, "picks: expected shape [2], got [3]"),
        (
            {"coverage": [[True, True, False], [False, True, False]], "rate_bps": 1e6},
            "coverage: client 2 is covered by no server",
        ),
        ({"coverage": np.zeros((0, 3), bool)}, "coverage: expected servers and clients, got shape [0, 3]"),
        ({"coverage": [[1, 0, 1]]}, "coverage: expected booleans, got int64"),
        ({"compute_s": [1.0, -1.0, 1.0]}, "compute_s[1] = -1.0: expected a non-negative number (s)"),
        ({"payload_bits": 0.0}, "payload_bits = 0.0: expected a positive number (bit)"),
        ({"timeout_s": np.inf}, "timeout_s = inf: expected a positive number (s)"),
        ({"rate_bps": np.zeros((2, 3))}, "rate_bps[0, 0] = 0.0: expected a positive number (bit/s) where covered"),
        ({"rate_bps": np.zeros((2, 2, 3))}, "rate_bps[0, 0, 0] = 0.0: expected a positive number (bit/s) where covered"),
        ({"rate_bps": np.ones((1, 2, 3))}, "rate_bps: 1 recorded rounds: expected at least rounds = 2"),
        ({"rate_bps": np.ones((3, 3))}, "rate_bps: expected shape [2, 3], got [3, 3]"),
        ({"busy": np.zeros((1, 3), bool)}, "busy: 1 recorded rounds: expected at least rounds = 2"),
        ({"busy": np.zeros((2, 2), bool)}, "busy: expected shape [any, 3], got [2, 2]"),
        ({"rounds": 0}, "rounds = 0: expected an integer >= 1"),
        ({"seed": -1}, "seed = -1: expected an integer >= 0"),
        ({"mode": "wait"}, "mode = 'wait': expected 'fail' or 'share'"),
        ({"rate_sigma": -0.1}, "rate_sigma = -0.1: expected a non-negative number"),
        ({"rate_sigma": 40.0}, "rate_sigma = 40.0: expected at most 10"),
        ({"fairness_weight": 1e-300}, "fairness_weight = 1e-300: expected 0 or a magnitude from 1e-50 to 1e"),
        ({"fairness_weight": -1.0}, "fairness_weight = -1.0: expected a non-negative number"),
        ({"busy_probability": [0.1]}, "regime_transition, busy_probability: expected both or neither"),
        (
            {"regime_transition": [[0.9, 0.2], [0.5, 0.5]], "busy_probability": [0.1, 0.2]},
            "regime_transition[0] sums to 1.1: expected probabilities that sum to 1",
        ),
        (
            {"regime_transition": [[1.5, -0.5], [0.5, 0.5]], "busy_probability": [0.1, 0.2]},
            "regime_transition[0, 1] = -0.5: expected a non-negative number",
        ),
        (
            {"regime_transition": [[0.5, 0.5]], "busy_probability": [0.1]},
            "regime_transition: expected a square matrix of 1 to 127 regimes, got [1, 2]",
        ),
        (
            {"regime_transition": [[1.0]], "busy_probability": [1.5]},
            "busy_probability[0] = 1.5: expected a probability",
        ),
        (
            {"regime_transition": [[1.0]], "busy_probability": [0.5], "busy": np.zeros((2, 3), bool)},
            "busy: expected a table or regimes, not both",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(changes: dict[str, Any], message: str):
    """Every refusal names field, index, value and what was expected."""
    with pytest.raises(InvalidProblemError, match=re.escape(message)):
        hand_made(**changes)


def test_arrays_are_copied_and_locked():
    """Changing the caller's array does not change the problem, whose own arrays are read-only; rates elsewhere are 0."""
    rate = np.full((2, 3), 1e6)
    problem = hand_made(rate_bps=rate)
    rate[0, 0] = 5.0
    assert problem.rate_bps.tolist() == [[1e6, 1e6, 0.0], [0.0, 1e6, 1e6]]
    for name in ("coverage", "picks", "compute_s", "rate_bps"):
        assert not getattr(problem, name).flags.writeable


# --- plans -------------------------------------------------------------------------------------------------------


@given(seeds)
@few
def test_plans_come_back_from_masks_lists_and_json(seed: int):
    """Masks, lists and JSON give the same plan."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    plan = SelectionPlan.from_lists(random_plan(problem, rng))
    assert SelectionPlan.from_mask(plan.mask(problem.num_clients)) == plan
    assert problem.solution_from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.num_rounds == problem.rounds
    assert plan.picks.dtype == np.int32
    assert not plan.picks.flags.writeable


def test_order_and_padding_do_not_matter():
    assert SelectionPlan([[[3, -1, 1]]]) == SelectionPlan([[[1, 3, -1]]])
    assert SelectionPlan([[[1]]]) != SelectionPlan([[[2]]])
    assert SelectionPlan([[[1]]]) != [[[1]]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelectionPlan([[1, 2]]), "picks: expected shape [any, any, any], got [1, 2]"),
        (lambda: SelectionPlan([[[-2]]]), "picks[0, 0, 0] = -2: expected an integer >= -1"),
        (lambda: SelectionPlan([[[0.5]]]), "picks[0, 0, 0] = 0.5: expected an integer >= -1"),
        (lambda: SelectionPlan.from_mask([[0, 1]]), "picked: expected booleans [rounds, servers, clients], got int64 [1, 2]"),
        (lambda: SelectionPlan.from_lists([[[0], [1]], [[0]]]), "picks: expected one list per server in every round"),
        (lambda: SelectionPlan.from_lists([1, 2]), "picks: expected a list of client ids per round and server"),
        (lambda: SelectionPlan.from_lists([[["a"]]]), "picks: expected a list of client ids"),
        (lambda: hand_made().solution_from_json({}), "solution: picks: value is missing: expected one list per round"),
        (lambda: hand_made().solution_from_json({"picks": []}), "picks: expected shape [2, 2, any], got [0, 0, 0]"),
    ],
)  # fmt: skip
def test_bad_plans_are_named(make: Any, message: str):
    with pytest.raises(InvalidProblemError, match=re.escape(message)):
        make()


# --- networks and random problems --------------------------------------------------------------------------------


def test_a_problem_from_a_network_takes_its_coverage_and_rates():
    network = EdgeNetwork.random(4, 30, seed=2)
    problem = ClientSelection.from_network(network, picks=[1, 2, 3, 4], work_flops=2e12, payload_bits=1e7, rounds=5)
    np.testing.assert_array_equal(problem.coverage, network.coverage.T)
    np.testing.assert_array_equal(problem.rate_bps, network.uplink_rate_bps.T)
    np.testing.assert_allclose(problem.compute_s, 2e12 / network.device_flops)
    assert problem.picks.tolist() == [1, 2, 3, 4]
    seconds = (problem.compute_s + 1e7 / np.where(problem.coverage, problem.rate_bps, np.inf))[problem.coverage]
    assert problem.timeout_s == pytest.approx(1.5 * np.quantile(seconds, 0.9))
    assert ClientSelection.from_network(network, timeout_s=9.0).timeout_s == 9.0


def test_networks_that_do_not_fit_are_refused():
    network = EdgeNetwork.random(2, 10, seed=2)
    lone = np.ones((10, 2), bool)
    lone[4] = False
    with pytest.raises(InvalidProblemError, match="client 4 is covered by no server"):
        ClientSelection.from_network(network.replace(coverage=lone))
    with pytest.raises(InvalidProblemError, match="expected a server that covers a client"):
        ClientSelection.from_network(network.replace(coverage=np.zeros((10, 2), bool)))
    with pytest.raises(InvalidProblemError, match=re.escape("uplink_rate_bps[0, 0] = 0.0: expected a positive rate")):
        ClientSelection.from_network(network.replace(uplink_bandwidth_hz=0.0))
    with pytest.raises(InvalidProblemError, match=r"picks\[0\] = 11"):
        ClientSelection.from_network(network, picks=11)
    with pytest.raises(InvalidProblemError, match="picks = 11: expected an integer from 1 to 10"):
        ClientSelection.random(network=network, picks=11)


@pytest.mark.parametrize(("servers", "clients"), [(3, 30), (20, 30), (20, 1000)])
def test_random_problems_of_all_sizes(servers: int, clients: int):
    """Every server has enough clients, also where there are more servers than clients nearby; equal seeds, equal problems."""
    problem = ClientSelection.random(num_servers=servers, num_clients=clients, picks=4, seed=1)
    assert (problem.num_covered >= 4).all()
    assert (problem.num_servers, problem.num_clients) == (servers, clients)
    assert problem == ClientSelection.random(num_servers=servers, num_clients=clients, picks=4, seed=1)
    assert problem != ClientSelection.random(num_servers=servers, num_clients=clients, picks=4, seed=2)


# --- plumbing ----------------------------------------------------------------------------------------------------

REGIMES = {"regime_transition": [[0.9, 0.1], [0.2, 0.8]], "busy_probability": [0.1, 0.8]}


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize("changes", [{}, REGIMES, {"busy": [[True, False, True]] * 2, "mode": "share", "seed": 2**40}])
def test_files_round_trip(tmp_path: Any, suffix: str, changes: dict[str, Any]):
    """A saved problem is read back equal, with the same fingerprint and the same chance."""
    problem = hand_made(rate_sigma=0.2, **changes)
    problem.save(tmp_path / f"problem{suffix}")
    again = edgeopt.load(tmp_path / f"problem{suffix}")
    assert again == problem
    assert again.fingerprint() == problem.fingerprint()
    plan = SelectionPlan([[[0], [1]], [[1], [2]]])
    assert again.objective(plan) == problem.objective(plan)


@pytest.mark.parametrize("name", ["coverage", "rate_bps", "timeout_s", "mode"])
def test_files_that_lack_something_are_refused(name: str):
    values, arrays = hand_made().to_data()
    values.pop(name, None)
    arrays.pop(name, None)
    with pytest.raises(InvalidFileError, match=f"{name}: .* is missing"):
        ClientSelection.from_data(values, arrays)


@pytest.mark.parametrize("mode", ["fail", "share"])
def test_tiny_problems_take_the_same_branches(mode: str):
    tiny = hand_made(mode=mode).tiny_like()
    assert tiny.mode == mode
    assert tiny.rounds * tiny.num_servers < 10


def test_equality_looks_at_everything():
    base = hand_made()
    assert base == hand_made()
    for changes in ({"seed": 1}, {"mode": "share"}, {"picks": [1, 2]}, REGIMES, {"rate_bps": 2e6}):
        assert base != hand_made(**changes)
    assert base != 1


def test_describe_says_sizes_and_modes():
    facts = hand_made(**REGIMES, rate_sigma=0.3).describe()
    assert (facts["servers"], facts["clients"], facts["rounds"], facts["picks"]) == (2, 3, 2, "1, 1")
    assert facts["availability"] == "2 hidden regimes, busy with 0.1, 0.8"
    assert facts["rates"] == "fading"
    assert facts["mean servers that cover a client"] == pytest.approx(4 / 3)
    recorded = hand_made(busy=np.zeros((2, 3), bool), rate_bps=np.full((2, 2, 3), 2e6)).describe()
    assert (recorded["availability"], recorded["rates"]) == ("recorded", "recorded")
    assert recorded["mean rate, bit/s"] == 2e6
    assert (hand_made().describe()["availability"], hand_made().describe()["rates"]) == ("always", "constant")


def test_measured_rates_become_tables():
    """Rounds have mean rates; who has no link in a round, or cannot be picked when it begins, is busy."""
    rates = TimeSeries(names=["a", "b"], indptr=[0, 2, 4], time_s=[0, 5, 0, 10], value=[8.0, 4, 2, 0], period_s=20.0)
    problem = ClientSelection.from_rates(
        rates, round_s=10, picks=1, payload_bits=8, coverage=[[True, True], [False, True]]
    )
    assert problem.rounds == 2
    assert problem.rate_bps.tolist() == [[[6, 2], [0, 2]], [[4, 1], [0, 1]]]  # without a link: the mean of all time
    assert problem.busy.tolist() == [[False, False], [False, True]]
    when = TimeSeries.from_table([[1, 0], [0, 1]], 10.0, quantity="availability")
    busy = ClientSelection.from_rates(rates, round_s=10, available=when, picks=1).busy
    assert busy.tolist() == [[False, True], [True, True]]
    with pytest.raises(InvalidProblemError, match="rates: '1' never has a link, expected a rate above 0"):
        ClientSelection.from_rates(TimeSeries.constant([1, 0]), round_s=1)
    with pytest.raises(InvalidProblemError, match="available: 1 columns, expected 2"):
        ClientSelection.from_rates(rates, round_s=1, available=when.take([0]))
