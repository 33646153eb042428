"""`Compressed`: an algorithm of split learning, with what crosses its cuts coded."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from edgeopt.errors import InvalidProblemError
from edgeopt.schedule import RoundPlan
from edgeopt.training.algorithm import Models, Outcome, PredictingAlgorithm, SplitAlgorithm
from edgeopt.training.codecs.codec import Codec, CodecAtWork, Form, memory_tensor
from edgeopt.training.codecs.server import ERROR, ServerSide
from edgeopt.training.codecs.wire import (
    branch,
    decode,
    encode,
    first,
    form_of,
    order_in,
    relative_error,
    without_orders,
)
from edgeopt.training.keys import fold_in
from edgeopt.training.messages import Category, Message, Phase, Replies, State, Tensors
from edgeopt.training.task import Batch, Task
from edgeopt.training.trouble import TrainingError

_OURS = 0xC0DEC
"""Folded into a client's key, so that it is none of those that the algorithm inside makes of it."""


class _Joined:
    """The name of an algorithm around an algorithm."""

    def __get__(self, instance: "Compressed | None", owner: object = None) -> str:
        return "compressed" if instance is None else f"{instance.inner.name} with {instance.codec.name}"


@dataclass(frozen=True, slots=True)
class Compressed:
    """An algorithm of split learning whose activations and gradients are coded where they cross.

    Clients code their activations, and the server learns from what it decodes; it codes the gradients by that, and clients
    learn from what they decode. The algorithm inside notices nothing. Bytes and time are those of the coded tensors;
    weights, labels and scalars cross as they are, and the work of coding costs no time. The server fixes how much is sent:
    up within `budget_bytes` of the plan, as far as the codec can.

    Reported in each round, nan where nothing crossed: ``up_bits_per_value`` and ``down_bits_per_value``;
    ``down_error``, the mean over messages of |decoded - true| / |true|; ``up_error``, where clients report it;
    ``over_budget``, how many messages were larger than their budget; ``skipped``, how many were not asked for, as the codec
    had nothing that fits; and what a `ReportingCodec` adds. A `CodecAtWork` is there when models are judged, too.

    Parameters
    ----------
    inner : an algorithm that exchanges activations and gradients, such as `edgeopt.training.SplitFed`.
    codec : one of `edgeopt.training.CODECS`, or your own.
    report_errors : clients send how wrong what they send is, one number with each message, which is charged as
        ``statistics``.

    Raises
    ------
    InvalidProblemError
        If the algorithm exchanges no activations, or has a codec already.
    """

    name: ClassVar[str] = _Joined()  # type: ignore[assignment]

    inner: SplitAlgorithm
    codec: Codec
    report_errors: bool = False

    def __post_init__(self) -> None:
        inner: object = self.inner
        codec: object = self.codec
        if not isinstance(inner, SplitAlgorithm):
            given = getattr(inner, "name", type(inner).__name__)
            raise InvalidProblemError(
                f"codec: {given} exchanges no activations: expected an algorithm of split learning, with a cut_layer"
            )
        if isinstance(inner, Compressed):
            raise InvalidProblemError(f"codec: {inner.name}: expected an algorithm without a codec")
        if not isinstance(codec, Codec):
            raise InvalidProblemError(f"codec: a {type(codec).__name__}: expected one with order, encode and decode")

    @property
    def cut_layer(self) -> int:
        """Where the plan leaves it open, as in the algorithm inside."""
        return self.inner.cut_layer

    def start(self, task: Task) -> State:
        """Return the state of the algorithm inside, and empty memories."""
        return {"inner": self.inner.start(task), "codec": {}}

    def round(self, task: Task, state: State, plan: RoundPlan, number: int) -> Generator[Phase, Replies, Outcome]:
        """Play a round of the algorithm inside."""
        side = ServerSide(task, self.codec, plan, number, dict(branch(state, "codec")))
        conversation = self.inner.round(task, branch(state, "inner"), plan, number)
        replies: Replies | None = None
        while True:
            try:
                phase = next(conversation) if replies is None else conversation.send(replies)
            except StopIteration as end:
                outcome: Any = end.value
                break
            replies = side.decoded((yield side.coded(phase)))
        if not isinstance(outcome, Outcome):  # whoever plays the round says what is wrong with it
            return outcome  # type: ignore[no-any-return]
        own: State = {"inner": outcome.state, "codec": side.memory}
        return Outcome(own, outcome.loss, {**outcome.measured, **side.measured()})

    def client(self, task: Task, message: Message, state: State, batch: Batch | None) -> tuple[Message, State]:
        """Decode, work as the algorithm inside does, code."""
        memory, samples = branch(state, "codec"), 0 if batch is None else batch.inputs.shape[1]
        form = form_of(task, message, samples)
        content: dict[Category, Tensors] = dict(message.tensors)
        if form is not None and message["gradients"]:
            order = order_in(message, "down")
            content["gradients"], memory = decode(self.codec, "down", message["gradients"], order, memory, form)
        plain = replace(message, tensors=content, values=without_orders(message.values))
        answer, own = self.inner.client(task, plain, branch(state, "inner"), batch)
        if form is not None and answer["activations"]:
            answer, memory = self._coded(message, answer, memory, form, None if batch is None else batch.targets[0])
        parts = {"inner": own, "codec": memory}
        new: State = {name: part for name, part in parts.items() if part}
        if isinstance(self.codec, CodecAtWork) and memory:
            new["cut"] = state["cut"] if form is None else torch.tensor(message.values["cut"])
        return answer, new

    def _coded(
        self, message: Message, answer: Message, before: State, form: Form, labels: torch.Tensor | None
    ) -> tuple[Message, State]:
        """Return a reply with its activations coded, and the client's memory."""
        tensors, order = answer["activations"], order_in(message, "up")
        for name, tensor in tensors.items():
            if (tuple(tensor.shape), tensor.dtype) != (form.shape, form.dtype):
                raise TrainingError(
                    f"activations[{name!r}]: {tensor.dtype} {list(tensor.shape)}: expected {form.dtype} "
                    f"{list(form.shape)}, as at the cut"
                )
        if message.key is None:
            raise TrainingError("the message has no key: expected one, for what the codec draws")
        key = fold_in(message.key, _OURS)
        coded, memory = encode(self.codec, "up", tensors, order, before, labels=labels, key=key)
        content: dict[Category, Tensors] = {**answer.tensors, "activations": coded}
        if self.report_errors:
            error = relative_error(self.codec, "up", tensors, coded, order, before, form)
            content["statistics"] = {**answer["statistics"], ERROR: error}
        rows = {name: kept for name, kept in answer.rows.items() if name not in tensors}
        return replace(answer, tensors=content, rows=rows), memory

    def models(self, task: Task, state: State, clients: Mapping[int, State]) -> Models:
        """Return the models of the algorithm inside."""
        return self.inner.models(task, branch(state, "inner"), _inside(clients))

    def predict(
        self,
        task: Task,
        weights: Tensors,
        inputs: torch.Tensor,
        key: int | str | None,
        state: State,
        clients: Mapping[int, State],
    ) -> torch.Tensor:
        """Return what the algorithm inside predicts, or what its layers do with what a `CodecAtWork` leaves at the cut.

        A common model is cut where most clients have cut it, and coded with what these remember; the lowest cut of equals.
        """
        if isinstance(self.inner, PredictingAlgorithm):
            return self.inner.predict(task, weights, inputs, key, branch(state, "inner"), _inside(clients))
        if not isinstance(self.codec, CodecAtWork):
            return task.predict(weights, inputs)
        memories: dict[int, list[State]] = {}  # by cut
        for client, own in clients.items():
            if "cut" in own and (client == key or not isinstance(key, int)):
                memories.setdefault(int(memory_tensor(own, "cut")), []).append(first(branch(own, "codec")))
        if not memories:
            return task.predict(weights, inputs)
        cut = max(memories, key=lambda cut: (len(memories[cut]), -cut))
        activations = task.as_sent(task.forward(weights, inputs, 0, cut, training=False).outputs)
        arrived = self.codec.at_work(activations, memories[cut])
        return task.forward(weights, arrived, cut, training=False).outputs


def _inside(clients: Mapping[int, State]) -> dict[int, State]:
    """Return what clients remember of the algorithm inside."""
    return {client: branch(own, "inner") for client, own in clients.items() if branch(own, "inner")}
