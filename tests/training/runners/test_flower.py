import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt.data.arrays import ArrayData
from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.schedule import RoundPlan, StaticPlanner
from edgeopt.training import (
    ALGORITHMS,
    Compressed,
    EdgeTiming,
    FedAvg,
    LocalRunner,
    Partition,
    Quantise,
    SplitFed,
    Task,
    TopK,
    train,
)  # fmt: skip
from edgeopt.training.messages import CATEGORIES, Batches, Message, reply

pytest.importorskip("flwr")
with warnings.catch_warnings():  # of flwr and what it imports
    warnings.simplefilter("ignore")
    from flwr.app import Context, Error, RecordDict
    from flwr.app import Message as FlowerMessage
    from flwr.supercore.task_identity import TaskIdentity

    from edgeopt.training.runners import flower
    from edgeopt.training.runners.flower_loopback import Loopback, free_ports, run_on_flower, write_app

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
NAMES = st.text(min_size=1, max_size=8)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    count = int(np.prod(shape)) * torch.empty((), dtype=dtype).element_size()
    limit = 1 if dtype == torch.bool else 255  # any bits, the not-a-numbers among them
    raw = draw(st.lists(st.integers(0, limit), min_size=count, max_size=count))
    return torch.tensor(raw, dtype=torch.uint8).view(dtype).reshape(shape)


VALUES = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.text(max_size=8))
MESSAGES = st.builds(
    Message,
    st.text(max_size=8),
    st.dictionaries(
        st.sampled_from(CATEGORIES),
        st.dictionaries(NAMES, tensors(), max_size=3),
    ),
    st.dictionaries(NAMES, VALUES, max_size=3),
    st.none() | st.builds(Batches, *[st.integers(0, 1000)] * 4),
    st.floats(0, 1e18),
    st.frozensets(NAMES, max_size=3),
    st.dictionaries(NAMES, tensors(), max_size=2),
    st.none() | st.integers(-(2**63), 2**63 - 1).map(torch.tensor),
)
STATES = st.recursive(tensors(), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)


def same(one, other):
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    bits = [(x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy().tobytes() for x in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and bits[0] == bits[1]


@given(MESSAGES)
@settings(max_examples=60)
def test_messages_come_back_bit_for_bit(message):
    """Every field and every bit of a message survives the way through Flower's records, empty categories included."""
    back = flower.from_records(flower.to_records(message, "7 "), "7 ")
    assert (back.kind, dict(back.values), back.batches, back.flops, back.held, back.key) == (
        message.kind, message.values, message.batches, message.flops, message.held, message.key,
    )  # fmt: skip
    assert same(dict(back.rows), dict(message.rows))
    assert [type(v) for v in back.values.values()] == [type(v) for v in message.values.values()]
    assert same(dict(back.tensors), dict(message.tensors))


@given(st.dictionaries(NAMES, STATES, max_size=3))
@settings(max_examples=60)
def test_states_come_back_bit_for_bit(state):
    """A nested state survives, whatever its names and however empty its parts."""
    assert same(flower.state_from_records(flower.state_to_records(state, "3 "), "3 "), state)


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Give messages a run and a sender, as Flower's processes have them."""
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)


# --- the runner on a fake grid -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adding:
    """Clients remember how often they were called, and answer with it."""

    name = "adding"

    def client(self, task, message, state, batch):
        count = state.get("count", torch.zeros(())) + message["scalars"]["step"]
        if "bad" in message.values:
            raise ValueError("this client cannot")
        return reply(scalars={"count": count}), {"count": count}


@dataclass
class FakeGrid:
    """Nodes in this process, served by the real ClientApp."""

    experiment: object
    parts: dict[int, int]  # partition-id by node
    dead: set[int] = field(default_factory=set)  # still listed, but they never answer
    gone: set[int] = field(default_factory=set)  # no longer listed
    broken: set[int] = field(default_factory=set)  # answer with an error
    online_until: dict[int, float] = field(default_factory=dict)
    sent: list[tuple[int, str, RecordDict]] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)  # the SuperLink takes no messages for them
    garbled: set[int] = field(default_factory=set)  # answer with something else

    def __post_init__(self):
        text = json.dumps({"class": f"{__name__}:FIXED", "content": {}})
        config = {"experiment": text, "threads": 1, "batched": False}
        self.contexts = {
            node: Context(1, node, {"partition-id": part}, RecordDict(), config) for node, part in self.parts.items()
        }
        self.replies = {}

    def get_nodes(self):
        return [
            SimpleNamespace(node_id=node, online_until=self.online_until.get(node, 0.0))
            for node in self.parts
            if node not in self.gone
        ]

    def get_node_ids(self):
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[FlowerMessage]):
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.sent.append((node, message.metadata.message_type, message.content))
            number = f"message-{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = number
            if node in self.broken:
                self.replies[number] = FlowerMessage(Error(code=0, reason="it broke"), reply_to=message)
            elif node in self.garbled:
                self.replies[number] = FlowerMessage(RecordDict(), reply_to=message)
            elif node not in self.dead | self.gone:
                self.replies[number] = serve_fixed(self, message, self.contexts[node])
            ids.append(None if node in self.refused else number)
        return ids

    def pull_messages(self, ids):
        return [self.replies.pop(number) for number in ids if number in self.replies]


