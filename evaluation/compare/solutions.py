"""Solutions back from the JSON that results and rows keep."""

import os
from typing import Any

from edgeopt import storage
from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.problem import Problem


def solution_from_json(problem: Problem, document: Any) -> Any:
    """Return the solution that ``solution.to_json()`` wrote for this problem.

    Raises
    ------
    InvalidProblemError
        If it does not fit the problem.
    EdgeOptError
        If solutions of this kind of problem cannot be read back.

    Examples
    --------
    >>> from edgeopt.evaluation import load_instance
    >>> from edgeopt.problems import Placement
    >>> problem = load_instance("facility-tiny")
    >>> solution_from_json(problem, {"cached": [[0], [1], [], [5]]}).num_copies
    3
    """
    if not isinstance(document, dict):
        raise EdgeOptError(f"solution: expected a JSON object, got {type(document).__name__}")
    if (own := getattr(problem, "solution_from_json", None)) is None:
        raise EdgeOptError(f"solutions of {problem.kind} cannot be read back")
    return own(document)


def read_solution(problem: Problem, path: str | os.PathLike[str]) -> Any:
    """Return the solution in a file that ``Result.save`` wrote.

    Raises
    ------
    InvalidFileError
        If the file holds none, or one of another kind of problem.
    """
    document = storage.read_json(path)
    if (kind := document.get("problem")) != problem.kind:
        raise InvalidFileError(f"{path}: problem = {kind!r}: expected {problem.kind!r}")
    try:
        return solution_from_json(problem, document.get("solution"))
    except (EdgeOptError, ValueError, TypeError) as error:
        raise InvalidFileError(f"{path}: {error}") from None
