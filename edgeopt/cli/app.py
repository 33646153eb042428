"""The command ``edgeopt``: solve, compare, generate, describe, train. Heavy imports happen inside the commands.

Exit status: 0 done; 1 the solver failed or found nothing; 2 bad input; 130 interrupted (what was found is printed).
With ``--json`` standard output carries one JSON document and nothing else.
"""

import errno
import json
import math
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from edgeopt.cli.generate import SeedOption, check_writable, generate_app
from edgeopt.cli.study import studies, study
from edgeopt.cli.trace import trace
from edgeopt.cli.train import train
from edgeopt.errors import EdgeOptError, MissingDependencyError, NoSolutionError, SolverError
from edgeopt.interrupts import interrupted, interrupts_noted
from edgeopt.streams import discard_output, one_line_messages, prepare_streams, reserve_stdout, say

if TYPE_CHECKING:
    from edgeopt.problem import Problem
    from edgeopt.solve import Solver

INTERRUPTED = 130


class _Group(TyperGroup):
    """The top command: turns every error into one line on standard error and an exit status."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; ``--debug`` may stand anywhere on the line."""
        given = kwargs.pop("args", None) if not args else args[0]
        words = list(sys.argv[1:] if given is None else given)
        debug = os.environ.get("EDGEOPT_DEBUG", "") not in ("", "0")
        if "--debug" in words:
            words.remove("--debug")
            debug = True
        standalone = kwargs.pop("standalone_mode", True)
        prepare_streams()
        with one_line_messages():
            status = self._run(words, debug, kwargs)
        if standalone:
            _leave(status)
        return status

    def _run(self, words: list[str], debug: bool, kwargs: Any) -> int:
        try:
            status = super().main(args=words, standalone_mode=False, **kwargs)
            sys.stdout.flush()
            return status if isinstance(status, int) else 0
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - the last stop before the user
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # the reader has gone: `edgeopt ... | head`
                discard_output()
                return 1
            if debug:
                traceback.print_exc()
            message, status = _explain(error)
            discard_output()
            say(message)
            return status


def _leave(status: int) -> NoReturn:
    """Exit; past Python's own ending where a back end has been left behind, which would take that down when it returns."""
    background = sys.modules.get("edgeopt.solvers.background")
    if background is not None and background.left_behind():
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _explain(error: BaseException) -> tuple[str, int]:
    from edgeopt.interrupts import is_interrupt

    if type(error).__name__ == "Abort" and isinstance(error.__cause__, EOFError):  # click takes it for Ctrl-D
        error = error.__cause__
    if is_interrupt(error) or type(error).__name__ == "Abort":
        return "interrupted", INTERRUPTED
    if hasattr(error, "format_message"):  # wrong use of the command line
        return f"{error.format_message()} (edgeopt --help tells more)", 2
    if isinstance(error, SolverError | NoSolutionError | MissingDependencyError):
        return str(error), 1
    if isinstance(error, EdgeOptError):
        return str(error), 2
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fspath(error.filename)}: {error.strerror}", 2
    if isinstance(error, OSError) and error.errno is not None:  # what the system lacks: processes, room, a connection
        return str(error.strerror), 1
    if isinstance(error, MemoryError):
        return f"not enough memory: {error or 'the input is too large for this machine'}", 1
    return f"{type(error).__name__}: {error} (a bug: --debug shows where)", 1


app = typer.Typer(cls=_Group, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=False)
app.add_typer(generate_app, name="generate")
app.command()(train)
app.command()(trace)
app.command()(study)
app.command()(studies)

