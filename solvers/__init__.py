"""Solvers: one folder per problem, one algorithm per file; `solvers_of` lists them, `get_solver` finds one by name."""

import difflib
import importlib
from typing import Any

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.explain import Explanation
from edgeopt.prices import Price, in_order
from edgeopt.problem import Problem
from edgeopt.problems import PROBLEMS
from edgeopt.solve import Solver

if __name__ != "edgeopt.solvers":  # one module object only: the root folder is edgeopt.solvers
    raise ImportError("import edgeopt.solvers, not " + __name__)

KINDS: tuple[str, ...] = tuple(problem.kind for problem in PROBLEMS)
"""The kinds of problems; the solvers of each are in the folder of its name."""


def solvers_of(kind: str) -> tuple[Solver, ...]:
    """Return the solvers of a kind of problem, each with its default hyper-parameters.

    Examples
    --------
    >>> [solver.name for solver in solvers_of("expert-caching")][:2]
    ['greedy', 'density-greedy']
    """
    if kind not in KINDS:
        raise EdgeOptError(f"kind = {quoted(kind)}: expected one of {', '.join(KINDS)}")
    module = importlib.import_module("edgeopt.solvers." + kind.replace("-", "_"))
    found: tuple[Solver, ...] = module.SOLVERS
    return found


def get_solver(kind: str, name: str) -> Solver:
    """Return the solver `name` of a kind of problem, with its default hyper-parameters.

    Raises
    ------
    EdgeOptError
        If there is no such solver; the message suggests close names.
    """
    found = {solver.name: solver for solver in solvers_of(kind)}
    if name not in found:
        close = difflib.get_close_matches(str(name), found, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise EdgeOptError(f"solver = {quoted(name)}: {hint}{kind} has {', '.join(found)}")
    return found[name]


def explain(problem: Problem, solution: Any = None) -> Explanation:
    """Return why a problem has no solution and who is left out, see `edgeopt.Problem.explain`.

    Raises
    ------
    EdgeOptError
        If the kind of problem is none of `KINDS`, or takes no solution here.
    """
    if problem.kind not in KINDS:
        raise EdgeOptError(f"explain: expected a problem of {', '.join(KINDS)}, got {quoted(problem.kind)}")
    module = importlib.import_module(f"edgeopt.solvers.{problem.kind.replace('-', '_')}.reasons")
    if solution is not None and problem.kind != "model-download":
        raise EdgeOptError(f"solution: expected None for a problem of {problem.kind}, got {quoted(solution)}")
    explanation: Explanation = module.explain(problem) if solution is None else module.explain(problem, solution)
    return explanation


def prices(problem: Problem, solution: Any) -> tuple[Price, ...]:
    """Return what more of each limit is worth at a feasible solution, see `edgeopt.Result.prices`; most worth a hundredth first.

    Raises
    ------
    EdgeOptError
        If the kind of problem is none of `KINDS`.
    """
    if problem.kind not in KINDS:
        raise EdgeOptError(f"prices: expected a problem of {', '.join(KINDS)}, got {quoted(problem.kind)}")
    module = importlib.import_module(f"edgeopt.solvers.{problem.kind.replace('-', '_')}.prices")
    return in_order(module.prices(problem, solution))
