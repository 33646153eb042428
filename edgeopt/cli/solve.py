"""The command ``edgeopt solve``. Heavy imports happen inside it."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import (
    INTERRUPTED,
    InstanceArgument,
    JsonOption,
    SeedOption,
    check_writable,
    key_and_value,
)
from edgeopt.cli.printing import print_json
from edgeopt.interrupts import interrupted, interrupts_noted

if TYPE_CHECKING:
    from edgeopt.solve import Solver


@interrupts_noted()  # from the first line to the last: what has been found is written and printed
def solve(
    instance: InstanceArgument,
    solver: Annotated[str, typer.Option(help="Name of the solver, see `edgeopt solvers`.")],
    param: Annotated[list[str] | None, typer.Option(help="Hyper-parameter, KEY=VALUE; repeatable.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for the whole call.", min=0)] = math.inf,
    seed: SeedOption = 0,
    output: Annotated[Path | None, typer.Option(help="Write the result, solution included, as JSON.")] = None,
    initial_solution: Annotated[Path | None, typer.Option(help="Result file to start from.")] = None,
    prices: Annotated[bool, typer.Option("--prices", help="Also what one more unit of each limit is worth.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Solve an instance. Ctrl-C prints the best solution so far and exits with status 130."""
    from edgeopt.evaluation.compare.solutions import read_solution
    from edgeopt.evaluation.instances.library import load_instance
    from edgeopt.solve import solve as run
    from edgeopt.solvers import get_solver
    from edgeopt.stop import Limit

    if output is not None:
        check_writable(output)
    problem = load_instance(instance)
    chosen = _configured(get_solver(problem.kind, solver), param or [])
    start = None if initial_solution is None else read_solution(problem, initial_solution)
    result = run(problem, chosen, time_limit=time_limit, seed=seed, initial_solution=start, display=True)
    if output is not None:
        result.save(output)
    worth = result.prices if prices and result.feasible else ()
    if as_json:
        print_json(result.to_json() | ({"prices": [price.to_json() for price in worth]} if prices else {}))
    else:
        print("\n".join([result.summary(), *(f"  {price}" for price in worth)]))
    if result.limit is Limit.INTERRUPT or interrupted():
        raise typer.Exit(INTERRUPTED)
    if result.status in ("error", "no-solution"):
        raise typer.Exit(1)


def _configured(solver: "Solver", params: Iterable[str]) -> "Solver":
    from edgeopt.experiment.options import checked, hints_of
    from edgeopt.solve import configure

    changes, hints = dict(key_and_value("--param", text) for text in params), hints_of(type(solver))
    known = {key: checked(solver.name, "", key, changes[key], hints[key]) for key in changes if key in hints}
    return configure(solver, **changes | known)
