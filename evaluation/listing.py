"""What there is to say about a solver: for the command line and the documentation."""

import dataclasses
import inspect
from typing import Any

from edgeopt.solve import Solver


def describe_solver(kind: str, solver: Solver) -> dict[str, Any]:
    """Return name, guarantee, complexity, what it supports and hyper-parameters, taken from the solver's docstrings.

    Examples
    --------
    >>> from edgeopt.solvers import get_solver
    >>> describe_solver("expert-caching", get_solver("expert-caching", "random"))["complexity"]
    'O(N E) time.'
    """
    paragraphs = [" ".join(part.split()) for part in (inspect.getdoc(type(solver)) or "").split("\n\n")]
    sentences = [sentence.rstrip(".") + "." for part in paragraphs for sentence in part.split(". ")]
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(solver) if dataclasses.is_dataclass(solver) else ()
    return {
        "problem": kind,
        "name": solver.name,
        "guarantee": str(solver.guarantee),
        "source": solver.guarantee.source,
        "summary": paragraphs[0],
        "complexity": next((sentence for sentence in sentences if "O(" in sentence), ""),
        "supports": " ".join((inspect.getdoc(solver.supports) or "").split("\n\n")[0].split()),
        "parameters": {field.name: str(getattr(solver, field.name)) for field in fields},
    }
