"""What the algorithms of split learning share: the client's work, and the exchange of activations and gradients.

A client has layers 1 to its cut and sends what they return, with the labels; the server runs the layers above, and sends
the gradient of the loss by the activations back. Clients keep no graph between the two messages: they run their layers
again on the same mini-batch. Time is charged for one forward and one backward pass, as a device that keeps it would take.
Buffers, such as those of batch normalisation, change in the backward message. A client whose cut is the last layer
trains alone: it sends nothing but its loss. A client whose layers are all frozen gets no gradient.

In the U shape a client has the last layers too, its head, and keeps its labels. What the server's layers return comes
back to it, it takes a step with its head, and the server gets the gradient by what it has sent: `head_step` in
`edgeopt.training.split.head` is the client's work for that.

All clients have the model's initial weights from the start: they come with the task and cost no bytes.
"""

import functools
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from edgeopt.errors import InvalidProblemError
from edgeopt.schedule import RoundPlan
from edgeopt.training.costs.memory import client_peak_bytes
from edgeopt.training.messages import Batches, Message, Phase, Replies, State, Tensors, Value, received, reply
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.rules.common import tensors_of
from edgeopt.training.rules.gradients import gradients
from edgeopt.training.rules.optimizer_state import leaves_in, overlay
from edgeopt.training.task import Batch, Task
from edgeopt.training.trouble import TrainingError
from edgeopt.validate import int_array

Smashed = tuple[torch.Tensor, torch.Tensor]
"""What a client sends: activations [samples, ...] and targets [samples, ...]; in the U shape, in place of the targets,
the gradient of its loss by what the server's layers have returned."""


class Answer(NamedTuple):
    """What the server makes of it: the gradient by the activations [samples, ...], and the loss.

    Without a gradient nothing is sent back, and nothing moves at the client in this step. Without a loss it is the
    client that knows it, in the U shape.
    """

    gradient: torch.Tensor | None
    loss: torch.Tensor | None


Work = Callable[[Mapping[int, Smashed]], Mapping[int, Answer]]
"""The server's work on what entries of the plan have sent."""