def serve_fixed(grid, message, context):
    """Call the ClientApp with a task that is given, not built."""
    before = flower._built
    flower._built = lambda *_: grid.experiment
    try:
        return flower.client_app(message, context)
    finally:
        flower._built = before


def make_task(clients=5):
    generator = torch.Generator().manual_seed(0)
    data = ArrayData(torch.randn(40, 3, generator=generator), torch.arange(40) % 2, 2, "made")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    parts = [p.tolist() for p in np.array_split(np.arange(40), clients)]
    return Task(model=model, train=data, partition=Partition(parts, 40), test=data)


def make_timing(clients=5):
    each = np.full(clients, 1e6)
    return EdgeTiming(
        device_flops=each, uplink_bps=each, downlink_bps=each, fed_uplink_bps=each, fed_downlink_bps=each,
        server_flops=1e9, server_fed_uplink_bps=1e6, server_fed_downlink_bps=1e6,
    )  # fmt: skip


def make_runner(grid, **changes):
    nodes = sorted(grid.parts, key=grid.parts.__getitem__)
    return flower.FlowerRunner(grid, nodes, **{"timeout_s": 0.05, "poll_s": 0.01, **changes})


def plan_of(*clients):
    return RoundPlan(client=clients)


def step(values=()):
    return Message("add", {"scalars": {"step": torch.ones(())}}, dict.fromkeys(values, True))


def counts(replies):
    return {entry: float(answer["scalars"]["count"]) for entry, answer in replies.items()}


CODED = [Compressed(SplitFed(), codec, report_errors=True) for codec in (TopK(feedback=0.5), Quantise(4))]


@pytest.mark.parametrize("algorithm", [*(kind() for kind in ALGORITHMS), *CODED], ids=lambda algorithm: algorithm.name)
def test_the_same_weights_as_in_process(algorithm):
    """Every algorithm on fake nodes ends with the bits of the in-process run, client states included; with codecs too."""
    task = make_task()
    plan = RoundPlan(client=range(5), batch_size=4, cut_layer=[1, 2, 2, 1, 1], local_steps=2)
    here = train(task, algorithm, StaticPlanner(plan), make_timing(), rounds=2, runner=LocalRunner(batched=False))
    grid = FakeGrid((task, algorithm), {10: 1, 11: 0, 12: 2})
    there = train(task, algorithm, StaticPlanner(plan), make_timing(), rounds=2, runner=make_runner(grid))
    assert all(map(same, there.models, here.models))
    assert same(there.clients, here.clients)
    assert there.rows == here.rows


def test_a_phase_is_one_message_per_node():
    """However many clients a node has; the model is in it for each of them, as the same record."""
    task = make_task()
    grid = FakeGrid((task, FedAvg()), {1: 0, 2: 1})
    plan = RoundPlan(client=range(5))
    train(task, FedAvg(), StaticPlanner(plan), make_timing(), rounds=3, runner=make_runner(grid))
    assert len(grid.sent) == 3 * 2
    assert len({id(grid.sent[0][2][f"{entry} weights"]) for entry in (0, 2, 4)}) == 1


