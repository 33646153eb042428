"""Virtual time under contention for clients: training sees what the problem's environment says, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt import EdgeNetwork, RoundPlan, Schedule
from edgeopt.errors import InvalidProblemError
from edgeopt.models import mlp
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.series import TimeSeries
from edgeopt.solvers.client_selection import RlCrp, SelectionPlanner
from edgeopt.training import ArrayData, Partition, Sgd, Task, train
from edgeopt.training.algorithms.multi_server import MultiServerFedAvg
from edgeopt.training.costs.selection_timing import SelectionTiming, selection_schedule, update_cost
from edgeopt.training.costs.timing import Traffic
from edgeopt.training.messages import CATEGORIES
from tests.training.costs.as_reported import assert_as_reported, plan_of

LOCAL = ("random", "fastest", "round-robin", "power-of-choice")


def task_of(num_clients: int) -> Task:
    """Return a linear classifier of three classes; every client has two samples."""
    generator = torch.Generator().manual_seed(0)
    data = ArrayData(
        torch.randn(2 * num_clients, 4, generator=generator), torch.arange(2 * num_clients) % 3, 3, "random"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mlp(4, (), 3)
    own = tuple(np.array([2 * c, 2 * c + 1]) for c in range(num_clients))
    return Task(model=model, train=data, partition=Partition(own), test=data)


def run(problem: ClientSelection, planner):
    """Train for all rounds of a problem; return the records of the rounds and the history."""
    records = []
    history = train(
        task_of(problem.num_clients),
        MultiServerFedAvg(problem.num_servers, Sgd(0.1)),
        planner,
        SelectionTiming(problem=problem),
        rounds=problem.rounds,
        evaluate_every=problem.rounds,
        on_round=lambda record: records.append(record),
    )
    return records, history


@st.composite
def problems(draw) -> ClientSelection:
    """Small problems with conflicts and, often, updates that come too late; chance from regimes, or from tables."""
    servers, clients = draw(st.integers(1, 3)), draw(st.integers(4, 8))
    seed, rounds = draw(st.integers(0, 10_000)), 4
    problem = ClientSelection.random(
        num_servers=servers, num_clients=clients, picks=draw(st.integers(1, 3)), rounds=rounds, seed=seed,
        mode=draw(st.sampled_from(["fail", "share"])), rate_sigma=draw(st.sampled_from([0.0, 0.5])),
    )  # fmt: skip
    if draw(st.booleans()):
        rng = np.random.default_rng(seed)
        table = problem.rate_bps * rng.uniform(0.5, 1.5, (rounds, *problem.rate_bps.shape))
        busy = rng.random((rounds, clients)) < 0.3
        problem = problem.replace(rate_bps=table, busy=busy, regime_transition=None, busy_probability=None)
    return problem.replace(timeout_s=problem.timeout_s * draw(st.sampled_from([0.1, 0.4, 1.0])))


@settings(max_examples=25)
@given(problem=problems())
def test_random_picks_are_as_the_problem_reports(problem):
    """Losses, conflicts and times of a training run rebuild the problem's report and objective, in both modes."""
    rng = np.random.default_rng(problem.seed)
    covered = [np.flatnonzero(row) for row in problem.coverage]
    plans = []
    for _ in range(problem.rounds):
        chosen = [rng.choice(c, m, replace=False) for c, m in zip(covered, problem.picks, strict=True)]
        plans.append(
            RoundPlan(client=np.concatenate(chosen), server=np.repeat(range(problem.num_servers), problem.picks))
        )
    records, history = run(problem, Schedule(plans))
    assert_as_reported(problem, records, history)


@pytest.mark.parametrize("mode", ["fail", "share"])
@pytest.mark.parametrize("name", [*LOCAL, "matching", "rl-crp"])
def test_solvers_plans_are_as_the_problem_reports(name, mode):
    """The plan of every kind of solver, played back in training, brings the objective that the solver was credited."""
    problem = ClientSelection.random(num_servers=3, num_clients=12, picks=2, rounds=8, mode=mode, seed=4)
    result = edgeopt.solve(problem, RlCrp(iterations=1, episodes=1) if name == "rl-crp" else name, seed=0)
    records, history = run(problem, selection_schedule(result.solution))
    assert plan_of(problem, records) == result.solution
    assert_as_reported(problem, records, history)