Ahead = Callable[[Mapping[int, torch.Tensor]], Mapping[int, torch.Tensor]]
"""In the U shape: what the server's layers return for the activations of entries of the plan."""


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
    head : in the U shape, it also has so many of the last layers, and keeps its labels.
    whole : whether all mini-batches have so many samples, see `edgeopt.training.Batches`.
    spared : FLOPs per sample, forward and backward, that the client's layers take less than the profile says.
    """

    client: int
    cut: int
    batch_size: int
    samples: int
    steps: int
    peak_bytes: float = 0.0
    head: int = 0
    whole: bool = True
    spared: tuple[float, float] = (0.0, 0.0)

    @property
    def values(self) -> dict[str, Value]:
        """Which layers a message to the client is about."""
        return {"cut": self.cut, "head": self.head} if self.head else {"cut": self.cut}

    def batches(self, number: int, step: int) -> Batches:
        """Return the mini-batch of a step of a round."""
        return Batches(number, step, 1, self.batch_size, self.whole)


def check_cut_layer(cut_layer: int) -> None:
    """Refuse what is no cut layer."""
    int_array("cut_layer", cut_layer, (), low=1)


def assign(
    task: Task,
    plan: RoundPlan,
    number: int,
    cut_layer: int,
    batch_size: int,
    optimizer: Optimizer | None = None,
    *,
    head: int = 0,
    probes: bool = False,
) -> dict[int, Assignment]:
    """Return what each entry of a plan does.

    Parameters
    ----------
    cut_layer, batch_size : where the plan leaves them open.
    optimizer : of the clients; its state counts as memory. Default: one without a state.
    head : how many of the last layers clients have as well: the U shape.
    probes : whether clients learn by forward passes alone, which takes less memory.

    Raises
    ------
    InvalidProblemError
        If a cut is above the last layer, or leaves the server none below the clients' head; if a client has two
        entries: it holds one part of one model.
    """
    assigned: dict[int, Assignment] = {}
    deepest = task.num_layers - head - 1 if head else task.num_layers
    why = (
        f"the server has one at least of {task.num_layers}, clients the last {head}"
        if head
        else "the layers of the model"
    )
    peak = functools.cache(
        lambda samples, cut: client_peak_bytes(task, samples, optimizer, cut=cut, head=head, probes=probes)
    )
    for entry, planned in enumerate(plan):
        cut, size = planned.cut_layer or cut_layer, planned.batch_size or batch_size
        if cut > deepest:
            raise InvalidProblemError(f"round {number}: cut_layer[{entry}] = {cut}: expected 1 to {deepest}, {why}")
        samples = task.samples(planned.client, size)
        steps, whole = task.steps(planned, size), planned.local_epochs == 0
        assigned[entry] = Assignment(planned.client, cut, size, samples, steps, peak(samples, cut), head, whole)
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
        return reply(weights=task.part(_own(task, state, last, 0), first, last)), state
    cut, weights = int(message.values["cut"]), own_weights(task, message, state)
    if message.kind == "place":
        weights = received(message, weights)
        weights = {name: weights[name] for name in task.layer_of if name in weights}
        return reply(), {"weights": dict(weights), "optimizer": own_optimizer(task, optimizer, weights, state)}
    assert batch is not None
    inputs, targets = batch.inputs[0], batch.targets[0]
    if message.kind == "forward":
        if cut == task.num_layers:
            return reply(), state
        outputs = task.as_sent(task.forward(weights, inputs, 0, cut).outputs)
        if "head" in message.values:  # its labels stay with it
            return reply(activations={"outputs": outputs}), state
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

    stem = task.trained(task.part(weights, 0, cut))  # a head has made its step
    before = own_optimizer(task, optimizer, weights, state)
    slopes, (loss, changed) = gradients(loss_of, stem)
    parameters, after = optimizer.step(stem, slopes, leaves_in(before, stem))
    new: State = {"weights": {**weights, **parameters, **changed}, "optimizer": overlay(before, after)}
    return reply(scalars={"loss": loss}) if alone else reply(), new


def own_weights(task: Task, message: Message, state: State) -> Tensors:
    """Return the weights of the layers that a message to a client is about, as many of them as it has."""
    return _own(task, state, int(message.values["cut"]), int(message.values.get("head", 0)))


def own_optimizer(task: Task, optimizer: Optimizer, weights: Tensors, state: State) -> State:
    """Return the state of a client's optimiser for some weights; it starts at zero for those that are new to it."""
    start, old = optimizer.start(task.trained(weights)), state.get("optimizer", {})
    assert isinstance(old, dict)
    return overlay(start, leaves_in(old, weights))


def _own(task: Task, state: State, cut: int, head: int) -> Tensors:
    """Return the client's layers 1 to `cut` and its last `head`, or as many of them as it has."""
    held = tensors_of(state, "weights") if state else task.initial_weights()
    return {**task.part(held, 0, cut), **task.part(held, task.num_layers - head)}


# --- the conversation --------------------------------------------------------------------------------------------


def play_steps(
    task: Task,
    assigned: Mapping[int, Assignment],
    number: int,
    work: Work,
    settle: Callable[[Mapping[int, torch.Tensor]], None] | None = None,
    *,
    ahead: Ahead | None = None,
    aside: int = 0,
) -> Generator[Phase, Replies, dict[int, torch.Tensor]]:
    """Play the local steps of a round; a client that fails in one of them is out of those after it.

    Parameters
    ----------
    work : the server's work on the activations of a step.
    settle : told the losses of the entries that got through a step.
    ahead : the server's forward pass, where clients have a head; `work` then gets the gradients by what it has returned.
    aside : samples of its own that the server works through in each step, with the layers above each client's cut.

    Returns
    -------
    Mean loss of those that got through all their steps.
    """

    def play(working: Mapping[int, Assignment], step: int) -> Generator[Phase, Replies, dict[int, torch.Tensor]]:
        through = yield from _play_step(task, working, (number, step), work, ahead, aside)
        if settle is not None:
            settle(through)
        return through

    return (yield from each_step(assigned, play))