def test_client_i_lives_on_node_i_modulo_the_number_of_nodes():
    """Messages go to the node of their client, in the order of the nodes' parts."""
    grid = FakeGrid((make_task(), Adding()), {7: 1, 8: 0})
    make_runner(grid).deliver(Adding(), make_task(), plan_of(0, 1, 2), {e: step() for e in range(3)})
    assert {node: list(content["plan"]["client"]) for node, _, content in grid.sent} == {8: [0, 2], 7: [1]}


def test_states_stay_on_the_nodes_and_are_known_here():
    """A node is told a client's state once only; the copy here is what it remembers."""
    task = make_task()
    grid = FakeGrid((task, Adding()), {1: 0})
    runner = make_runner(grid)
    for number in (1, 2, 3):
        assert counts(runner.deliver(Adding(), task, plan_of(2), {0: step()})) == {0: number}
        runner.commit()
    assert float(runner.states[2]["count"]) == 3
    assert ["2 state" in content for _, _, content in grid.sent] == [True, False, False]


def test_roll_back_and_restore_reach_the_nodes():
    """After `roll_back` and `restore` a node goes on from the state it is given, not from what it remembers."""
    task = make_task()
    runner = make_runner(FakeGrid((task, Adding()), {1: 0}))
    for _ in range(2):
        runner.deliver(Adding(), task, plan_of(0), {0: step()})
        runner.commit()
    runner.deliver(Adding(), task, plan_of(0), {0: step()})
    runner.roll_back()
    assert counts(runner.deliver(Adding(), task, plan_of(0), {0: step()})) == {0: 3}
    runner.restore({0: {"count": torch.tensor(10.0)}})
    assert counts(runner.deliver(Adding(), task, plan_of(0), {0: step()})) == {0: 11}


def test_a_dead_node_is_a_client_failure_and_is_left_out():
    """Clients of a silent node have no reply; it is asked again only after a sign of life, with the right states."""
    task = make_task()
    grid = FakeGrid((task, Adding()), {1: 0, 2: 1})
    runner = make_runner(grid)
    plan, messages = plan_of(0, 1), {0: step(), 1: step()}
    assert counts(runner.deliver(Adding(), task, plan, messages)) == {0: 1, 1: 1}
    runner.commit()
    grid.dead.add(2)
    assert counts(runner.deliver(Adding(), task, plan, messages)) == {0: 2}
    assert runner.lost == [2]
    asked = len(grid.sent)
    assert counts(runner.deliver(Adding(), task, plan, messages)) == {0: 3}
    assert [node for node, *_ in grid.sent[asked:]] == [1]
    runner.commit()
    grid.dead.clear()
    grid.online_until[2] = 30.0
    grid.contexts[2].state["1 state"] = flower.state_to_records({"count": torch.tensor(99.0)})["state"]
    assert counts(runner.deliver(Adding(), task, plan, messages)) == {0: 4, 1: 2}
    assert runner.lost == []


def test_a_node_that_is_gone_is_not_waited_for(monkeypatch):
    """Once the SuperLink has given a node up, the phase ends before its time is over."""
    monkeypatch.setattr(flower, "_LIVENESS_S", 0.02)
    task = make_task()
    grid = FakeGrid((task, Adding()), {1: 0, 2: 1}, gone={2})
    runner = make_runner(grid, timeout_s=1e6)
    assert counts(runner.deliver(Adding(), task, plan_of(0, 1), {0: step(), 1: step()})) == {0: 1}


def test_errors_are_client_failures():
    """An error of a node fails its clients for this phase only; so does an answer that cannot be read."""
    task = make_task()
    grid = FakeGrid((task, Adding()), {1: 0, 2: 1}, broken={1})
    runner = make_runner(grid)
    plan, messages = plan_of(0, 1), {0: step(), 1: step()}
    assert counts(runner.deliver(Adding(), task, plan, messages)) == {1: 1}
    grid.broken.clear()
    assert counts(runner.deliver(Adding(), task, plan, messages)) == {0: 1, 1: 2}
    grid.refused.add(2)
    assert counts(runner.deliver(Adding(), task, plan, messages)) == {0: 2}
    grid.garbled.add(1)
    assert counts(runner.deliver(Adding(), task, plan, messages)) == {}


