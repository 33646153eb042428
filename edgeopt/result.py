"""What a solve returns: status apart from limit, a bound that is always valid, and where the time went."""

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from edgeopt import storage
from edgeopt.display import html_facts
from edgeopt.errors import NoSolutionError, SolverError
from edgeopt.prices import Price
from edgeopt.problem import Problem, Sense, Solution
from edgeopt.stop import Limit

S = TypeVar("S", bound=Solution)


class Status(StrEnum):
    """What is known about the solution."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    NO_SOLUTION = "no-solution"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Exact:
    """The solver proves optimality when it is left to finish."""

    source: str = ""

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True, slots=True)
class Ratio:
    """The objective is at least `alpha` times the optimum (for minimisation: at most the optimum / alpha)."""

    alpha: float
    source: str
    text: str = ""

    def __str__(self) -> str:
        return self.text or f"{self.alpha:.4g}"


@dataclass(frozen=True, slots=True)
class Heuristic:
    """Nothing is promised beforehand; the bound of the result says how good it is."""

    source: str = ""

    def __str__(self) -> str:
        return "heuristic"


Guarantee = Exact | Ratio | Heuristic


def relative_gap(objective: float | None, bound: float) -> float:
    """Return ``|bound - objective| / |objective|``; infinite without a solution or a finite bound.

    Examples
    --------
    >>> relative_gap(100.0, 101.0)
    0.01
    """
    if objective is None or not math.isfinite(bound):
        return math.inf
    difference = abs(bound - objective)
    if difference == 0.0:
        return 0.0
    return difference / abs(objective) if objective else math.inf


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time of a solve went; the parts add up to `total`.

    Parameters
    ----------
    build : turning the problem into the solver's own arrays or model.
    compile : compiling kernels, or loading compiled ones; zero once they are warm.
    solve : the rest.
    """

    build: float
    compile: float
    solve: float

    @property
    def total(self) -> float:
        """Seconds of the whole call."""
        return self.build + self.compile + self.solve

    def to_json(self) -> dict[str, float]:
        """Return the parts and the total."""
        return {"build": self.build, "compile": self.compile, "solve": self.solve, "total": self.total}


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a run's history."""

    seconds: float
    iteration: int
    objective: float | None
    bound: float | None


