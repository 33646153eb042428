"""Run the same algorithms on Flower: messages as Flower's records, a ClientApp, a ServerApp, and the runner between them.

The only module that imports flwr (extra ``flower``). `edgeopt.training.runners.flower_loopback` starts a whole deployment on this
machine. A phase costs one Flower message per SuperNode, however many clients live on it, as Flower starts a process for
each message.
"""

import importlib
import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch

from edgeopt import storage
from edgeopt.errors import EdgeOptError, InvalidFileError, MissingDependencyError
from edgeopt.fields import Fields
from edgeopt.schedule import COLUMNS, Planner, RoundPlan
from edgeopt.training.algorithm import Algorithm
from edgeopt.training.costs.timing import Timing
from edgeopt.training.loop import train
from edgeopt.training.messages import CATEGORIES, Batches, Category, Message, Replies, State, Take, taken, to_device
from edgeopt.training.runners.local import LocalRunner
from edgeopt.training.states import flatten, unflatten
from edgeopt.training.task import Task

if TYPE_CHECKING:
    from flwr.serverapp import Grid

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
    from flwr.app import Message as FlowerMessage
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
except ImportError:  # the module can be looked at; `require_flower` says what is missing
    INSTALLED = False
else:
    INSTALLED = True

log = logging.getLogger("edgeopt")

CHECKPOINT, OUTCOME = "run.safetensors", "outcome.json"
_VALUE = "value "  # before the names of a message's plain values in its ConfigRecord
_BATCHES = ("round", "first", "count", "size", "whole")
_LIVENESS_S = 2.0  # seconds between two looks at which nodes are still there


def require_flower() -> None:
    """Raise MissingDependencyError where flwr is not installed."""
    if not INSTALLED:
        raise MissingDependencyError("Flower is not installed: pip install 'edgeopt[flower]'")


class Buildable(Protocol):
    """What is run: a description that every process can build the same task from.

    `edgeopt.experiment.flower.FlowerExperiment` is one. A class of your own has to be importable by its name on every
    machine.
    """

    @property
    def rounds(self) -> int:
        """How many rounds there are."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain JSON values."""
        ...

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the description again."""
        ...

    def build(self) -> tuple[Task, Algorithm, Planner, Timing]:
        """Return what `edgeopt.training.train` needs."""
        ...


def describe(experiment: Buildable) -> str:
    """Return class and content of an experiment as JSON: the key ``experiment`` of a run's configuration.

    Raises
    ------
    EdgeOptError
        If other processes cannot import the class.
    """
    kind = type(experiment)
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        raise EdgeOptError(f"experiment: {kind.__qualname__}: expected a class of a module that can be imported")
    return json.dumps({"class": f"{kind.__module__}:{kind.__qualname__}", "content": experiment.to_dict()})


def restore(text: str) -> Buildable:
    """Return the experiment that `describe` wrote down."""
    described = json.loads(text)
    module, _, name = described["class"].partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        raise InvalidFileError(f"experiment: {described['class']} cannot be imported here") from None
    experiment: Buildable = found.from_dict(described["content"])
    return experiment


# --- records -------------------------------------------------------------------------------------------------------


def to_records(message: Message, prefix: str = "") -> "RecordDict":
    """Return a message as Flower's records: a ConfigRecord, and an ArrayRecord for each category.

    Parameters
    ----------
    prefix : of the names of the records, so that several messages fit into one RecordDict.
    """
    plain: dict[str, Any] = {"kind": message.kind, "flops": float(message.flops), "held": sorted(message.held)}
    plain |= {f"{_VALUE}{name}": value for name, value in message.values.items()}
    if message.batches is not None:
        plain |= {name: getattr(message.batches, name) for name in _BATCHES}
    if message.key is not None:
        plain["key"] = int(message.key)
    records = RecordDict({f"{prefix}plain": ConfigRecord(plain), **_packed(f"{prefix}rows", dict(message.rows))})
    for category in message:
        records.update(_packed(f"{prefix}{category}", dict(message[category])))
    return records


def from_records(records: "RecordDict", prefix: str = "") -> Message:
    """Return the message that `to_records` was given, bit for bit; its tensors are on the CPU."""
    plain = records[f"{prefix}plain"]
    values = {name.removeprefix(_VALUE): value for name, value in plain.items() if name.startswith(_VALUE)}
    batches = Batches(*(plain[name] for name in _BATCHES)) if _BATCHES[0] in plain else None
    content: Any = {c: _unpacked(records, f"{prefix}{c}") for c in CATEGORIES if f"{prefix}{c}" in records}
    rows: Any = _unpacked(records, f"{prefix}rows")
    key = torch.tensor(plain["key"]) if "key" in plain else None
    return Message(
        plain["kind"], content, values, batches, plain["flops"], held=frozenset(plain["held"]), rows=rows, key=key
    )


def state_to_records(state: State, prefix: str = "") -> "RecordDict":
    """Return a nested state as Flower's records; tensors are named by their path."""
    return RecordDict(_packed(f"{prefix}state", state))


