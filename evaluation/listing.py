"""What there is to say about what is registered: for the command line and the documentation."""

import dataclasses
import importlib
import inspect
import re
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


def with_registered(page: str) -> str:
    """Return a page of the reference in which every registry is followed by the classes of its entries.

    Examples
    --------
    >>> print(with_registered("::: edgeopt.solvers.split_training.SOLVERS"))  # doctest: +ELLIPSIS
    ::: edgeopt.solvers.split_training.SOLVERS
    ::: edgeopt.solvers.split_training.Hasfl
    ::: edgeopt.solvers.split_training.BranchAndBound...
    """
    return _REGISTRY.sub(
        lambda found: "\n".join([found[0], *map("::: {}".format, _registered(found[1], found[2]))]), page
    )


_REGISTRY = re.compile(r"^::: (edgeopt[\w.]*)\.(SOLVERS|ALGORITHMS|CODECS)$", re.MULTILINE)


def _registered(module: str, registry: str) -> list[str]:
    loaded = importlib.import_module(module)
    kinds = [entry if isinstance(entry, type) else type(entry) for entry in getattr(loaded, registry)]
    homes = [module if kind.__name__ in vars(loaded) else kind.__module__ for kind in kinds]
    return list(dict.fromkeys(f"{home}.{kind.__name__}" for home, kind in zip(homes, kinds, strict=True)))
