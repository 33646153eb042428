"""The server's end of a coded exchange, during one round."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from edgeopt.display import one_line
from edgeopt.rng import stream
from edgeopt.schedule import RoundPlan
from edgeopt.training.checks import check_phase
from edgeopt.training.codecs.codec import Codec, Form, Order, ReportingCodec
from edgeopt.training.codecs.wire import branch, decode, encode, first, form_of, relative_error, values_of
from edgeopt.training.keys import fold_in
from edgeopt.training.messages import Message, Phase, Replies, State, Tensors
from edgeopt.training.runners.batched import map_clients
from edgeopt.training.task import Task
from edgeopt.training.trouble import TrainingError, blaming

Result = TypeVar("Result")

ERROR = "codec error"
"""Name of the number with which clients report how wrong what they send is."""

_NO_LAYERS = nn.Sequential()  # whether a model can run in a batch does not matter to a codec


@dataclass(slots=True, repr=False)
class Tally:
    """What crossed in one direction in a round."""

    bytes: int = 0
    values: int = 0
    errors: list[torch.Tensor] = field(default_factory=list)
    __repr__ = one_line

    @property
    def bits_per_value(self) -> float:
        """Bits for each value of what was coded; nan if there was nothing."""
        return 8 * self.bytes / self.values if self.values else math.nan

    @property
    def error(self) -> float | torch.Tensor:
        """Mean relative error of the messages; nan if it is of none known."""
        return torch.stack(self.errors).mean() if self.errors else math.nan


@dataclass(slots=True, repr=False)
class ServerSide:
    """Codes the phases of a round and decodes the replies to them.

    Parameters
    ----------
    memory : of the server, by client.
    """

    task: Task
    codec: Codec
    plan: RoundPlan
    number: int
    memory: State
    _phases: int = 0
    _expected: dict[int, tuple[Form, Order]] = field(default_factory=dict)  # by entry: what the phase has asked for
    _followed: list[Order] = field(default_factory=list)  # of the activations that came
    _over_budget: int = 0
    _skipped: int = 0
    _up: Tally = field(default_factory=Tally)
    _down: Tally = field(default_factory=Tally)
    __repr__ = one_line

    def coded(self, phase: Phase) -> Phase:
        """Return a phase with its gradients coded, and with orders for the activations that it asks for."""
        check_phase(phase, self.plan)
        messages, self._expected = dict(phase.messages), {}
        down: dict[int, tuple[Form, Order]] = {}
        for entry, message in phase.messages.items():
            form = form_of(self.task, message, self._samples(entry, message))
            if form is None:
                if message["gradients"]:
                    raise TrainingError(
                        f"client {self._client(entry)}: phase {phase.name!r}: gradients in a message without a cut below "
                        "the last layer and mini-batches: expected both, to know what is coded"
                    )
                continue
            memory = first(self._memory(entry))
            order = self.codec.order("up", form, float(self.plan.budget_bytes[entry]), memory)
            values = dict(message.values)
            if order is not None:
                self._expected[entry] = form, order
                values |= values_of("up", order)
            elif not message["gradients"]:
                del messages[entry]
                self._skipped += 1
                continue
            if message["gradients"]:
                down[entry] = form, self.codec.order("down", form, math.inf, memory) or {}
                values |= values_of("down", down[entry][1])
            messages[entry] = replace(message, values=values)
        for entry, (tensors, memory, error) in self._encoded(phase, down).items():
            self._remember(entry, memory)
            own = messages[entry]
            rows = {name: kept for name, kept in own.rows.items() if name not in own["gradients"]}
            messages[entry] = replace(own, tensors={**own.tensors, "gradients": tensors}, rows=rows)
            self._count(self._down, own["gradients"], messages[entry].nbytes("gradients"))
            self._down.errors.append(error)
        self._phases += 1
        return replace(phase, messages=messages)

    def decoded(self, replies: Replies) -> Replies:
        """Return the replies with their activations decoded."""
        found = dict(replies)
        for entry, reply in replies.items():
            if reply["activations"] and entry not in self._expected:
                raise TrainingError(
                    f"client {self._client(entry)}: activations in the reply to a message without a cut below the last "
                    "layer and mini-batches: expected both, to know what is coded"
                )
        arrived = {entry: self._expected[entry] for entry, reply in replies.items() if reply["activations"]}
        items = {entry: (replies[entry]["activations"], self._memory(entry)) for entry in arrived}

        def work(form: Form, order: Order, item: tuple[Tensors, State]) -> tuple[Tensors, State]:
            return decode(self.codec, "up", item[0], order, item[1], form)

        for entry, (tensors, memory) in self._map(arrived, items, work).items():
            self._remember(entry, memory)
            taken = replies[entry].nbytes("activations")
            self._count(self._up, tensors, taken)
            self._over_budget += taken > self.plan.budget_bytes[entry]
            self._followed.append(arrived[entry][1])
            statistics = dict(replies[entry]["statistics"])
            if ERROR in statistics:
                self._up.errors.append(statistics.pop(ERROR))
            content = {**replies[entry].tensors, "activations": tensors, "statistics": statistics}
            found[entry] = replace(replies[entry], tensors=content)
        return found

    def measured(self) -> dict[str, float | torch.Tensor]:
        """Return what `edgeopt.training.Compressed` reports of the round."""
        own = self.codec.measured(self._followed) if isinstance(self.codec, ReportingCodec) else {}
        return {
            **own,
            "up_bits_per_value": self._up.bits_per_value,
            "down_bits_per_value": self._down.bits_per_value,
            "up_error": self._up.error,
            "down_error": self._down.error,
            "over_budget": float(self._over_budget),
            "skipped": float(self._skipped),
        }

    def _encoded(
        self, phase: Phase, down: Mapping[int, tuple[Form, Order]]
    ) -> dict[int, tuple[Tensors, State, torch.Tensor]]:
        seed = int(stream(self.task.seed, "keys of codecs", self.number, self._phases).integers(1 << 62))
        key = torch.tensor(seed, device=self.task.device)
        items = {
            entry: (phase.messages[entry]["gradients"], self._memory(entry), fold_in(key, self._client(entry)))
            for entry in down
        }

        def work(
            form: Form, order: Order, item: tuple[Tensors, State, torch.Tensor]
        ) -> tuple[Tensors, State, torch.Tensor]:
            tensors, memory, own_key = item
            coded, after = encode(self.codec, "down", tensors, order, memory, labels=None, key=own_key)
            return coded, after, relative_error(self.codec, "down", tensors, coded, order, memory, form)

        return self._map(down, items, work)

    def _map(
        self,
        expected: Mapping[int, tuple[Form, Order]],
        items: Mapping[int, Any],
        work: Callable[[Form, Order, Any], Result],
    ) -> dict[int, Result]:
        """Return ``work(form, order, item)`` by entry; those of equal forms and orders as one batch."""
        groups: dict[Any, list[int]] = {}
        for entry in items:
            form, order = expected[entry]
            groups.setdefault((form, tuple(order.items())), []).append(entry)
        found: dict[int, Result] = {}
        for (form, order), entries in groups.items():
            found |= zip(entries, self._together(form, dict(order), entries, items, work), strict=True)
        return {entry: found[entry] for entry in items}

    def _together(
        self,
        form: Form,
        order: Order,
        entries: list[int],
        items: Mapping[int, Any],
        work: Callable[[Form, Order, Any], Result],
    ) -> list[Result]:
        return map_clients(
            _NO_LAYERS,
            lambda item: work(form, order, item),
            [items[entry] for entry in entries],
            lambda position: blaming(f"client {self._client(entries[position])}, {self.codec.name} at the server"),
        )

    def _count(self, tally: Tally, tensors: Tensors, taken: int) -> None:
        tally.bytes += taken
        tally.values += sum(tensor.numel() for tensor in tensors.values())

    def _client(self, entry: int) -> int:
        return int(self.plan.client[entry])

    def _samples(self, entry: int, message: Message) -> int:
        if message.batches is None:
            return 0
        client, one = self._client(entry), message.batches.count == 1
        return (
            self.task.num_samples(client, message.batches) if one else self.task.samples(client, message.batches.size)
        )

    def _memory(self, entry: int) -> State:
        return branch(self.memory, str(self._client(entry)))

    def _remember(self, entry: int, memory: State) -> None:
        others = {client: own for client, own in self.memory.items() if client != str(self._client(entry))}
        self.memory = {**others, str(self._client(entry)): memory} if memory else others
