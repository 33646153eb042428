"""Tiny instances with known optima, as the suites of all kinds of problems use them."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tiny:
    """A problem small enough to enumerate.

    Parameters
    ----------
    brute_force : returns the optimum of a problem, and a solution that attains it.
    name : what it is about.
    problem : the problem.
    derived : the optimum as derived by hand, None if only the enumeration knows it.
    """

    brute_force: Callable[[Any], tuple[float, Any]]
    name: str
    problem: Any
    derived: float | None = None

    @functools.cached_property
    def _enumerated(self) -> tuple[float, Any]:
        return self.brute_force(self.problem)

    @property
    def optimum(self) -> float:
        """The best objective of all solutions."""
        return self._enumerated[0]

    @property
    def best(self) -> Any:
        """A solution that attains it."""
        return self._enumerated[1]


def by_name(instances: Iterable[Tiny], name: str) -> Tiny:
    """Return the instance of that name."""
    return {tiny.name: tiny for tiny in instances}[name]
