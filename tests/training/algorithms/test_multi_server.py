"""Multi-server FedAvg: every server is a FedAvg of its own, and conflicts lose updates."""

import numpy as np
import pytest
import torch

from edgeopt import EdgeNetwork, RoundPlan, Schedule, StaticPlanner
from edgeopt.errors import InvalidProblemError
from edgeopt.models import mlp
from edgeopt.problems import ClientSelection
from edgeopt.solvers.client_selection import PowerOfChoice, RandomPicks, RlCrp, SelectionPlanner
from edgeopt.training import ArrayData, EdgeTiming, FedAvg, LocalRunner, Partition, Sgd, Task, train
from edgeopt.training.algorithms.multi_server import MultiServerFedAvg
from edgeopt.training.costs.selection_timing import SelectionTiming

ROUNDS, CLIENTS = 5, 8


@pytest.fixture(scope="module")
def task() -> Task:
    """Eight clients with two to nine samples of three classes, a perceptron with a hidden layer."""
    generator = torch.Generator().manual_seed(3)
    ends = np.cumsum(np.arange(2, 2 + CLIENTS))
    inputs = torch.randn(int(ends[-1]), 5, generator=generator)
    data = ArrayData(inputs, torch.arange(len(inputs)) % 3, 3, "random")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mlp(5, (6,), 3)
    return Task(
        model=model, train=data, partition=Partition(tuple(np.split(np.arange(ends[-1]), ends[:-1]))), test=data
    )


def edge_timing() -> EdgeTiming:
    return EdgeTiming.from_network(EdgeNetwork.random(1, CLIENTS, seed=0))


def fit(task, algorithm, planner, timing, *, rounds=ROUNDS, **options):
    return train(task, algorithm, planner, timing, rounds=rounds, runner=LocalRunner(batched=False), **options)


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def rows_without(history, *names):
    return [{k: v for k, v in row.items() if k not in names} for row in history.rows]


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_one_server_is_fedavg(task, weighting):
    """With one server, weights, losses, bytes and times are those of FedAvg, bit for bit, clients lost included."""
    planner = StaticPlanner(RoundPlan(client=[6, 0, 3, 5], batch_size=4, local_steps=2))
    timing = edge_timing().replace(failure_probability=0.3, rate_sigma=0.4)
    one = fit(task, MultiServerFedAvg(1, Sgd(0.3, momentum=0.5), weighting=weighting), planner, timing)
    plain = fit(task, FedAvg(Sgd(0.3, momentum=0.5), weighting=weighting), planner, timing)
    assert equal(one.models[0], plain.models[0])
    assert rows_without(one) == rows_without(plain)
    assert any(row["completed"] < row["planned"] for row in one.rows)


def test_servers_with_clients_of_their_own_are_so_many_fedavgs(task):
    """Two servers without a common client end with the weights of two separate runs; their mean score is reported."""
    clients = {0: [4, 1, 7], 1: [2, 5]}
    both = RoundPlan(client=[4, 2, 1, 5, 7], server=[0, 1, 0, 1, 0], batch_size=4, local_steps=2)
    together = fit(task, MultiServerFedAvg(2, Sgd(0.3)), StaticPlanner(both), edge_timing())
    apart = [
        fit(
            task,
            FedAvg(Sgd(0.3)),
            StaticPlanner(RoundPlan(client=own, batch_size=4, local_steps=2)),
            edge_timing(),
        )
        for own in clients.values()
    ]
    for model, alone in zip(together.models, apart, strict=True):
        assert equal(model, alone.models[0])
    assert not equal(*together.models)
    assert together.column("accuracy") == pytest.approx(np.mean([h.column("accuracy") for h in apart], axis=0))
    for name in ("bytes_up", "bytes_down"):
        assert together.rows[-1][name] == sum(h.rows[-1][name] for h in apart)


def test_batched_is_sequential(task):
    """Clients of all servers as one batch give the same models but for rounding."""
    planner = StaticPlanner(RoundPlan(client=[0, 1, 2, 1, 6], server=[0, 0, 0, 1, 1], batch_size=2, local_steps=3))
    algorithm = MultiServerFedAvg(2, Sgd(0.3))
    sequential = fit(task, algorithm, planner, edge_timing())
    batched = train(task, algorithm, planner, edge_timing(), rounds=ROUNDS)
    for first, second in zip(sequential.models, batched.models, strict=True):
        for name in first:
            assert torch.allclose(first[name], second[name], atol=1e-6)


def overlapping(mode: str, rounds: int = ROUNDS) -> ClientSelection:
    """Two servers that both cover everyone."""
    return ClientSelection(
        coverage=np.ones((2, CLIENTS), bool), picks=2, compute_s=1.0, payload_bits=1e6, rate_bps=1e6, timeout_s=9.0,
        rounds=rounds, mode=mode,
    )  # fmt: skip


