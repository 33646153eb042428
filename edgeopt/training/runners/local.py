"""Where clients run: here, one after another, or many as one batch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from edgeopt.rng import stream
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Algorithm
from edgeopt.training.messages import Category, Message, Replies, State, Tensors, kept
from edgeopt.training.runners.batched import try_batched
from edgeopt.training.task import Batch, Task
from edgeopt.training.trouble import blaming
from edgeopt.validate import flag, integer

Result = tuple[dict[Category, Tensors], State, torch.Tensor]  # a reply's content; the new state; a reply's FLOPs


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
            together = self.batched and message.batches is not None  # without data there is nothing to compute
            groups.setdefault((message.kind, values) if together else (entry,), []).append(entry)
        states = self.states
        results: dict[int, Result] = {}
        for entries in groups.values():
            results |= self._together(algorithm, task, plan, {entry: messages[entry] for entry in entries}, states)
        for entry in messages:
            client, state = int(plan.client[entry]), results[entry][1]
            if state or client in states:
                self._changed[client] = kept(state)
        return {
            entry: Message("reply", content, flops=float(flops))
            for entry, (content, _, flops) in ((entry, results[entry]) for entry in messages)
        }

    def _together(
        self,
        algorithm: Algorithm,
        task: Task,
        plan: RoundPlan,
        messages: Mapping[int, Message],
        states: Mapping[int, State],
    ) -> dict[int, Result]:
        """Run clients whose messages have the same kind and values; return replies and new states."""
        first = next(iter(messages.values()))
        items = []
        for entry, message in messages.items():
            client = int(plan.client[entry])
            batch = None if message.batches is None else task.batch(client, message.batches)
            items.append((dict(message.tensors), states.get(client, {}), () if batch is None else tuple(batch)))

        def work(item: Any) -> Result:
            tensors, state, data = item
            message = Message(first.kind, tensors, first.values)
            answer, new = algorithm.client(task, message, state, Batch(*data) if data else None)
            flops = answer.flops
            said = flops if isinstance(flops, torch.Tensor) else torch.tensor(flops, dtype=torch.float64)
            return dict(answer.tensors), new, said

        at = (0, 0) if first.batches is None else (first.batches.round, first.batches.first)
        if len(items) > 1:
            with seeded_layers(task, "clients", *at):
                found = try_batched(task.model, work, items, chunk=self.chunk)
            if found is not None:
                return dict(zip(messages, found, strict=True))
        results = {}
        for entry, item in zip(messages, items, strict=True):
            client = int(plan.client[entry])
            with (
                blaming(f"round {at[0]}, client {client}, {algorithm.name}, message {first.kind!r}"),
                seeded_layers(task, "client", client, *at),
            ):
                results[entry] = work(item)
        return results


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
