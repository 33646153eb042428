"""What algorithms hand over, checked where it crosses: messages, replies, states, outcomes.

The messages say what was given and what was expected; round and client are put before them by whoever calls.
"""

import math
from collections.abc import Container, Iterable, Mapping

import torch

from edgeopt.errors import quoted
from edgeopt.schedule import RoundPlan
from edgeopt.training.messages import Message, Phase, check_message
from edgeopt.training.trouble import TrainingError, described


def check_state(state: object, name: str = "state") -> None:
    """Refuse a state that is no dictionary of tensors by name, nested."""
    if not isinstance(state, Mapping):
        raise TrainingError(f"{name} is {described(state)}: expected a dictionary of tensors, or of such dictionaries")
    for key, value in state.items():
        if not isinstance(key, str):
            raise TrainingError(f"{name}: key {quoted(key)}: expected a name")
        if not isinstance(value, torch.Tensor):
            if not isinstance(value, Mapping):
                raise TrainingError(
                    f"{name}[{key!r}] is {described(value)}: expected a tensor, or a dictionary of them"
                )
            check_state(value, f"{name}[{key!r}]")


def check_scalar(name: str, value: object) -> None:
    """Refuse what is no single number; nan stands for one that was not measured."""
    single = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()
    if not single and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TrainingError(f"{name} is {described(value)}: expected a single number")


def check_measured(measured: Mapping[str, float | torch.Tensor], taken: Container[str]) -> None:
    """Refuse numbers that no row can hold, or under names that are taken."""
    for name, value in measured.items():
        if not isinstance(name, str) or name in taken:
            raise TrainingError(f"measured: {quoted(name)}: expected a name that no column of a row has")
        check_scalar(f"measured: {name}", value)
        if math.isinf(number := float(value)):
            raise TrainingError(f"measured: {name} = {number}: expected a finite number, or nan")


def check_answer(answer: object) -> None:
    """Refuse what a client's work returns if it is no pair of a reply and a state."""
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], Message):
        raise TrainingError(f"the client returned {described(answer)}: expected a pair, reply and state")
    check_message(answer[0])
    check_state(answer[1])


def check_phase(phase: object, plan: RoundPlan) -> None:
    """Refuse what a round yields if it is no phase of this plan."""
    if not isinstance(phase, Phase):
        raise TrainingError(f"the round yielded {described(phase)}: expected a Phase")
    check_entries(f"phase {phase.name!r}: messages", phase.messages, plan)
    check_entries(f"phase {phase.name!r}: server_flops", phase.server_flops, plan)
    for entry, message in phase.messages.items():
        if not isinstance(message, Message):
            raise TrainingError(
                f"client {plan.client[entry]}: phase {phase.name!r}: {described(message)}: expected a Message"
            )
        try:
            check_message(message)
        except TrainingError as error:
            raise TrainingError(f"client {plan.client[entry]}: phase {quoted(phase.name)}: {error}") from None


def check_entries(what: str, entries: Iterable[object], plan: RoundPlan) -> None:
    """Refuse what is no position in the plan."""
    for entry in entries:
        if not isinstance(entry, int) or isinstance(entry, bool) or not 0 <= entry < len(plan):
            last = len(plan) - 1
            expected = f"0 to {last}, positions in the plan" if len(plan) else "none, the plan is empty"
            raise TrainingError(f"{what}: entry {quoted(entry)}: expected {expected}")