def test_conflicts_lose_updates(task):
    """In the mode fail, a client that both servers pick is missing in both averages; in the mode share it is in both."""
    algorithm, plan = MultiServerFedAvg(2, Sgd(0.3)), RoundPlan(client=[0, 3, 3, 6], server=[0, 0, 1, 1])
    found = {}
    for mode in ("fail", "share"):
        timing = SelectionTiming(problem=overlapping(mode))
        found[mode] = fit(task, algorithm, StaticPlanner(plan), timing, rounds=1)
    without = [
        fit(task, FedAvg(Sgd(0.3)), StaticPlanner(RoundPlan(client=own)), edge_timing(), rounds=1)
        for own in ([0], [6], [0, 3], [3, 6])
    ]
    for server in range(2):
        assert equal(found["fail"].models[server], without[server].models[0])
        assert equal(found["share"].models[server], without[2 + server].models[0])
    assert [found[mode].rows[0]["completed"] for mode in ("fail", "share")] == [2, 4]
    assert [found[mode].rows[0]["conflicts"] for mode in ("fail", "share")] == [2, 2]
    assert [found[mode].rows[0]["seconds"] for mode in ("fail", "share")] == [9.0, 3.0]  # T_max; 1 s + 2 x 1 s


def test_a_server_without_arrivals_keeps_its_model(task):
    """Neither an empty round, nor one in which all is lost or another server alone trains, changes a server's model."""
    nobody, all_lost = RoundPlan(client=[]), RoundPlan(client=[2, 4, 2, 4], server=[0, 0, 1, 1])
    only_one = RoundPlan(client=[1, 2], server=[1, 1])
    schedule, timing = Schedule([nobody, all_lost, only_one]), SelectionTiming(problem=overlapping("fail", 3))
    start = task.initial_weights()
    for rounds, moved in ((1, [False, False]), (2, [False, False]), (3, [False, True])):
        history = fit(task, MultiServerFedAvg(2), schedule, timing, rounds=rounds)
        assert [not equal(model, start) for model in history.models] == moved
    assert [row["round_seconds"] for row in history.rows] == [0.0, 9.0, 2.0]
    assert [row["completed"] for row in history.rows] == [0, 0, 2]
    assert np.isnan(history.rows[1]["train_loss"])


def test_servers_start_equal_and_apart(task):
    """Every server has weights of its own in the state, by number, with the names of the model."""
    state = MultiServerFedAvg(3).start(task)
    assert list(state) == ["0", "1", "2"]
    assert all(equal(own, task.initial_weights()) for own in state.values())
    assert len({id(own["hidden1.1.weight"]) for own in state.values()}) == 3


POLICIES = {
    "random": lambda problem: [RandomPicks().policy(server, seed=5) for server in range(problem.num_servers)],
    "power-of-choice": lambda problem: [PowerOfChoice().policy(s, seed=5) for s in range(problem.num_servers)],
    "rl-crp": lambda problem: [
        RlCrp(iterations=1, episodes=1).train(problem, seed=2).policy(s) for s in range(problem.num_servers)
    ],
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_resumed_run_equals_one_long_run(task, tmp_path, name):
    """With policies that remember in between, a run that was cut in two gives the same rows and the same bits."""
    problem = ClientSelection.random(num_servers=2, num_clients=CLIENTS, picks=2, rounds=9, seed=6)
    timing, algorithm = SelectionTiming(problem=problem), MultiServerFedAvg(2, Sgd(0.3, momentum=0.9), batch_size=2)

    def planner() -> SelectionPlanner:
        return SelectionPlanner(problem, POLICIES[name](problem), latency_s=timing.latency_s)

    whole = fit(task, algorithm, planner(), timing, rounds=9)
    path = tmp_path / "run.safetensors"
    fit(task, algorithm, planner(), timing, rounds=4, checkpoint=path)
    resumed = fit(task, algorithm, planner(), timing, rounds=9, checkpoint=path, resume=True)
    assert str(resumed.rows) == str(whole.rows)  # as text: nan is nan
    assert len(resumed.rows) == 9
    for first, second in zip(resumed.models, whole.models, strict=True):
        assert equal(first, second)
    assert sum(row["conflicts"] for row in whole.rows) > 0


def test_a_planner_hears_of_conflicts(task):
    """What policies see next is what became of their picks: completed and conflict of the feedback."""
    problem = overlapping("fail").replace(busy=np.eye(ROUNDS, CLIENTS, dtype=bool))
    heard = []

    class Fixed:
        def plan(self, round, feedback):
            heard.append(feedback)
            return RoundPlan(client=[0, 3, 3, 6], server=[0, 0, 1, 1])

    fit(task, MultiServerFedAvg(2), Fixed(), SelectionTiming(problem=problem), rounds=2)
    assert heard[0] is None
    assert heard[1].conflict.tolist() == [True, True, True, False]  # client 0 is busy in round 0
    assert heard[1].completed.tolist() == [False, False, False, True]
    assert heard[1].of_server(1).seconds == 9.0


def test_refuses_what_does_not_fit(task):
    """Servers beyond the number of models, rounds without averaging, and wrong parameters are named."""
    with pytest.raises(InvalidProblemError, match=r"round 0: server\[1\] = 2: expected 0 to 1, num_servers = 2"):
        fit(task, MultiServerFedAvg(2), StaticPlanner(RoundPlan(client=[0, 1], server=[0, 2])), edge_timing())
    with pytest.raises(InvalidProblemError, match="without aggregation"):
        fit(task, MultiServerFedAvg(), StaticPlanner(RoundPlan(client=[0]), interval=2), edge_timing())
    for wrong in ({"num_servers": 0}, {"batch_size": 0}, {"weighting": "size"}):
        with pytest.raises(InvalidProblemError, match=next(iter(wrong))):
            MultiServerFedAvg(**wrong)