class SolveHistory:
    """Best objective and bound against time; thinned to at most `capacity` records, first and last kept."""

    __slots__ = ("_records", "capacity")

    def __init__(self, capacity: int = 2048) -> None:
        self.capacity = capacity
        self._records: list[Record] = []

    def append(self, record: Record) -> None:
        """Add a record; when full, every second one is dropped first."""
        if len(self._records) >= self.capacity:
            self._records = self._records[::2]
        self._records.append(record)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"SolveHistory({len(self)} records)"

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def to_csv(self) -> str:
        """Return the records as CSV text with a header line."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["seconds", "iteration", "objective", "bound"])
        writer.writerows([r.seconds, r.iteration, r.objective, r.bound] for r in self._records)
        return text.getvalue()


@dataclass(frozen=True, kw_only=True, repr=False)
class Result(Generic[S]):
    """Outcome of one solve.

    Parameters
    ----------
    problem, solver : names, as on the command line.
    sense : ``max`` or ``min``.
    status, limit, message : what is known, which limit ended the search (None: it finished), one sentence.
    solution : the best solution, or None.
    feasible : whether the problem itself finds the solution feasible.
    bound : valid bound on the optimum, infinite if none is known.
    guarantee : what is proved about this solver on this problem.
    history : best objective and bound against time.
    seconds : build, compile and solve seconds.
    seed : seed of the run.
    versions : versions of the packages that matter.
    """

    problem: str
    solver: str
    sense: Sense
    status: Status
    limit: Limit | None
    message: str
    solution: S | None
    feasible: bool
    bound: float
    guarantee: Guarantee
    history: SolveHistory = field(repr=False)
    seconds: Seconds
    seed: int | None
    versions: dict[str, str] = field(repr=False)
    _objective: float | None = field(repr=False)
    _problem: Problem | None = field(default=None, repr=False, compare=False)

    @property
    def objective(self) -> float:
        """Objective of the solution, recomputed by the problem.

        Raises
        ------
        NoSolutionError
            If there is no solution.
        """
        if self._objective is None:
            raise NoSolutionError(f"{self.solver} found no solution ({self.status}): {self.message or 'no message'}")
        return self._objective

    @property
    def gap(self) -> float:
        """Relative gap between objective and bound; infinite when either is missing."""
        return relative_gap(self._objective, self.bound)

    @property
    def prices(self) -> tuple[Price, ...]:
        """What one unit more of each limit is worth at this solution; worked out when asked, the most worthwhile first.

        Raises
        ------
        NoSolutionError
            If there is no feasible solution.
        EdgeOptError
            If the kind of problem is not one of the package.

        Examples
        --------
        >>> import edgeopt
        >>> problem = edgeopt.problems.ModelDownload.random(num_users=30, bandwidth_hz=100e6, seed=1)
        >>> price = edgeopt.solve(problem, "slide").prices[0]
        >>> price.name, price.claim
        ('bandwidth_hz', 'at most')
        """
        from edgeopt import solvers  # late: the core does not depend on the solvers

        if self._problem is None or self.solution is None or not self.feasible:
            raise NoSolutionError(f"{self.solver} found no feasible solution ({self.status}): there are no prices")
        return solvers.prices(self._problem, self.solution)

    def raise_for_status(self) -> "Result[S]":
        """Return the result itself, or raise if it carries no feasible solution."""
        if self.status is Status.ERROR:
            raise SolverError(f"{self.solver}: {self.message}")
        if self.solution is None:
            raise NoSolutionError(f"{self.solver} found no solution ({self.status}): {self.message or 'no message'}")
        return self

    def to_json(self, *, with_solution: bool = False) -> dict[str, Any]:
        """Return plain values; bound and gap are None when there is none."""
        document: dict[str, Any] = {
            "problem": self.problem,
            "solver": self.solver,
            "seed": self.seed,
            "sense": self.sense,
            "status": str(self.status),
            "limit": None if self.limit is None else str(self.limit),
            "objective": self._objective,
            "bound": self.bound if math.isfinite(self.bound) else None,
            "gap": self.gap if math.isfinite(self.gap) else None,
            "guarantee": str(self.guarantee),
            "feasible": self.feasible,
            "seconds": self.seconds.to_json(),
            "message": self.message,
        }
        if with_solution:
            solution = None if self.solution is None else self.solution.to_json()
            document |= {"versions": self.versions, "solution": solution}
        return document

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result, its solution included, as JSON, atomically."""
        storage.write_text(path, json.dumps(self.to_json(with_solution=True), indent=1) + "\n")

    def __repr__(self) -> str:
        known = "" if self._objective is None else f", objective {self._objective:.6g}"
        gap = f", gap {100 * self.gap:.4g} %" if math.isfinite(self.gap) else ""
        return f"Result({self._headline()}{known}{gap})"

    def _repr_html_(self) -> str:
        shown = {name: value for name, value in self.to_json().items() if name not in ("problem", "solver", "status")}
        return html_facts(self._headline(), shown | {"seconds": self.seconds.total})

    def _headline(self) -> str:
        limit = f", stopped by {self.limit} limit" if self.limit else ""
        return f"{self.solver} on {self.problem}: {self.status}{limit}"

    def summary(self) -> str:
        """Return a few lines for people."""
        lines = [self._headline()]
        if self._objective is not None:
            lines.append(f"  objective {self._objective:.6g} ({self.sense}), guarantee {self.guarantee}")
        if math.isfinite(self.bound):
            lines.append(f"  bound     {self.bound:.6g}, gap {100 * self.gap:.4g} %")
        s = self.seconds
        lines.append(f"  seconds   {s.total:.3g} (build {s.build:.3g}, compile {s.compile:.3g}, solve {s.solve:.3g})")
        return "\n".join([*lines, f"  {self.message}"] if self.message else lines)
