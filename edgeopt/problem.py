"""What a problem is: frozen data that alone knows the objective and the constraints."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from edgeopt import storage

Sense = Literal["max", "min"]


@dataclass(frozen=True, slots=True)
class Violation:
    """One violated constraint.

    Parameters
    ----------
    constraint : name of the constraint family, for example ``storage``.
    index : which member of the family, for example the server.
    amount : by how much, in the constraint's own unit.
    message : one sentence with the numbers.
    """

    constraint: str
    index: int
    amount: float
    message: str


class Problem(ABC):
    """Base of all problems: subclasses are frozen dataclasses that validate themselves.

    Notes
    -----
    The problem owns the truth: solvers report decisions, and every `Result` recomputes objective and feasibility here.
    """

    __slots__ = ()

    kind: ClassVar[str]
    """Name on the command line and in files, for example ``expert-caching``."""
    sense: ClassVar[Sense]
    """Whether the objective is maximised or minimised."""
    schema_version: ClassVar[int] = 1
    """Version of the file format."""

    @property
    def largest_term(self) -> float:
        """Size of the terms of the objective where they can cancel; 0 where all have one sign.

        Objectives and bounds are exact up to a relative rounding of themselves, and of this.
        """
        return 0.0

    @abstractmethod
    def objective(self, solution: Any) -> float:
        """Return the objective value of a solution."""

    @abstractmethod
    def violations(self, solution: Any) -> tuple[Violation, ...]:
        """Return every violated constraint with its amount; empty when the solution is feasible."""

    @abstractmethod
    def describe(self) -> dict[str, str | int | float]:
        """Return the facts a person wants to see first: sizes, units, modes."""

    @abstractmethod
    def to_data(self) -> tuple[dict[str, Any], storage.Arrays]:
        """Return plain values and named arrays that `from_data` turns into an equal problem."""

    @classmethod
    @abstractmethod
    def from_data(cls, values: dict[str, Any], arrays: storage.Arrays) -> Self:
        """Build the problem from what `to_data` returned."""

    @classmethod
    def layout(cls, values: dict[str, Any]) -> storage.Layout:
        """Return which arrays a file with these plain values may hold; kinds with arrays say so."""
        return {}

    def is_feasible(self, solution: Any) -> bool:
        """Return whether a solution violates nothing."""
        return not self.violations(solution)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the problem to a ``.json`` or ``.npz`` file, atomically; `edgeopt.load` reads it back."""
        values, arrays = self.to_data()
        storage.save(path, {"kind": self.kind, "schema_version": self.schema_version, **values}, arrays)

    def fingerprint(self) -> str:
        """Return a short hash of the contents: equal problems have equal fingerprints."""
        values, arrays = self.to_data()
        digest = hashlib.sha256(json.dumps([self.kind, self.schema_version, values], sort_keys=True).encode())
        for name in sorted(arrays):
            array = arrays[name]
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]
