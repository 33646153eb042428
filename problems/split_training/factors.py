"""`CostFactors`: what a round of another algorithm costs, in terms of a round of split federated learning."""

import dataclasses
from dataclasses import dataclass
from typing import Self

from edgeopt.errors import InvalidProblemError
from edgeopt.fields import Fields
from edgeopt.validate import real

LARGEST = 1e6
"""Factors are 0, or from one over this number to it: products with the numbers of a problem stay finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostFactors:
    """How often a round of an algorithm has what a round of SplitFed has once; the defaults are SplitFed's own.

    They are ours. An algorithm of `edgeopt.training` whose rounds differ says so in its ``cost_factors``; with them, the
    seconds of a plan are those of its rounds.

    Parameters
    ----------
    device_forward : passes forward on the device before the server's turn.
    device_backward : passes backward on the device after it.
    device_probes : passes forward on the device after it.
    server_forward, server_backward : passes at the server.
    uplink, downlink : what crosses the cut, up and down.
    aggregation : parameters that cross to and from the fed server.
    kept : activations that the device keeps for a backward pass.

    Examples
    --------
    >>> CostFactors(device_backward=0, device_probes=5).changed()
    {'device_backward': 0.0, 'device_probes': 5.0}
    """

    device_forward: float = 1.0
    device_backward: float = 1.0
    device_probes: float = 0.0
    server_forward: float = 1.0
    server_backward: float = 1.0
    uplink: float = 1.0
    downlink: float = 1.0
    aggregation: float = 1.0
    kept: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = real(f"factors.{field.name}", getattr(self, field.name), nonnegative=True)
            if value and not 1 / LARGEST <= value <= LARGEST:
                raise InvalidProblemError(
                    f"factors.{field.name} = {value:g}: expected 0, or a number from {1 / LARGEST:g} to {LARGEST:g}"
                )
            object.__setattr__(self, field.name, value)

    def changed(self) -> dict[str, float]:
        """Return by name the factors that are not SplitFed's; plain values, which files hold."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value != getattr(_SPLITFED, name)}

    @classmethod
    def from_changed(cls, given: Fields) -> Self:
        """Return the factors of which `changed` gave the values."""
        names = [field.name for field in dataclasses.fields(cls)]
        if (unknown := next((name for name in given if name not in names), None)) is not None:
            raise given.wrong(unknown, f"no other name than {', '.join(names)}")
        return cls(**{name: given.number(name) for name in given})


_SPLITFED = CostFactors()