def state_from_records(records: "RecordDict", prefix: str = "") -> State:
    """Return the state that `state_to_records` was given."""
    return _unpacked(records, f"{prefix}state")


def _packed(name: str, state: State) -> "dict[str, ArrayRecord | ConfigRecord]":
    arrays, tree = flatten(state)
    record = ArrayRecord({path: Array(array) for path, array in arrays.items()})
    return {name: record, f"{name} tree": ConfigRecord({"tree": json.dumps(tree)})}


def _unpacked(records: "RecordDict", name: str) -> State:
    arrays = {path: np.asarray(array.numpy()) for path, array in records[name].items()}
    return unflatten(arrays, Fields(json.loads(records[f"{name} tree"]["tree"])))


# --- the clients' side ---------------------------------------------------------------------------------------------


@cache
def _built(experiment: str, threads: int) -> tuple[Task, Algorithm]:
    """Return what the experiment says, built once per process."""
    torch.set_num_threads(threads)
    task, algorithm, *_ = restore(experiment).build()
    return task, algorithm


def serve(
    task: Task, algorithm: Algorithm, request: "RecordDict", memory: "RecordDict", *, batched: bool
) -> "RecordDict":
    """Do the work of all clients of a request, and keep what they remember in `memory`.

    A client that fails, such as one without samples, is named in the answer with its reason; the others are not touched.
    """
    entries = list(request["plan"]["entry"])
    columns: Any = {column.name: np.array(request["plan"][column.name], column.dtype) for column in COLUMNS}
    plan = RoundPlan(**columns)
    clients = plan.client.tolist()
    runner = LocalRunner(batched=batched)
    source = {c: request if f"{c} state" in request else memory for c in clients}
    runner.restore({c: state_from_records(r, f"{c} ") for c, r in source.items() if f"{c} state" in r})
    messages = {
        i: to_device(from_records(request, f"{entry} "), torch.device(task.device)) for i, entry in enumerate(entries)
    }
    failed: dict[str, Any] = {}
    try:
        replies = runner.deliver(algorithm, task, plan, messages)
    except Exception:  # noqa: BLE001  (find out whose it is: one after another)
        runner.roll_back()
        replies = {}
        for i, message in messages.items():
            try:
                replies |= runner.deliver(algorithm, task, plan, {i: message})
            except Exception as error:  # noqa: BLE001  (whatever it is, it is this client's)
                failed[str(entries[i])] = f"{type(error).__name__}: {error}"
    answer = RecordDict({"failed": ConfigRecord(failed)})
    for i, reply in replies.items():
        answer.update(to_records(reply, f"{entries[i]} "))
    for client, state in runner.states.items():
        records = state_to_records(state, f"{client} ")
        memory.update(records)
        answer.update(records)
    return answer


def _work(message: "FlowerMessage", context: "Context") -> "FlowerMessage":
    config = context.run_config
    task, algorithm = _built(str(config["experiment"]), int(config["threads"]))
    answer = serve(task, algorithm, message.content, context.state, batched=bool(config["batched"]))
    return FlowerMessage(answer, reply_to=message)


def _introduce(message: "FlowerMessage", context: "Context") -> "FlowerMessage":
    """Say which part of the clients the node takes."""
    part = int(context.node_config.get("partition-id", -1))
    return FlowerMessage(RecordDict({"node": ConfigRecord({"partition-id": part})}), reply_to=message)


