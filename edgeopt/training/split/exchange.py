"""What the algorithms of split learning share: the client's work, and the exchange of activations and gradients.

A client has layers 1 to its cut and sends what they return, with the labels; the server runs the layers above, and sends
the gradient of the loss by the activations back. Clients keep no graph between the two messages: they run their layers
again on the same mini-batch. Time is charged for one forward and one backward pass, as a device that keeps it would take.
Buffers, such as those of batch normalisation, change in the backward message. A client whose cut is the last layer
trains alone: it sends nothing but its loss. A client whose layers are all frozen gets no gradient.

All clients have the model's initial weights from the start: they come with the task and cost no bytes.
"""

import functools
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from edgeopt.errors import InvalidProblemError
from edgeopt.schedule import RoundPlan
from edgeopt.training.costs.memory import client_peak_bytes
from edgeopt.training.messages import Batches, Category, Message, Phase, Replies, State, Tensors, received, reply
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.rules.common import tensors_of
from edgeopt.training.rules.gradients import gradients
from edgeopt.training.rules.optimizer_state import leaves_in, overlay
from edgeopt.training.task import Batch, Task
from edgeopt.training.trouble import TrainingError
from edgeopt.validate import int_array

Smashed = tuple[torch.Tensor, torch.Tensor]
"""What a client sends in the forward phase: activations [samples, ...] and targets [samples, ...]."""


class Answer(NamedTuple):
    """What the server makes of it: the gradient by the activations [samples, ...], and the loss.

    Without a gradient nothing is sent back, and nothing moves at the client in this step.
    """

    gradient: torch.Tensor | None
    loss: torch.Tensor


Work = Callable[[Mapping[int, Smashed]], Mapping[int, Answer]]
"""The server's work on what entries of the plan have sent."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one client does in a round, with the algorithm's defaults filled in.

    Parameters
    ----------
    client : its id.
    cut : it has layers 1 to `cut`.
    batch_size, samples : of a mini-batch, as planned and as the client has them.
    steps : mini-batches of the round.
    peak_bytes : memory that the client needs.
    whole : whether all mini-batches have so many samples, see `edgeopt.training.Batches`.
    """

    client: int
    cut: int
    batch_size: int
    samples: int
    steps: int
    peak_bytes: float = 0.0
    whole: bool = True

    def batches(self, number: int, step: int) -> Batches:
        """Return the mini-batch of a step of a round."""
        return Batches(number, step, 1, self.batch_size, self.whole)


def check_cut_layer(cut_layer: int) -> None:
    """Refuse what is no cut layer."""
    int_array("cut_layer", cut_layer, (), low=1)


def assign(
    task: Task, plan: RoundPlan, number: int, cut_layer: int, batch_size: int, optimizer: Optimizer | None = None
) -> dict[int, Assignment]:
    """Return what each entry of a plan does.

    Parameters
    ----------
    cut_layer, batch_size : where the plan leaves them open.
    optimizer : of the clients; its state counts as memory. Default: one without a state.

    Raises
    ------
    InvalidProblemError
        If a cut is above the last layer, or a client has two entries: it holds one part of one model.
    """
    assigned: dict[int, Assignment] = {}
    peak = functools.cache(lambda samples, cut: client_peak_bytes(task, samples, optimizer, cut=cut))
    for entry, planned in enumerate(plan):
        cut, size = planned.cut_layer or cut_layer, planned.batch_size or batch_size
        if cut > task.num_layers:
            raise InvalidProblemError(
                f"round {number}: cut_layer[{entry}] = {cut}: expected 1 to {task.num_layers}, the layers of the model"
            )
        samples = task.samples(planned.client, size)
        steps, whole = task.steps(planned, size), planned.local_epochs == 0
        assigned[entry] = Assignment(planned.client, cut, size, samples, steps, peak(samples, cut), whole)
    if (twice := plan.conflicts).size:
        raise InvalidProblemError(
            f"round {number}: client {twice[0]} is planned by two servers: split learning has one, expected one entry"
        )
    return assigned


# --- the client's side -------------------------------------------------------------------------------------------


def split_client(
    task: Task, optimizer: Optimizer, message: Message, state: State, batch: Batch | None
) -> tuple[Message, State]:
    """Do a client's work for one message; its state is its own layers and their optimiser.

    ``place`` brings layers and names those that the client holds and keeps, ``fetch`` asks for some. The optimiser's state is never sent: it
    starts at zero for layers that are new to the client, and goes on for the others.
    """
    if message.kind == "fetch":
        first, last = int(message.values["first"]), int(message.values["last"])
        return reply(weights=task.part(_own(task, state, last), first, last)), state
    cut = int(message.values["cut"])
    if message.kind == "place":
        weights = received(message, _own(task, state, cut))
        weights = {name: weights[name] for name in task.layer_of if name in weights}
        return reply(), {"weights": dict(weights), "optimizer": _optimizer(task, optimizer, weights, state)}
    assert batch is not None
    inputs, targets, weights = batch.inputs[0], batch.targets[0], _own(task, state, cut)
    if message.kind == "forward":
        if cut == task.num_layers:
            return reply(), state
        outputs = task.as_sent(task.forward(weights, inputs, 0, cut).outputs)
        return reply(activations={"outputs": outputs}, labels={"targets": targets}), state
    return _backward(task, optimizer, message, cut, weights, state, inputs, targets)


