"""The command ``edgeopt compare``. Heavy imports happen inside it."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt.cli.options import INTERRUPTED, JsonOption, split_names
from edgeopt.cli.printing import console, number, print_json
from edgeopt.errors import EdgeOptError, MissingDependencyError, quoted

if TYPE_CHECKING:
    from edgeopt.problem import Problem


def compare(
    instances: Annotated[list[str] | None, typer.Argument(help="Files or names of the library.")] = None,
    solvers: Annotated[str | None, typer.Option(help="Names with commas between; default: all.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...", min=1, max=100_000)] = 1,
    time_limit: Annotated[float, typer.Option(help="Seconds for each run.", min=0)] = 60.0,
    jobs: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for rows, pictures and report; resumes from it.")] = None,
    executor: Annotated[str | None, typer.Option(help="dask://HOST:PORT, or serial.")] = None,
    more: Annotated[str | None, typer.Option("--instances", help="`library`: all of its instances.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run solvers on instances and compare them. Ctrl-C keeps what is done; the same --out goes on from there."""
    from edgeopt.evaluation.compare import comparison_rows, name_instances
    from edgeopt.evaluation.compare.rows import public_row
    from edgeopt.evaluation.instances.library import library_names

    if more not in (None, "library"):
        raise EdgeOptError(f"--instances = {quoted(more)}: expected 'library'")
    names = [*(instances or []), *(library_names() if more else ())]
    if not names:
        raise EdgeOptError("compare: expected at least one instance, or --instances library")
    problems = name_instances(list(dict.fromkeys(names)))
    rows, interrupted = comparison_rows(
        problems,
        split_names(solvers),
        range(seeds),
        time_limit,
        out=out,
        executor=executor,
        jobs=jobs,
    )
    if as_json:
        print_json([public_row(row) for row in rows])
    else:
        _print_table(rows)
    if out is not None:
        _write_report(rows, out, problems)
    if interrupted:
        print(f"edgeopt: interrupted after {len(rows)} runs" + (f", kept in {out}" if out else ""), file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if any(row["status"] == "error" for row in rows):
        raise typer.Exit(1)


def _print_table(rows: Iterable[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from edgeopt.evaluation.compare.performance import summarise

    table = Table(box=None, pad_edge=False)
    for title in ("instance", "solver", "status"):
        table.add_column(title, overflow="fold")
    for title in ("objective", "gap to best %", "certified gap %", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("guarantee", overflow="fold")
    for line in summarise(rows):
        percent = [number(line[name], 100) for name in ("gap_to_best", "gap")]
        cells = [line["instance"], line["solver"], line["status"], number(line["objective"], digits=7), *percent]
        table.add_row(*(Text(str(cell)) for cell in (*cells, number(line["seconds"]), line["guarantee"])))
    console().print(table)


def _write_report(rows: list[dict[str, Any]], out: Path, problems: "dict[str, Problem]") -> None:
    try:
        from edgeopt.evaluation.report import write_report

        write_report(rows, out / "report.html", problems=problems)
        print(f"wrote {out / 'report.html'}", file=sys.stderr)
    except MissingDependencyError as error:  # the rows are there; the report can be made later
        print(f"edgeopt: no report: {error}", file=sys.stderr)
