"""Small things that every algorithm needs."""

from typing import Literal

import torch

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.training.messages import State, Tensors
from edgeopt.training.task import Task
from edgeopt.validate import int_array

Weighting = Literal["samples", "uniform"]


def client_weight(task: Task, client: int, weighting: Weighting) -> float:
    """Return how much a client counts in an average, before normalising."""
    return float(task.partition.indices[client].size) if weighting == "samples" else 1.0


def check_batch_size(batch_size: int) -> None:
    """Refuse what is no batch size."""
    int_array("batch_size", batch_size, (), low=1)


def check_weighting(weighting: str) -> None:
    """Refuse an unknown way of weighting clients."""
    if weighting not in ("samples", "uniform"):
        raise InvalidProblemError(f"weighting = {quoted(weighting)}: expected 'samples' or 'uniform'")


def tensors_of(state: State, name: str) -> Tensors:
    """Return an entry of a state that holds tensors, and no more states."""
    found = state.get(name)
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InvalidProblemError(f"state: {name}: expected tensors by name, as this algorithm leaves them")
    return found  # type: ignore[return-value]