# --- the server's side ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class FlowerRunner:
    """Runs the clients on SuperNodes: client i on node i modulo the number of nodes.

    What clients remember stays on their node; a copy comes back with the replies, for evaluation and checkpoints. No
    ledger counts it. A client whose reply is missing or an error has failed in this phase. A node that did not answer is
    left out until the SuperLink has heard from it again.

    Parameters
    ----------
    grid : Flower's, inside a ServerApp.
    nodes : ids, in the order of their parts; see `find_nodes`.
    timeout_s : seconds of real time that a phase waits for replies.
    poll_s : seconds between two looks for them.
    """

    grid: "Grid"
    nodes: list[int]
    timeout_s: float = 600.0
    poll_s: float = 0.1
    _states: dict[int, State] = field(init=False, default_factory=dict, repr=False)
    _changed: dict[int, State] = field(init=False, default_factory=dict, repr=False)
    _agreed: set[int] = field(init=False, default_factory=set, repr=False)  # clients whose node remembers the same
    _lost: dict[int, float] = field(init=False, default_factory=dict, repr=False)  # node: last sign of life

    @property
    def states(self) -> dict[int, State]:
        """What clients remember, by id."""
        return {**self._states, **self._changed}

    def restore(self, states: Mapping[int, State]) -> None:
        """Continue with what `states` gave."""
        self._states, self._changed, self._agreed = dict(states), {}, set()

    def commit(self) -> None:
        """Make what clients remember of the round permanent."""
        self._states.update(self._changed)
        self._changed = {}

    def roll_back(self) -> None:
        """Forget what clients remember since the last `commit`."""
        self._agreed -= set(self._changed)
        self._changed = {}

    @property
    def lost(self) -> list[int]:
        """Nodes that are left out."""
        return list(self._lost)

    def deliver(
        self,
        algorithm: Algorithm,
        task: Task,
        plan: RoundPlan,
        messages: Mapping[int, Message],
        take: Mapping[Category, Take] = MappingProxyType({}),
    ) -> Replies:
        """Return the replies of the clients whose node answered."""
        if self._lost:
            alive = _alive(self.grid)
            self._lost = {node: seen for node, seen in self._lost.items() if alive.get(node, seen) <= seen}
        by_node: dict[int, list[int]] = {}
        for entry in messages:
            node = self.nodes[int(plan.client[entry]) % len(self.nodes)]
            if node not in self._lost:
                by_node.setdefault(node, []).append(entry)
        requests = {node: self._request(plan, {e: messages[e] for e in entries}) for node, entries in by_node.items()}
        answers = exchange(self.grid, requests, "train", self.timeout_s, self.poll_s)
        replies: Replies = {}
        for node, entries in by_node.items():
            clients = {int(plan.client[entry]) for entry in entries}
            self._agreed -= clients  # until the answer is read
            if node not in answers:
                self._lost[node] = _alive(self.grid).get(node, 0.0)
            answer = answers.get(node, "no answer")
            found = answer if isinstance(answer, str) else self._read(answer, clients, entries, task)
            if isinstance(found, str):
                log.warning("node %d: clients %s have failed: %s", node, sorted(clients), found)
            else:
                replies |= found
        return taken({entry: replies[entry] for entry in messages if entry in replies}, take)

    def _request(self, plan: RoundPlan, messages: Mapping[int, Message]) -> "RecordDict":
        columns = {name: array.tolist() for name, array in plan.take(list(messages)).columns().items()}
        request = RecordDict({"plan": ConfigRecord({"entry": list(messages), **columns})})
        made: dict[int, tuple[ArrayRecord, ConfigRecord]] = {}  # what goes to many clients is written down once
        for entry, message in messages.items():
            request.update(to_records(replace(message, tensors={}), f"{entry} "))
            for category in message:
                tensors = message[category]
                if id(tensors) not in made:
                    arrays, tree = _packed("", dict(tensors)).values()
                    made[id(tensors)] = (arrays, tree)
                request[f"{entry} {category}"], request[f"{entry} {category} tree"] = made[id(tensors)]
        for client in set(columns["client"]) - self._agreed:
            request.update(state_to_records(self.states.get(client, {}), f"{client} "))
        return request

    def _read(self, answer: "RecordDict", clients: Iterable[int], entries: list[int], task: Task) -> Replies | str:
        """Return the replies in an answer, and note the states; or say why it cannot be read."""
        device = torch.device(task.device)
        try:
            replies = {e: to_device(from_records(answer, f"{e} "), device) for e in entries if f"{e} plain" in answer}
            states = {c: state_from_records(answer, f"{c} ") for c in clients if f"{c} state" in answer}
            failed = dict(answer["failed"])
        except (KeyError, TypeError, ValueError) as error:
            return f"an answer that cannot be read: {error!r}"
        for entry, reason in failed.items():
            log.warning("entry %s of the plan has failed: %s", entry, reason)
        for client, state in states.items():
            if state or client in self._states:
                self._changed[client] = _moved(state, device)
        self._agreed.update(clients)
        return replies


