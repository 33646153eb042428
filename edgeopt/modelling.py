"""`GenericModel`: a problem as a cvxpy programme under its own names, for constraints that the problem does not know."""

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np

from edgeopt.errors import NoSolutionError

if TYPE_CHECKING:
    import cvxpy as cp

S = TypeVar("S")


@dataclass(frozen=True, slots=True, eq=False)
class GenericModel(Generic[S]):
    """A problem, or a part of one, in cvxpy's words.

    Parameters
    ----------
    problem : the programme, a ``cvxpy.Problem``.
    variables, constraints : its variables and constraints by name.
    unit : one unit of its objective is so many of the problem's own: a power of two, so that solvers with absolute
        tolerances see numbers around one.
    read : returns the decision that the values of the variables stand for.
    """

    problem: "cp.Problem"
    variables: Mapping[str, "cp.Variable"]
    constraints: Mapping[str, "cp.Constraint"]
    unit: float
    read: Callable[[], S]

    def with_constraints(self, **extra: "cp.Constraint") -> Self:
        """Return the same model with more constraints, under names of their own."""
        import cvxpy as cp

        problem = cp.Problem(self.problem.objective, [*self.problem.constraints, *extra.values()])
        return type(self)(problem, self.variables, {**self.constraints, **extra}, self.unit, self.read)

    @property
    def value(self) -> float:
        """The objective of the last solve, as the problem counts it; nan before."""
        value: Any = self.problem.value
        return math.nan if value is None else float(value) * self.unit

    def solution(self) -> S:
        """Return the decision of the last solve.

        Raises
        ------
        NoSolutionError
            If there is none.
        """
        if any(variable.value is None for variable in self.variables.values()):
            raise NoSolutionError(f"the model has no solution yet: its status is {self.problem.status}")
        return self.read()


def cvxpy_module() -> Any:
    """Return the module `cvxpy`, loaded after HiGHS: it loads OR-Tools, which brings an older one, see `back_ends`."""
    import cvxpy
    import highspy  # noqa: F401

    return cvxpy


def silent(highs: Any) -> Any:
    """Return a class of `highspy.Highs` without output, that of its constructor included: HiGHS 1.16 introduces itself there."""

    class Silent(highs):  # type: ignore[misc]
        def enableCallbacks(self) -> None:
            self.setOptionValue("output_flag", False)
            super().enableCallbacks()

    return Silent


@functools.cache
def _loud_and_silent() -> tuple[Any, Any]:
    import highspy

    return highspy.Highs, silent(highspy.Highs)


@contextmanager
def _silent_highs() -> Iterator[None]:
    """Have cvxpy make a HiGHS without output, whatever it is asked to solve."""
    import highspy

    loud, highspy.Highs = _loud_and_silent()
    try:
        yield
    finally:
        highspy.Highs = loud


def solve_quietly(programme: "cp.Problem", **options: Any) -> None:
    """Solve a programme without output and without cvxpy's warning that a solution may be inaccurate: its status says so."""
    with warnings.catch_warnings(), _silent_highs():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        programme.solve(**options)


def power_of_two(value: float) -> float:
    """Return the power of two next to a positive number, else 1.

    Examples
    --------
    >>> power_of_two(3e-4), power_of_two(0.0)
    (0.000244140625, 1.0)
    """
    return 2.0 ** round(math.log2(value)) if value > 0 and np.isfinite(value) else 1.0
