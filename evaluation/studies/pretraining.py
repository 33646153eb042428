"""Pre-train, then fine-tune: a model that knows one domain, and clients whose data are of another.

Of text, the domain of pre-training is most of it, read backwards.

``pretrained(task, other_domain("digits", seed))`` is the model of a task, trained centrally on data that no client has;
``task.replace(model=...)`` has the clients start from it.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from edgeopt.data import ArrayData, DataSplit, byte_text, load_data
from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.rng import stream
from edgeopt.training import Batch, Optimizer, Task
from edgeopt.training.optimizers import Adam
from edgeopt.training.rules.local import minimise
from edgeopt.training.runners.local import seeded_layers
from edgeopt.validate import integer

DOMAINS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "digits": lambda inputs: torch.rot90(inputs, dims=(2, 3)),
    "mnist-1d": lambda inputs: inputs.flip(1),
}
"""How samples (n, ...) look in the domain of pre-training: digits lie on their side, signals run backwards."""

_TEXT_SHARE = 0.3  # of the text that is trained on: the rest is pre-trained on


def other_domain(data: str, seed: int) -> ArrayData:
    """Return training samples of a data set as the domain of pre-training has them, with their labels.

    Parameters
    ----------
    data : one of `DOMAINS`.
    seed : of the data set; with that of a task, no held-out sample of the task is among them.
    """
    if data not in DOMAINS:
        raise InvalidProblemError(f"data = {quoted(data)}: expected one of {', '.join(DOMAINS)}")
    upright = load_data(data, seed=seed).train
    return ArrayData(
        DOMAINS[data](upright.inputs).contiguous(), upright.targets, upright.num_classes, f"other {upright.name}"
    )


def text_and_other_domain(context: int, seed: int, name: str) -> tuple[DataSplit, ArrayData]:
    """Return text to train on and to test with, and the rest of it read backwards, for pre-training.

    Parameters
    ----------
    context : bytes of a window.
    seed, name : decide which windows are which; name of the study.
    """
    data = byte_text(context=context, seed=seed)
    order = stream(seed, name).permutation(len(data.train))
    own, other = np.split(order, [int(_TEXT_SHARE * len(order))])
    before = data.train.take(other)
    turned = torch.cat([before.inputs[:, :1], before.targets], dim=1).flip(1)  # (n, T + 1)
    backwards = ArrayData(turned[:, :-1].contiguous(), turned[:, 1:].contiguous(), 256, "text read backwards")
    return DataSplit(data.train.take(np.sort(own)), data.test), backwards


def pretrained(
    task: Task, data: ArrayData, *, steps: int = 600, batch_size: int = 64, optimizer: Optimizer | None = None
) -> nn.Sequential:
    """Return a copy of the model of a task, trained centrally on other data; the task and its model stay as they are.

    Every parameter that requires gradients is trained, with the loss of the task and all that its layers add to it.
    What is frozen, and what has adapters, is decided afterwards, for fine-tuning.

    Parameters
    ----------
    task : gives the model with its initial weights, the loss, and the seed of the mini-batches.
    data : what is trained on, of the shapes of the task.
    steps, batch_size : mini-batches, and samples of each, drawn without replacement.
    optimizer : default: Adam with a step size of 0.003.

    Examples
    --------
    >>> from edgeopt.evaluation.studies.learning import learning_task
    >>> task = learning_task("digits-0.5", 10, seed=0)
    >>> model = pretrained(task, other_domain("digits", seed=0), steps=5)
    >>> fine_tuning = task.replace(model=model, profile=task.profile)
    """
    steps, size = integer("steps", steps, low=1), integer("batch_size", batch_size, low=1, high=len(data))
    rng = stream(task.seed, "pre-training")
    rows = torch.stack([torch.from_numpy(rng.choice(len(data), size, replace=False)) for _ in range(steps)])
    batch = Batch(data.inputs[rows].to(task.device), data.targets[rows].to(task.device))
    with seeded_layers(task, "pre-training"):
        found = minimise(task, task.batch_loss, task.initial_weights(), batch, optimizer or Adam(0.003))
    model = copy.deepcopy(task.model)
    model.load_state_dict(task.whole(found.weights))
    return model
