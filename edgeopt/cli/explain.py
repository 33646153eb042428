"""The command ``edgeopt explain``. Heavy imports happen inside it."""

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import InstanceArgument, JsonOption
from edgeopt.cli.printing import print_json


def explain(
    instance: InstanceArgument,
    solution: Annotated[
        Path | None, typer.Option(help="Result file of model download, whose refused users are explained.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say why an instance has no solution, or who is left out, and what would have to give.

    Of model download it explains whom a plan refuses: that of --solution, or else the one that `slide` finds.
    """
    from edgeopt.errors import EdgeOptError
    from edgeopt.evaluation.compare.solutions import read_solution
    from edgeopt.evaluation.instances.library import load_instance
    from edgeopt.solve import solve

    problem = load_instance(instance)
    plan = None
    if problem.kind == "model-download":
        plan = solve(problem, "slide").solution if solution is None else read_solution(problem, solution)
    elif solution is not None:
        raise EdgeOptError(f"--solution: expected none for a problem of {problem.kind}")
    explanation = problem.explain(plan)
    if as_json:
        print_json(explanation.to_json())
    else:
        print(explanation.summary())