def _backward(
    task: Task,
    optimizer: Optimizer,
    message: Message,
    cut: int,
    weights: Tensors,
    state: State,
    inputs: torch.Tensor,
    targets: torch.Tensor,
) -> tuple[Message, State]:
    buffers = {name: value for name, value in weights.items() if name not in task.parameters}
    alone = cut == task.num_layers

    def loss_of(parameters: Tensors) -> tuple[torch.Tensor, tuple[torch.Tensor, Tensors]]:
        if alone:
            loss, changed = task.batch_loss({**parameters, **buffers}, inputs, targets)
        else:  # its gradient is that of the whole loss: the server's by the chain rule, and what these layers add
            passed = task.forward({**parameters, **buffers}, inputs, 0, cut)
            loss, changed = (passed.outputs * message["gradients"]["outputs"]).sum() + passed.penalty, passed.buffers
        return loss, (loss, changed)

    before = _optimizer(task, optimizer, weights, state)
    slopes, (loss, changed) = gradients(loss_of, task.trained(weights))
    parameters, after = optimizer.step(task.trained(weights), slopes, before)
    stepped = {**parameters, **changed}
    new: State = {"weights": {name: stepped[name] for name in weights}, "optimizer": after}
    return reply(scalars={"loss": loss}) if alone else reply(), new


def _own(task: Task, state: State, cut: int) -> Tensors:
    """Return the client's layers 1 to `cut`, or as many of them as it has."""
    return task.part(tensors_of(state, "weights") if state else task.initial_weights(), 0, cut)


def _optimizer(task: Task, optimizer: Optimizer, weights: Tensors, state: State) -> State:
    start, old = optimizer.start(task.trained(weights)), state.get("optimizer", {})
    assert isinstance(old, dict)
    return overlay(start, leaves_in(old, weights))


# --- the conversation --------------------------------------------------------------------------------------------


def play_steps(
    task: Task,
    assigned: Mapping[int, Assignment],
    number: int,
    work: Work,
    settle: Callable[[Mapping[int, torch.Tensor]], None] | None = None,
) -> Generator[Phase, Replies, dict[int, torch.Tensor]]:
    """Play the local steps of a round; a client that fails in one of them is out of those after it.

    Parameters
    ----------
    work : the server's work on the activations of a step.
    settle : told the losses of the entries that got through a step.

    Returns
    -------
    Mean loss of those that got through all their steps.
    """
    losses: dict[int, list[torch.Tensor]] = {entry: [] for entry in assigned}
    for step in range(max((assignment.steps for assignment in assigned.values()), default=0)):
        working = {entry: assigned[entry] for entry in losses if step < assigned[entry].steps}
        through = yield from _play_step(task, working, number, step, work)
        if settle is not None:
            settle(through)
        losses = {
            entry: [*found, through[entry]] if entry in through else found
            for entry, found in losses.items()
            if entry in through or entry not in working
        }
    return {entry: torch.stack([loss.float() for loss in found]).mean() for entry, found in losses.items()}


def _play_step(
    task: Task, assigned: Mapping[int, Assignment], number: int, step: int, work: Work
) -> Generator[Phase, Replies, dict[int, torch.Tensor]]:
    if not assigned:
        return {}
    messages, served = {}, {}
    samples = {entry: task.num_samples(own.client, own.batches(number, step)) for entry, own in assigned.items()}
    for entry, assignment in assigned.items():
        forward = task.flops(samples[entry], 0, assignment.cut, backward=False)
        messages[entry] = _message("forward", assignment, number, step, forward)
        served[entry] = task.flops(samples[entry], assignment.cut)
    sent = yield Phase("forward", messages, server_flops=served)
    smashed = {e: (r["activations"]["outputs"], r["labels"]["targets"]) for e, r in sent.items() if "activations" in r}
    answers = work(smashed) if smashed else {}
    if missing := smashed.keys() - answers.keys():
        client = assigned[min(missing)].client
        raise TrainingError(
            f"client {client}: the server has no answer to its activations, expected one for each client"
        )
    messages = {}
    for entry in sent:
        assignment, gradients = assigned[entry], None
        if entry in answers:
            gradient = answers[entry].gradient
            if gradient is None or not task.trains(0, assignment.cut):
                continue
            gradients = {"outputs": gradient}
        backward = samples[entry] * float(task.profile.backward_flops[: assignment.cut].sum())
        messages[entry] = _message("backward", assignment, number, step, backward, gradients)
    done = (yield Phase("backward", messages)) if messages else {}
    return {
        entry: answers[entry].loss if entry in answers else done[entry]["scalars"]["loss"]
        for entry in sent
        if entry in done or entry not in messages
    }


def _message(
    kind: str, assignment: Assignment, number: int, step: int, flops: float, gradients: Tensors | None = None
) -> Message:
    batches = assignment.batches(number, step)
    tensors: dict[Category, Tensors] = {} if gradients is None else {"gradients": gradients}
    return Message(kind, tensors, {"cut": assignment.cut}, batches, flops, peak_bytes=assignment.peak_bytes)