def _moved(state: State, device: torch.device) -> State:
    return {n: v.to(device) if isinstance(v, torch.Tensor) else _moved(v, device) for n, v in state.items()}


def _alive(grid: "Grid") -> dict[int, float]:
    """Return the nodes that the SuperLink takes for alive, and until when it does: later after every sign of life."""
    return {node.node_id: float(node.online_until) for node in grid.get_nodes()}


def exchange(
    grid: "Grid", requests: "Mapping[int, RecordDict]", kind: str, timeout_s: float, poll_s: float
) -> "dict[int, RecordDict | str]":
    """Send each node its request; return the answers by node, and reasons where there was an error.

    Nodes that did not answer in time, or that the SuperLink has given up, are missing. Flower's own
    ``send_and_receive`` would look for replies every three seconds only, and wait for dead nodes to the end.
    """
    if not requests:
        return {}
    sent = [FlowerMessage(content, node, kind, ttl=timeout_s + 60.0) for node, content in requests.items()]
    numbers = list(grid.push_messages(sent)) or [""] * len(
        sent
    )  # none at all if the whole is too large for the SuperLink
    ids = {number: node for number, node in zip(numbers, requests, strict=True) if number}
    answers: dict[int, RecordDict | str] = {}
    end = time.monotonic() + timeout_s
    look = time.monotonic() + _LIVENESS_S
    while ids:
        for reply in grid.pull_messages(list(ids)):
            if (node := ids.pop(reply.metadata.reply_to_message_id, None)) is not None:
                answers[node] = reply.error.reason if reply.has_error() else reply.content
        if (now := time.monotonic()) >= end:
            break
        if now >= look:
            alive = set(grid.get_node_ids())
            ids = {number: node for number, node in ids.items() if node in alive}
            look = now + _LIVENESS_S
        if ids:
            time.sleep(poll_s)
    return answers


def find_nodes(grid: "Grid", count: int, timeout_s: float = 120.0, poll_s: float = 0.1) -> list[int]:
    """Wait for so many SuperNodes, and return their ids in the order of their ``partition-id``.

    Raises
    ------
    EdgeOptError
        If there are fewer, or one of them does not answer in time.
    """
    end = time.monotonic() + timeout_s
    while len(nodes := sorted(grid.get_node_ids())) < count:
        if time.monotonic() > end:
            raise EdgeOptError(f"{len(nodes)} SuperNodes are connected after {timeout_s:g} s: expected {count}")
        time.sleep(poll_s)
    answers = exchange(grid, {node: RecordDict() for node in nodes}, "query", timeout_s, poll_s)
    parts = {}
    for node in nodes:
        if not isinstance(answer := answers.get(node), RecordDict):
            raise EdgeOptError(f"SuperNode {node}: {answer or 'no answer'}: expected its partition-id")
        parts[node] = int(answer["node"]["partition-id"])
    return sorted(nodes, key=lambda node: (parts[node], node))


def _serve_run(grid: "Grid", context: "Context") -> None:
    """Train on the nodes; leave checkpoint and outcome in the folder that the run's configuration names."""
    config = context.run_config
    folder = storage.open_folder(str(config["output"]))
    outcome: dict[str, Any] = {"error": "ended early"}
    try:
        torch.set_num_threads(int(config["threads"]))
        experiment = restore(str(config["experiment"]))
        task, algorithm, planner, timing = experiment.build()
        timeout_s = float(config["timeout-s"])
        runner = FlowerRunner(grid, find_nodes(grid, int(config["nodes"]), timeout_s), timeout_s)
        start = time.perf_counter()
        history = train(
            task, algorithm, planner, timing, rounds=experiment.rounds, runner=runner,
            checkpoint=folder / CHECKPOINT, checkpoint_every=1, resume=bool(config["resume"]),
        )  # fmt: skip
        outcome = {
            "error": None, "reason": history.reason, "rounds": len(history.rows), "lost": runner.lost,
            "wall_seconds": time.perf_counter() - start,
        }  # fmt: skip
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        storage.write_atomic(folder / OUTCOME, lambda file: file.write(json.dumps(outcome).encode()))


if INSTALLED:
    client_app = ClientApp()
    client_app.train()(_work)
    client_app.query()(_introduce)
    server_app = ServerApp()
    server_app.main()(_serve_run)