@pytest.mark.parametrize("name", LOCAL)
def test_a_planner_picks_as_its_solver_does(name):
    """Fed by training, each server's policy picks what it picks in the environment: feedback and latencies are the same."""
    problem = ClientSelection.random(num_servers=3, num_clients=12, picks=2, rounds=8, seed=4)
    solver = edgeopt.solvers.get_solver(problem.kind, name)
    policies = [solver.policy(server, seed=3) for server in range(problem.num_servers)]
    planner = SelectionPlanner(problem, policies, latency_s=SelectionTiming(problem=problem).latency_s)
    records, _ = run(problem, planner)
    assert plan_of(problem, records) == edgeopt.solve(problem, solver, seed=3).solution


def test_a_trained_policy_picks_as_its_solver_does():
    """The same for a learned policy with forecasts, which also remembers outcomes."""
    problem = ClientSelection.random(num_servers=2, num_clients=8, picks=2, rounds=10, seed=4)
    trained = RlCrp(iterations=2, episodes=2).train(problem, seed=1)
    planner = SelectionPlanner(
        problem, [trained.policy(s) for s in range(2)], latency_s=SelectionTiming(problem=problem).latency_s
    )
    records, _ = run(problem, planner)
    solution = edgeopt.solve(problem, RlCrp(iterations=2, episodes=2), seed=1).solution
    assert plan_of(problem, records) == solution


def test_latency_is_what_servers_measure():
    """The latencies of every round are those of the environment's views."""
    problem = ClientSelection.random(num_servers=3, num_clients=10, picks=2, rounds=3, seed=2)
    timing, environment = SelectionTiming(problem=problem), SelectionEnvironment(problem)
    for round in range(problem.rounds):
        assert np.array_equal(timing.latency_s(round), environment.latency_s[0])
        environment.step(edgeopt.solve(problem, "random", seed=0).solution.picks[round][None])


def hand_made(**changes) -> ClientSelection:
    """Two servers share client 1; work takes 1 s, sending alone 2 s; the time-out is at 4 s."""
    given = {
        "coverage": [[True, True, False], [False, True, True]], "picks": 1, "compute_s": 1.0, "payload_bits": 2e6,
        "rate_bps": 1e6, "timeout_s": 4.0, "rounds": 2, **changes,
    }  # fmt: skip
    return ClientSelection(**given)


def traffic(size: int, lost: tuple[int, ...] = ()) -> Traffic:
    """Return what `size` entries exchange, each with 1e9 FLOP of work; some without a reply."""
    nothing = np.zeros((size, len(CATEGORIES)), np.int64)
    return Traffic(
        np.arange(size), nothing, nothing, np.full(size, 1e9), np.empty(0, np.int64), np.empty(0),
        np.isin(np.arange(size), lost),
    )  # fmt: skip


COLLISION = RoundPlan(client=[1, 1], server=[0, 1])


@pytest.mark.parametrize(
    ("changes", "plan", "seconds", "energy"),
    [
        ({}, RoundPlan(client=[0, 2], server=[0, 1]), 3.0, [2.1, 2.1]),  # 1 W x 2 s + 1e9 FLOP x 1e-10 J
        ({}, COLLISION, 4.0, [2.1, 2.1]),  # each update is sent for its 2 s and lost; servers wait for 4 s
        ({"mode": "share", "timeout_s": 5.5}, COLLISION, 5.0, [2.1, 2.1]),  # half the rate each: 4 s of one radio
        ({"mode": "share"}, COLLISION, 4.0, [1.6, 1.6]),  # cut after 3 s of sending, half of it for each
        ({"timeout_s": 2.5}, RoundPlan(client=[0]), 2.5, [1.6]),  # too late: sends for 1.5 s
        ({"timeout_s": 0.5}, RoundPlan(client=[0]), 0.5, [0.1]),  # the work alone takes longer
        ({"busy": np.ones((2, 3), bool)}, RoundPlan(client=[0]), 4.0, [0.0]),  # does nothing, is waited for
        ({}, RoundPlan(client=[]), 0.0, []),
    ],
)
def test_seconds_and_energy_by_hand(changes, plan, seconds, energy):
    """A round ends with its slowest server; clients pay for what they do, in vain or not."""
    timing = SelectionTiming(problem=hand_made(**changes), device_power_w=1.0)
    phase = timing.phase(0, plan, "train", 0.0, traffic(len(plan)))
    assert phase.seconds == seconds
    assert phase.energy_j == pytest.approx(energy)


