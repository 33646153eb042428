"""Parts and averages of the states of optimisers: nested dictionaries with the parameters' names at the leaves."""

from collections.abc import Container, Sequence

import torch

from edgeopt.training.messages import State, Tensors
from edgeopt.training.rules.average import weighted_average


def leaves_in(state: State, names: Container[str]) -> State:
    """Return the state of some parameters only.

    Examples
    --------
    >>> leaves_in({"momentum": {"a": torch.ones(1), "b": torch.ones(1)}}, ["a"])
    {'momentum': {'a': tensor([1.])}}
    """
    return {
        name: value if isinstance(value, torch.Tensor) else leaves_in(value, names)
        for name, value in state.items()
        if not isinstance(value, torch.Tensor) or name in names
    }


def overlay(below: State, above: State) -> State:
    """Return a state with what `above` has, and the rest from `below`."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name, {})
        inner = not isinstance(value, torch.Tensor) and not isinstance(under, torch.Tensor)
        merged[name] = overlay(under, value) if inner else value  # type: ignore[arg-type]
    return merged


def average_states(states: Sequence[State], shares: Sequence[float]) -> State:
    """Return the weighted average of states of equal structure."""
    average: State = {}
    for name, first in states[0].items():
        column = [state[name] for state in states]
        if isinstance(first, torch.Tensor):
            leaves: list[Tensors] = [{name: value} for value in column if isinstance(value, torch.Tensor)]
            average[name] = weighted_average(leaves, shares)[name]
        else:
            average[name] = average_states([value for value in column if isinstance(value, dict)], shares)
    return average
