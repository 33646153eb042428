"""The U shape of split learning: a client's work with the last layers, its head; its labels never leave it."""

from edgeopt.training.messages import Message, State, reply
from edgeopt.training.optimizers import Optimizer
from edgeopt.training.rules.optimizer_state import leaves_in, overlay
from edgeopt.training.split.exchange import own_optimizer, own_weights
from edgeopt.training.split.server import server_gradients
from edgeopt.training.task import Batch, Task


def head_step(task: Task, optimizer: Optimizer, message: Message, state: State, batch: Batch) -> tuple[Message, State]:
    """Take a step with the head on what the server's layers have returned; answer with the gradient by it, and the loss.

    The step stays, also if the client fails before it has made the one of its first layers.
    """
    first = task.num_layers - int(message.values["head"])
    weights = own_weights(task, message, state)
    head, before = task.part(weights, first), own_optimizer(task, optimizer, weights, state)
    # the head is to the middle what the server's layers are to the first ones
    found = server_gradients(task, first, head, (message["activations"]["outputs"], batch.targets[0]))
    trained = task.trained(head)
    parameters, after = optimizer.step(trained, found.gradients, leaves_in(before, trained))
    new: State = {"weights": {**weights, **parameters, **found.buffers}, "optimizer": overlay(before, after)}
    return reply(gradients={"outputs": found.gradient}, scalars={"loss": found.loss}), new