CARBON = TimeSeries.from_table([[3.6e6], [7.2e6], [10.8e6]], 2.0, quantity="carbon")  # 1, 2, 3 g of a joule, 2 s each


@pytest.mark.parametrize(
    ("changes", "plan", "now_s", "expected"),
    [
        # 0.1 J of work in the 1st second; 1 J in the 2nd and the 3rd
        ({}, RoundPlan(client=[0]), 0.0, [0.1 * 1 + 1 * 1 + 1 * 2]),
        ({}, RoundPlan(client=[0]), 3.0, [0.1 * 2 + 1 * 3 + 1 * 3]),
        ({}, COLLISION, 0.0, [0.1 * 1 + 1 * 1 + 1 * 2] * 2),  # in vain, but sent at once
        # by turns: 2 J each over four seconds, of which one, two and one are at 1, 2 and 3 g
        ({"mode": "share", "timeout_s": 5.5}, COLLISION, 0.0, [0.1 * 1 + 0.5 * (1 + 2 * 2 + 3)] * 2),
        ({"busy": np.ones((2, 3), bool)}, RoundPlan(client=[0]), 0.0, [0.0]),
        ({}, RoundPlan(client=[]), 0.0, []),
    ],
)
def test_grams_by_hand(changes, plan, now_s, expected):
    """Joules count at the intensity of the seconds in which they are spent, whatever becomes of the update."""
    timing = SelectionTiming(problem=hand_made(**changes), device_power_w=1.0, carbon=CARBON).at(now_s)
    phase = timing.phase(0, plan, "train", 0.0, traffic(len(plan)))
    assert phase.carbon_g == pytest.approx(expected)
    assert SelectionTiming(problem=hand_made()).phase(0, plan, "train", 0.0, traffic(len(plan))).carbon_g is None


def test_grams_of_a_run():
    """Rounds begin when the ones before have ended; the rows add up, with a column for each client as with one for all."""
    problem = ClientSelection.random(num_servers=2, num_clients=6, picks=2, rounds=4, seed=3)
    schedule = selection_schedule(edgeopt.solve(problem, "random", seed=0).solution)
    found = []
    for carbon in (
        CARBON,
        TimeSeries.from_table(np.repeat([[3.6e6], [7.2e6], [10.8e6]], 6, 1), 2.0, quantity="carbon"),
    ):
        timing = SelectionTiming(problem=problem, carbon=carbon)
        history = train(task_of(6), MultiServerFedAvg(2, Sgd(0.1)), schedule, timing, rounds=4, evaluate_every=4)
        found.append([row["carbon_g"] for row in history.rows])
        assert (np.array(found[-1]) >= [row["energy_j"] for row in history.rows]).all()  # 1 g of a joule at least
    assert found[0] == pytest.approx(found[1])
    with pytest.raises(InvalidProblemError, match="carbon: 3 columns, expected 1 or 6"):
        SelectionTiming(problem=problem, carbon=TimeSeries.constant([1, 2, 3], "carbon"))


