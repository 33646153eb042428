"""What a problem is: frozen data that alone knows the objective and the constraints."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

from edgeopt import storage
from edgeopt.display import headline, html_facts
from edgeopt.errors import EdgeOptError
from edgeopt.explain import Explanation

Sense = Literal["max", "min"]


class Solution(Protocol):
    """Frozen decision arrays of one problem."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dumps`."""
        ...


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

    def solution_from_json(self, document: dict[str, Any]) -> Any:
        """Return the solution that its ``to_json`` wrote; kinds whose solutions can be read back say how."""
        raise EdgeOptError(f"solutions of {self.kind} cannot be read back")

    def tiny_like(self) -> "Problem | None":
        """Return a tiny problem that takes solvers through the same branches, for warming them up; None for no warm-up."""
        return None

    def is_feasible(self, solution: Any) -> bool:
        """Return whether a solution violates nothing."""
        return not self.violations(solution)

    def explain(self, solution: Any = None) -> Explanation:
        """Return why there is no solution, as limits that cannot hold together, and who is left out, with what would have to give.

        Parameters
        ----------
        solution : of model download, a plan, whose refused users are explained; without it, those who cannot be served even
            alone. Other kinds take none.

        Raises
        ------
        EdgeOptError
            If the kind of problem is not one of the package.
        """
        from edgeopt import solvers  # late: the core does not depend on the solvers

        return solvers.explain(self, solution)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({headline(self.describe())})"

    def _repr_html_(self) -> str:
        return html_facts(type(self).__name__, self.describe())

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
