"""The command ``edgeopt whatif``. Heavy imports happen inside it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli.options import INTERRUPTED, InstanceArgument, JsonOption, SeedOption
from edgeopt.cli.printing import console, number, print_json
from edgeopt.errors import MissingDependencyError

if TYPE_CHECKING:
    from edgeopt.problem import Problem


def whatif(
    instance: InstanceArgument,
    vary: Annotated[
        list[str],
        typer.Option(help="What to vary, NAME=LOW..HIGH, also with /POINTS, units, x0.5 or 50%; once or twice."),
    ],
    solver: Annotated[str | None, typer.Option(help="Name of the solver; default: one for each kind.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for each point.", min=0)] = 10.0,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for rows and page; resumes from it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Solve an instance along one or two of its numbers. Ctrl-C keeps what is done; the same --out goes on from there."""
    from edgeopt.evaluation.instances.library import load_instance
    from edgeopt.evaluation.what_if import public_point, what_if

    problem = load_instance(instance)
    rows, interrupted = what_if(problem, vary, solver, time_limit=time_limit, seed=seed, out=out)
    if as_json:
        print_json([public_point(row) for row in rows])
    else:
        _print_table(rows)
    if out is not None and rows:
        _write_page(rows, out, problem, f"What if: {instance}")
    if interrupted:
        print(f"edgeopt: interrupted after {len(rows)} points" + (f", kept in {out}" if out else ""), file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if any(row["status"] == "error" for row in rows):
        raise typer.Exit(1)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from edgeopt.evaluation.what_if_page import decided

    table = Table(box=None, pad_edge=False)
    for title in rows[0]["axes"] if rows else ():
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("status")
    for title in ("objective", "bound", "certified gap %", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("decisions", overflow="fold")
    for row in rows:
        cells = [*(f"{value:.6g}" for value in row["values"]), row["status"], number(row["objective"], digits=6)]
        cells += [
            number(row["bound"], digits=6),
            number(row["gap"], 100),
            number(row["seconds"]["total"]),
            decided(row),
        ]
        table.add_row(*map(Text, cells))
    console().print(table)


def _write_page(rows: list[dict[str, Any]], out: Path, problem: "Problem", title: str) -> None:
    try:
        from edgeopt.evaluation.what_if_page import write_what_if

        write_what_if(rows, out / "what-if.html", problem, title=title)
        print(f"wrote {out / 'what-if.html'}", file=sys.stderr)
    except MissingDependencyError as error:  # the rows are there; the page can be made later
        print(f"edgeopt: no page: {error}", file=sys.stderr)