def test_what_was_not_delivered_is_counted_as_waiting():
    """The seconds of every entry add up to the end of its server's waiting, and rates are those of the channel."""
    timing = SelectionTiming(problem=hand_made(busy=np.array([[False, False, True]] * 2)))
    plan = RoundPlan(client=[0, 2], server=[0, 1])
    phase = timing.phase(0, plan, "train", 0.0, traffic(2))
    assert phase.client_s.tolist() == [3.0, 4.0]
    assert phase.compute_s.tolist() == [1.0, 0.0]
    rates = timing.rates(0, plan)
    assert rates["uplink_bps"].tolist() == [1e6, 1e6]
    assert np.isnan(rates["device_flops"]).all()


def test_a_client_that_fails_is_waited_for():
    """An update that should have arrived, but whose client has failed, takes its server until the time-out."""
    plan = RoundPlan(client=[0, 2], server=[0, 1])
    phase = SelectionTiming(problem=hand_made()).phase(0, plan, "train", 0.0, traffic(2, lost=(1,)))
    assert phase.client_s.tolist() == [3.0, 4.0]
    assert phase.seconds == 4.0


def test_a_function_of_round_and_plan():
    """Asked again, in another order, a timing answers the same: a resumed run sees what one long run sees."""
    problem = ClientSelection.random(num_servers=2, num_clients=8, picks=2, rounds=6, seed=1)
    schedule = selection_schedule(edgeopt.solve(problem, "random", seed=0).solution)
    first, second = SelectionTiming(problem=problem), SelectionTiming(problem=problem)
    forward = [first.lost(t, schedule.plan(t)).tolist() for t in range(6)]
    backward = [second.lost(t, schedule.plan(t)).tolist() for t in reversed(range(6))]
    assert forward == backward[::-1]


@pytest.mark.parametrize(
    ("round", "plan", "message"),
    [
        (2, COLLISION, "round 2: the problem has 2 rounds"),
        (0, RoundPlan(client=[3]), r"client\[0\] = 3: the problem has clients 0 to 2"),
        (0, RoundPlan(client=[0, 1], server=[0, 2]), r"server\[1\] = 2: the problem has servers 0 to 1"),
        (0, RoundPlan(client=[1, 2], server=[1, 0]), r"client\[1\] = 2: expected a client that server 0 covers"),
    ],
)
def test_refuses_what_the_problem_does_not_know(round, plan, message):
    """Rounds after the horizon, unknown clients and servers, and picks outside coverage are named."""
    with pytest.raises(InvalidProblemError, match=message):
        SelectionTiming(problem=hand_made()).lost(round, plan)


def test_refuses_a_second_phase():
    """The problem's update is charged once per round; split learning has more phases and is refused."""
    with pytest.raises(InvalidProblemError, match="phase 'backward'"):
        SelectionTiming(problem=hand_made()).phase(0, COLLISION, "backward", 1.0, traffic(2))


@pytest.mark.parametrize("field", [{"device_power_w": 0.0}, {"joules_per_flop": -1.0}])
def test_refuses_wrong_parameters(field):
    """Power must be positive, energy per work not negative."""
    with pytest.raises(InvalidProblemError, match=next(iter(field))):
        SelectionTiming(problem=hand_made(), **field)


def test_a_problem_of_the_real_model():
    """Work and payload of a task make a problem whose updates are as large as what the ledger counts."""
    network = EdgeNetwork.random(2, 6, seed=1)
    task = task_of(6)
    cost = update_cost(task, batch_size=16, local_steps=3)
    assert cost.work_flops.tolist() == [3 * task.flops(2)] * 6  # two samples each: a batch has no more
    problem = ClientSelection.from_network(
        network.replace(coverage=True), picks=2, work_flops=cost.work_flops, payload_bits=cost.payload_bits, rounds=1
    )
    plan = RoundPlan(client=[0, 1, 2, 3], server=[0, 0, 1, 1], batch_size=16, local_steps=3)
    history = train(
        task, MultiServerFedAvg(2), Schedule([plan]), SelectionTiming(problem=problem.replace(timeout_s=1e9)), rounds=1
    )
    assert history.rows[0]["weights_up"] == 4 * problem.payload_bits / 8
    assert np.allclose(problem.compute_s, 3 * task.flops(2) / network.device_flops)