def test_a_failing_client_does_not_touch_the_others_on_its_node():
    """The reason is in the answer; state and reply of the neighbours are as without it."""
    task = make_task()
    grid = FakeGrid((task, Adding()), {1: 0})
    runner = make_runner(grid)
    messages = {0: step(), 1: step(["bad"]), 2: step()}
    assert counts(runner.deliver(Adding(), task, plan_of(0, 1, 2), messages)) == {0: 1, 2: 1}
    assert sorted(runner.states) == [0, 2]


def test_training_goes_on_without_a_lost_node():
    """A whole run with a dead node completes; its clients are failures in the rows."""
    task, plan = make_task(), RoundPlan(client=range(5))
    grid = FakeGrid((task, FedAvg()), {1: 0, 2: 1}, dead={2})
    history = train(task, FedAvg(), StaticPlanner(plan), make_timing(), rounds=2, runner=make_runner(grid))
    assert [row["completed"] for row in history.rows] == [3, 3]


def test_nodes_are_found_in_the_order_of_their_parts():
    """The order of the ids, which are random, does not decide who does what."""
    grid = FakeGrid((make_task(), Adding()), {5: 2, 6: 0, 7: 1})
    assert flower.find_nodes(grid, 3, 1.0) == [6, 7, 5]


def test_too_few_nodes_are_named():
    """Waiting for nodes ends, with the number that is there; so does waiting for their answer."""
    grid = FakeGrid((make_task(), Adding()), {5: 0})
    with pytest.raises(EdgeOptError, match=r"1 SuperNodes .* expected 2"):
        flower.find_nodes(grid, 2, 0.05)
    grid.dead.add(5)
    with pytest.raises(EdgeOptError, match="SuperNode 5: no answer"):
        flower.find_nodes(grid, 1, 0.05)


# --- experiments and apps ------------------------------------------------------------------------------------------

EXPERIMENT = """
from dataclasses import asdict, dataclass
import numpy as np
import torch
from edgeopt.schedule import RoundPlan, StaticPlanner
from edgeopt.training import ALGORITHMS, EdgeTiming, Partition, Task
from edgeopt.data import digits
from edgeopt.models.cnn import small_cnn

@dataclass(frozen=True)
class Small:
    algorithm: str = "fedavg"
    rounds: int = 2

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, data):
        return cls(**data)

    def build(self):
        data = digits()
        torch.manual_seed(0)
        parts = Partition([p.tolist() for p in np.array_split(np.arange(400), 4)], len(data.train))
        task = Task(model=small_cnn(), train=data.train, partition=parts, test=data.test)
        plan = RoundPlan(client=range(4), batch_size=[8, 8, 16, 16], cut_layer=[1, 2, 1, 2], local_steps=2)
        each = np.full(4, 1e7)
        timing = EdgeTiming(
            device_flops=each, uplink_bps=each, downlink_bps=each, fed_uplink_bps=each, fed_downlink_bps=each,
            server_flops=1e9, server_fed_uplink_bps=1e7, server_fed_downlink_bps=1e7,
        )
        algorithm = next(each for each in ALGORITHMS if each.name == self.algorithm)()
        return task, algorithm, StaticPlanner(plan), timing
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return an experiment of a module that other processes can import."""
    (tmp_path / "small_experiment.py").write_text(EXPERIMENT)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("small_experiment").Small()
    sys.modules.pop("small_experiment")


def test_experiments_are_described_by_class_and_content(small):
    """A description gives the same experiment back; one that others cannot import is refused."""
    assert flower.restore(flower.describe(small)) == small
    Local = type("Local", (type(small),), {"__qualname__": "test.<locals>.Local"})
    with pytest.raises(EdgeOptError, match="can be imported"):
        flower.describe(Local())
    with pytest.raises(InvalidFileError, match=r"nowhere:Thing cannot be imported"):
        flower.restore(json.dumps({"class": "nowhere:Thing", "content": {}}))


def test_an_app_is_valid_toml(tmp_path, small):
    """The app's file is read back with every value; its two modules hold the two apps."""
    output = tmp_path / 'with "quotes" and \\ ü'
    write_app(tmp_path / "app", small, nodes=3, output=output, timeout_s=5, batched=False)
    flwr = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert flwr["config"] == {
        "experiment": flower.describe(small), "nodes": 3, "output": str(output), "timeout-s": 5.0, "threads": 1,
        "batched": False, "resume": False,
    }  # fmt: skip
    for side, reference in flwr["components"].items():
        module, name = reference.split(":")
        code = (tmp_path / "app" / Path(*module.split("."))).with_suffix(".py").read_text()
        space = {}
        exec(code, space)  # noqa: S102
        assert space[name] is getattr(flower, f"{side.removesuffix('app')}_app")


