"""What algorithms hand over, checked where it crosses: messages, replies, states, outcomes.

The messages say what was given and what was expected; round and client are put before them by whoever calls.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from edgeopt.schedule import RoundPlan
from edgeopt.training.trouble import TrainingError


def check_state(state: object, name: str = "state") -> None:
    """Refuse a state that is no dictionary of tensors by name, nested."""
    if not isinstance(state, Mapping):
        raise TrainingError(f"{name} is {_described(state)}: expected a dictionary of tensors, or of such dictionaries")
    for key, value in state.items():
        if not isinstance(key, str):
            raise TrainingError(f"{name}: key {_shown(key)}: expected a name")
        if not isinstance(value, torch.Tensor):
            if not isinstance(value, Mapping):
                raise TrainingError(
                    f"{name}[{key!r}] is {_described(value)}: expected a tensor, or a dictionary of them"
                )
            check_state(value, f"{name}[{key!r}]")


def check_scalar(name: str, value: object) -> None:
    """Refuse what is no single number; nan stands for one that was not measured."""
    single = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()
    if not single and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TrainingError(f"{name} is {_described(value)}: expected a single number")
    if not isinstance(value, torch.Tensor) and isinstance(value, int | float) and math.isinf(value):
        raise TrainingError(f"{name} = {value}: expected a finite number")


def check_entries(what: str, entries: Iterable[object], plan: RoundPlan) -> None:
    """Refuse what is no position in the plan."""
    for entry in entries:
        if not isinstance(entry, int) or isinstance(entry, bool) or not 0 <= entry < len(plan):
            last = len(plan) - 1
            expected = f"0 to {last}, positions in the plan" if len(plan) else "none, the plan is empty"
            raise TrainingError(f"{what}: entry {_shown(entry)}: expected {expected}")


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    article = "an" if type(value).__name__[:1] in "aeiou" else "a"
    return f"{article} {type(value).__name__}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