InstanceArgument = Annotated[str, typer.Argument(help="A .json or .npz file, or a name of the library.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context, debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False
) -> None:
    """Optimisation and scheduling of AI at the wireless edge."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
@interrupts_noted()  # from the first line to the last: what has been found is written and printed
def solve(
    instance: InstanceArgument,
    solver: Annotated[str, typer.Option(help="Name of the solver, see `edgeopt solvers`.")],
    param: Annotated[list[str] | None, typer.Option(help="Hyper-parameter, KEY=VALUE; repeatable.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for the whole call.", min=0)] = math.inf,
    seed: SeedOption = 0,
    output: Annotated[Path | None, typer.Option(help="Write the result, solution included, as JSON.")] = None,
    initial_solution: Annotated[Path | None, typer.Option(help="Result file to start from.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Solve an instance. Ctrl-C prints the best solution so far and exits with status 130."""
    from edgeopt.evaluation.compare.solutions import read_solution
    from edgeopt.evaluation.instances.library import load_instance
    from edgeopt.solve import solve as run
    from edgeopt.solvers import get_solver
    from edgeopt.stop import Limit
    from edgeopt.storage import dumps

    if output is not None:
        check_writable(output)
    problem = load_instance(instance)
    chosen = _configured(get_solver(problem.kind, solver), param or [])
    start = None if initial_solution is None else read_solution(problem, initial_solution)
    result = run(problem, chosen, time_limit=time_limit, seed=seed, initial_solution=start, display=True)
    if output is not None:
        result.save(output)
    print(dumps(result.to_json(), indent=1) if as_json else result.summary())
    if result.limit is Limit.INTERRUPT or interrupted():
        raise typer.Exit(INTERRUPTED)
    if result.status in ("error", "no-solution"):
        raise typer.Exit(1)


@app.command()
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
    from edgeopt.storage import dumps

    if more not in (None, "library"):
        raise EdgeOptError(f"--instances = {more!r}: expected 'library'")
    names = [*(instances or []), *(library_names() if more else ())]
    if not names:
        raise EdgeOptError("compare: expected at least one instance, or --instances library")
    problems = name_instances(list(dict.fromkeys(names)))
    rows, interrupted = comparison_rows(
        problems,
        [name.strip() for name in solvers.split(",") if name.strip()] if solvers else None,
        range(seeds),
        time_limit,
        out=out,
        executor=executor,
        jobs=jobs,
    )
    if as_json:
        print(dumps([public_row(row) for row in rows], indent=1))
    else:
        _print_table(rows)
    if out is not None:
        _write_report(rows, out, problems)
    if interrupted:
        print(f"edgeopt: interrupted after {len(rows)} runs" + (f", kept in {out}" if out else ""), file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if any(row["status"] == "error" for row in rows):
        raise typer.Exit(1)


@app.command()
def solvers(
    kind: Annotated[str | None, typer.Argument(help="Kind of problem; default: all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the solvers with guarantee, complexity and what they support."""
    from edgeopt.evaluation.listing import describe_solver
    from edgeopt.problems import PROBLEMS
    from edgeopt.solvers import solvers_of

    kinds = [problem.kind for problem in PROBLEMS] if kind is None else [kind]
    listed = [describe_solver(name, solver) for name in kinds for solver in solvers_of(name)]
    if as_json:
        print(json.dumps(listed, indent=1))
        return
    for entry in listed:
        print(f"{entry['problem']}  {entry['name']}  [{entry['guarantee']}]")
        for line in (entry["summary"], entry["complexity"], entry["supports"]):
            if line:
                print(f"    {line}")
        if entry["parameters"]:
            print("    parameters: " + ", ".join(f"{key}={value}" for key, value in entry["parameters"].items()))


@app.command()
def describe(instance: InstanceArgument, as_json: JsonOption = False) -> None:
    """Show what an instance is: sizes, units, modes."""
    from edgeopt.evaluation.instances.library import library_entry, library_names, load_instance
    from edgeopt.storage import dumps

    problem = load_instance(instance)
    facts: dict[str, Any] = {"instance": instance, "problem": problem.kind, "sense": problem.sense}
    facts |= {"fingerprint": problem.fingerprint(), "facts": problem.describe()}
    if instance in library_names():
        entry = library_entry(instance).to_json()
        facts |= {name: entry[name] for name in ("description", "recipe", "best_known")}
    if as_json:
        print(dumps(facts, indent=1))
        return
    lines = {**facts, **facts.pop("facts")}
    lines.pop("facts")
    _print_facts(lines)


@app.command()
def info(as_json: JsonOption = False) -> None:
    """Show versions, machine, installed extras and where compiled kernels are kept."""
    from importlib.metadata import PackageNotFoundError, version

    from edgeopt.evaluation.compare.worker import machine
    from edgeopt.extras import EXTRAS
    from edgeopt.installed import versions
    from edgeopt.jit import cache_dir

    extras: dict[str, str] = {}
    for extra, packages in EXTRAS.items():
        try:
            extras[extra] = ", ".join(f"{package} {version(package)}" for package in packages)
        except PackageNotFoundError:
            extras[extra] = f"not installed: pip install 'edgeopt[{extra}]'"
    facts = {"versions": versions(), "machine": machine(), "extras": extras, "kernel_cache": str(cache_dir())}
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        _print_facts(
            {**versions(), **machine(), **{f"extra {k}": v for k, v in extras.items()}, "kernels": str(cache_dir())}
        )


def main() -> None:
    """Run the command line of this process. What native code prints goes to standard error."""
    reserve_stdout()
    app()


# --- reading options -------------------------------------------------------------------------------------------


def _configured(solver: "Solver", params: Iterable[str]) -> "Solver":
    from edgeopt.errors import quoted
    from edgeopt.experiment.options import checked, hints_of
    from edgeopt.solve import configure

    changes: dict[str, Any] = {}
    hints = hints_of(type(solver))
    for text in params:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise EdgeOptError(f"--param = {text!r}: expected KEY=VALUE")
        try:
            changes[key] = json.loads(value)
        except ValueError:
            changes[key] = value
        default = getattr(solver, key, None)
        numeric = isinstance(default, int | float) and not isinstance(default, bool)
        if (numeric and not isinstance(changes[key], int | float)) or (
            isinstance(default, bool) and not isinstance(changes[key], bool)
        ):
            expected = f"{type(default).__name__}, like {default}"
            raise EdgeOptError(f"{solver.name}: {key} = {quoted(value)}: expected {expected}")
        if key in hints:
            changes[key] = checked(solver.name, "", key, changes[key], hints[key])
    return configure(solver, **changes)


# --- printing --------------------------------------------------------------------------------------------------


def _print_table(rows: Iterable[dict[str, Any]]) -> None:
    from rich.console import Console
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
        percent = [_show(line[name], 100) for name in ("gap_to_best", "gap")]
        cells = [line["instance"], line["solver"], line["status"], _show(line["objective"], digits=7), *percent]
        table.add_row(*(Text(str(cell)) for cell in (*cells, _show(line["seconds"]), line["guarantee"])))
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def _show(value: float | None, factor: float = 1.0, digits: int = 4) -> str:
    return "-" if value is None else f"{factor * value:.{digits}g}"


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        text = f"{value:.6g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, dict) else value
        print(f"{name:<{width}}  {text}")


def _write_report(rows: list[dict[str, Any]], out: Path, problems: "dict[str, Problem]") -> None:
    try:
        from edgeopt.evaluation.report import write_report

        write_report(rows, out / "report.html", problems=problems)
        print(f"wrote {out / 'report.html'}", file=sys.stderr)
    except MissingDependencyError as error:  # the rows are there; the report can be made later
        print(f"edgeopt: no report: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