def test_the_server_app_leaves_its_outcome(tmp_path, small, monkeypatch):
    """The ServerApp's run ends with checkpoint and outcome in its folder; a failed one with the reason."""
    write_app(tmp_path / "app", small, nodes=2, output=tmp_path / "out", timeout_s=1)
    config = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    monkeypatch.setattr(flower, "_built", flower._built.__wrapped__)
    grid = FakeGrid(small.build()[:2], {1: 0, 2: 1})
    flower._serve_run(grid, Context(1, 0, {}, RecordDict(), config))
    outcome = json.loads((tmp_path / "out" / flower.OUTCOME).read_text())
    assert (outcome["error"], outcome["rounds"], outcome["lost"]) == (None, 2, [])
    assert (tmp_path / "out" / flower.CHECKPOINT).exists()
    grid.gone.add(2)
    with pytest.raises(EdgeOptError):
        flower._serve_run(grid, Context(1, 0, {}, RecordDict(), config))
    assert "expected 2" in json.loads((tmp_path / "out" / flower.OUTCOME).read_text())["error"]


# --- processes -----------------------------------------------------------------------------------------------------


def processes_with(text):
    """Return the ids of processes whose environment names this text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def in_process(experiment):
    task, algorithm, planner, timing = experiment.build()
    return train(task, algorithm, planner, timing, rounds=experiment.rounds, runner=LocalRunner(batched=False))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedavg", "splitfed-v1", "gapsl", "ho-sfl"])
def test_superlink_and_two_supernodes_end_with_the_same_weights(small, algorithm):
    """Real processes on loopback: the weights and rows of the in-process run, and nothing is left running."""
    experiment = replace(small, algorithm=algorithm, rounds=2 if algorithm == "fedavg" else 1)
    here = in_process(experiment)
    with Loopback(2) as loopback:
        there = loopback.run(experiment, timeout_s=120, batched=False)
        folder = str(loopback._folder)
        assert processes_with(folder)
    for one, other in zip(there.models, here.models, strict=True):
        assert same(one, other)
    assert there.rows == here.rows
    assert not processes_with(folder)
    assert not os.path.exists(folder)


@pytest.mark.slow
def test_a_killed_supernode_is_a_client_failure(small, tmp_path):
    """A SuperNode that is killed after the first round takes its clients along, not the run."""
    experiment = replace(small, rounds=3)
    with Loopback(2) as loopback:

        def kill_one():
            while not (tmp_path / "run" / flower.CHECKPOINT).exists():
                time.sleep(0.05)
            os.killpg(loopback.supernodes[1].pid, signal.SIGKILL)

        thread = threading.Thread(target=kill_one, daemon=True)
        thread.start()
        history = loopback.run(experiment, timeout_s=120, output=tmp_path / "run")
        thread.join()
    completed = history.column("completed").tolist()
    assert completed[0] == 4
    assert completed[-1] == 2
    assert len(completed) == 3


@pytest.mark.slow
def test_a_failed_run_says_why(small):
    """What goes wrong in the ServerApp is in the message, with the end of the logs."""
    with pytest.raises(EdgeOptError, match="StopIteration"):
        run_on_flower(replace(small, algorithm="none"), 1, timeout_s=60)


ENTER = """
import threading
from edgeopt.training.runners.flower_loopback import Loopback
with Loopback(1) as loopback:
    print(loopback._folder, flush=True)
    threading.Event().wait()
"""


@pytest.mark.slow
def test_nothing_outlives_a_process_that_is_killed():
    """After kill -9 of the process that started them, Flower's processes end, too."""
    with subprocess.Popen([sys.executable, "-c", ENTER], stdout=subprocess.PIPE, text=True) as process:
        folder = process.stdout.readline().strip()
        assert processes_with(folder)
        process.kill()
    while processes_with(folder):
        time.sleep(0.05)


def test_free_ports_differ():
    """Ports that are asked for together are different ones."""
    assert len(set(free_ports(5))) == 5
