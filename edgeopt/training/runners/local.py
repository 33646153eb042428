"""Where clients run: here, one after another, or many as one batch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from edgeopt.rng import stream
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Algorithm
from edgeopt.training.checks import check_answer
from edgeopt.training.messages import Category, Message, Replies, State, Tensors, kept
from edgeopt.training.runners.batched import map_clients
from edgeopt.training.task import Batch, Task
from edgeopt.training.trouble import blaming
from edgeopt.validate import flag, integer

Result = tuple[dict[Category, Tensors], State, Tensors, torch.Tensor]  # of a reply: content; new state; rows; FLOPs


class Runner(Protocol):
    """Brings messages to clients and their replies back."""

    def deliver(self, algorithm: Algorithm, task: Task, plan: RoundPlan, messages: Mapping[int, Message]) -> Replies:
        """Return the replies of the clients that could be reached, by entry of the plan.

        What a client remembers afterwards counts from the next `commit` on.
        """
        ...

    def commit(self) -> None:
        """Make what clients remember of the round permanent."""
        ...

    def roll_back(self) -> None:
        """Forget what clients remember since the last `commit`."""
        ...

    @property
    def states(self) -> dict[int, State]:
        """What clients remember, by id, as far as it can be seen from here."""
        ...

    def restore(self, states: Mapping[int, State]) -> None:
        """Continue with what `states` gave; a run begins with it, or with an empty mapping."""
        ...


@dataclass(slots=True)
class LocalRunner:
    """Runs the clients in this process.

    Parameters
    ----------
    batched : run clients whose messages, states and data agree in shape as one batch, if model and loss allow it. The
        results differ from those of one after another by rounding only.
    chunk : at most so many clients in one batch, which bounds the memory. Default: all of them.
    """

    batched: bool = True
    chunk: int | None = None
    _states: dict[int, State] = field(init=False, default_factory=dict, repr=False)
    _changed: dict[int, State] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.batched = flag("batched", self.batched)
        self.chunk = None if self.chunk is None else integer("chunk", self.chunk, low=1)

    @property
    def states(self) -> dict[int, State]:
        """What clients remember, by id."""
        return {**self._states, **self._changed}

    def restore(self, states: Mapping[int, State]) -> None:
        """Continue with what `states` gave."""
        self._states, self._changed = dict(states), {}

    def commit(self) -> None:
        """Make what clients remember of the round permanent."""
        self._states.update(self._changed)
        self._changed = {}

    def roll_back(self) -> None:
        """Forget what clients remember since the last `commit`."""
        self._changed = {}

    def deliver(self, algorithm: Algorithm, task: Task, plan: RoundPlan, messages: Mapping[int, Message]) -> Replies:
        """Return the replies of all clients.

        A client with several entries starts each of them from the same state; of the new ones the last is kept.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for entry, message in messages.items():
            values = tuple(sorted(message.values.items()))
            plain = (message.kind, values, message.held, message.batches)  # what is the same for a batch
            together = self.batched and message.batches is not None  # without data there is nothing to compute
            groups.setdefault(plain if together else (entry,), []).append(entry)
        states = self.states
        results: dict[int, Result] = {}
        for entries in groups.values():
            results |= self._together(algorithm, task, plan, {entry: messages[entry] for entry in entries}, states)
        for entry in messages:
            client, state = int(plan.client[entry]), results[entry][1]
            if state or client in states:
                self._changed[client] = kept(state)
        return {
            entry: Message("reply", content, flops=float(flops), rows=rows)
            for entry, (content, _, rows, flops) in ((entry, results[entry]) for entry in messages)
        }

    def _together(
        self,
        algorithm: Algorithm,
        task: Task,
        plan: RoundPlan,
        messages: Mapping[int, Message],
        states: Mapping[int, State],
    ) -> dict[int, Result]:
        """Run clients whose messages are alike in all but their tensors; return replies and new states."""
        first = next(iter(messages.values()))
        clients = [int(plan.client[entry]) for entry in messages]
        at = (0, 0) if first.batches is None else (first.batches.round, first.batches.first)
        where = f"round {at[0]}, client %d, {algorithm.name}, message {first.kind!r}"
        items = []
        for client, message in zip(clients, messages.values(), strict=True):
            batch = () if message.batches is None else tuple(task.batch(client, message.batches))
            extra: dict[str, Any] = {} if message.key is None else {"key": message.key}
            extra |= {"rows": dict(message.rows)} if message.rows else {}  # no more than there is: it is taken apart
            items.append((dict(message.tensors), states.get(client, {}), batch, extra))

        def work(item: Any) -> Result:
            tensors, state, data, extra = item
            message = replace(first, tensors=tensors, flops=0.0, rows=extra.get("rows", {}), key=extra.get("key"))
            found = algorithm.client(task, message, state, Batch(*data) if data else None)
            check_answer(found)
            answer, new = found
            flops = answer.flops
            said = flops if isinstance(flops, torch.Tensor) else torch.tensor(flops, dtype=torch.float64)
            return dict(answer.tensors), new, dict(answer.rows), said

        @contextmanager
        def alone(index: int) -> Iterator[None]:
            with blaming(where % clients[index]), seeded_layers(task, "client", clients[index], *at):
                yield

        with seeded_layers(task, "clients", *at) if len(items) > 1 else nullcontext():
            found = map_clients(task.model, work, items, alone, chunk=self.chunk)
        return dict(zip(messages, found, strict=True))


@contextmanager
def seeded_layers(task: Task, *keys: int | str) -> Iterator[None]:
    """Let what layers draw by themselves, such as dropout, depend on the seed of the task and `keys` alone."""
    generators = _generators(torch.device(task.device))
    before = [generator.get_state() for generator in generators]
    seed = int(stream(task.seed, "layers", *keys).integers(1 << 62))
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def _generators(device: torch.device) -> list[torch.Generator]:
    """Return the generators that layers on a device draw from; `torch.manual_seed` would take a tenth of a millisecond."""
    found: list[torch.Generator] = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        found.append(
            torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        )
    elif device.type == "mps":
        found.append(torch.mps._get_default_mps_generator())
    return found
