"""Solutions back from the JSON that results and rows keep."""

import os
from typing import Any

from edgeopt import storage
from edgeopt.errors import InvalidProblemError
from edgeopt.fields import Fields, in_file
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
        raise InvalidProblemError(f"solution: expected a JSON object, got {type(document).__name__}")
    return problem.solution_from_json(document)


def read_solution(problem: Problem, path: str | os.PathLike[str]) -> Any:
    """Return the solution in a file that ``Result.save`` wrote.

    Raises
    ------
    InvalidFileError
        If the file holds none, or one of another kind of problem.
    """
    document = storage.read_json(path)
    with in_file(path):
        Fields(document).expect("problem", problem.kind)
        return solution_from_json(problem, document.get("solution"))