def each_step(
    assigned: Mapping[int, Assignment],
    play: Callable[[Mapping[int, Assignment], int], Generator[Phase, Replies, dict[int, torch.Tensor]]],
) -> Generator[Phase, Replies, dict[int, torch.Tensor]]:
    """Play the local steps of a round, whatever a step is; a client that fails in one of them is out of those after it.

    Parameters
    ----------
    play : plays one step with those that have it, by its number from 0; returns the losses of those that got through.

    Returns
    -------
    Mean loss of those that got through all their steps.
    """
    losses: dict[int, list[torch.Tensor]] = {entry: [] for entry in assigned}
    for step in range(max((assignment.steps for assignment in assigned.values()), default=0)):
        working = {entry: assigned[entry] for entry in losses if step < assigned[entry].steps}
        through = yield from play(working, step)
        losses = {
            entry: [*found, through[entry]] if entry in through else found
            for entry, found in losses.items()
            if entry in through or entry not in working
        }
    return {entry: torch.stack([loss.float() for loss in found]).mean() for entry, found in losses.items()}


def _play_step(
    task: Task, assigned: Mapping[int, Assignment], at: tuple[int, int], work: Work, ahead: Ahead | None, aside: int
) -> Generator[Phase, Replies, dict[int, torch.Tensor]]:
    if not assigned:
        return {}
    messages, served = {}, {}
    samples = {entry: task.num_samples(own.client, own.batches(*at)) for entry, own in assigned.items()}
    for entry, assignment in assigned.items():
        own, cut, last = samples[entry], assignment.cut, task.num_layers - assignment.head
        forward = task.flops(own, 0, cut, backward=False) - own * assignment.spared[0]
        messages[entry] = _message("forward", assignment, at, forward)
        served[entry] = task.flops(own, cut, last, backward=ahead is None) + task.flops(aside, cut, last)
    sent = yield Phase("forward", messages, server_flops=served)
    came = {entry: answer["activations"]["outputs"] for entry, answer in sent.items() if "activations" in answer}
    if ahead is None:
        smashed = {entry: (outputs, sent[entry]["labels"]["targets"]) for entry, outputs in came.items()}
    else:
        sent = (yield from _play_heads(task, assigned, at, ahead(came))) if came else {}
        smashed = {entry: (came[entry], answer["gradients"]["outputs"]) for entry, answer in sent.items()}
    answers = work(smashed) if smashed else {}
    if missing := smashed.keys() - answers.keys():
        client = assigned[min(missing)].client
        raise TrainingError(
            f"client {client}: the server has no answer to its activations, expected one for each client"
        )
    messages = {}
    for entry in sent:
        assignment, tensors = assigned[entry], {}
        if entry in answers:
            gradient = answers[entry].gradient
            if gradient is None or not task.trains(0, assignment.cut):
                continue
            tensors = {"outputs": gradient}
        layers = float(task.profile.backward_flops[: assignment.cut].sum())
        backward = samples[entry] * (layers - assignment.spared[1])
        messages[entry] = _message("backward", assignment, at, backward, gradients=tensors)
    done = (yield Phase("backward", messages)) if messages else {}
    losses = {entry: answer.loss for entry, answer in answers.items() if answer.loss is not None}
    for replies in (sent, done):  # whoever has the labels knows the loss
        losses |= {e: answer["scalars"]["loss"] for e, answer in replies.items() if "loss" in answer["scalars"]}
    return {entry: losses[entry] for entry in sent if entry in done or entry not in messages}


def _play_heads(
    task: Task, assigned: Mapping[int, Assignment], at: tuple[int, int], outputs: Mapping[int, torch.Tensor]
) -> Generator[Phase, Replies, Replies]:
    """Have clients take a step with their heads on what the server's layers have returned for their activations."""
    messages, served = {}, {}
    for entry, tensor in outputs.items():
        assignment = assigned[entry]
        samples, last = len(tensor), task.num_layers - assignment.head
        messages[entry] = _message("head", assignment, at, task.flops(samples, last), activations={"outputs": tensor})
        served[entry] = samples * float(task.profile.backward_flops[assignment.cut : last].sum())
    return (yield Phase("head", messages, server_flops=served))


def _message(kind: str, assignment: Assignment, at: tuple[int, int], flops: float, **tensors: Tensors) -> Message:
    content: Any = {category: named for category, named in tensors.items() if named}
    return Message(kind, content, assignment.values, assignment.batches(*at), flops, peak_bytes=assignment.peak_bytes)
