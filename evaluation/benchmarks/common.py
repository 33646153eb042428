"""What the benchmarks share: honest clocks, machine facts, goals and tables."""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
from rich.console import Console
from rich.table import Table

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.compare.worker import machine, warm_up
from edgeopt.installed import versions
from edgeopt.jit import CompileTimer
from edgeopt.problem import Problem
from edgeopt.result import Record, Result, SolveHistory, Status, relative_gap
from edgeopt.solve import Solver, solve
from edgeopt.solvers import get_solver, solvers_of
from edgeopt.storage import dumps
from edgeopt.streams import prepare_streams, reserve_stdout

Row = dict[str, Any]

KIND = "expert-caching"
SLACK = 1e-9  # relative: two values that differ by less are the same
COMPILED_S = 1e-3  # a clock that covers more compilation than this is not used
WARM_UP_S = 2.0


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of the repeats of one call."""

    seconds: tuple[float, ...]

    @property
    def least(self) -> float:
        """Least seconds."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def to_json(self) -> Row:
        """Return least and median seconds and the number of repeats."""
        return {"min_s": self.least, "median_s": self.median, "repeats": len(self.seconds)}


def clock(function: Callable[[], Any], repeats: int, budget_s: float = 10.0) -> Times:
    """Time a warm call several times; at least once, and no more once `budget_s` is spent."""
    seconds: list[float] = []
    while len(seconds) < repeats and (not seconds or sum(seconds) < budget_s):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return Times(tuple(seconds))


@dataclass(frozen=True, slots=True)
class Timed:
    """One timed call of `solve`.

    Parameters
    ----------
    result : what it returned, None if it raised.
    seconds : of the whole call by an outside clock, less what it spent on compiling.
    compile_seconds : what it spent on compiling, or loading compiled kernels.
    message : why there is no result.
    """

    result: Result[Any] | None
    seconds: float
    compile_seconds: float
    message: str = ""

    @property
    def gap(self) -> float:
        """Certified gap, infinite if there is none."""
        return math.inf if self.result is None else self.result.gap

    def to_json(self) -> Row:
        """Return plain values of the call."""
        row: Row = {"seconds": self.seconds, "compile_seconds": self.compile_seconds}
        if self.result is None:
            return row | {"status": "error", "objective": None, "bound": None, "gap": None, "message": self.message}
        document = self.result.to_json()
        return row | {name: document[name] for name in ("status", "limit", "objective", "bound", "gap", "message")}


def timed_solve(problem: Problem, solver: "str | Solver", **options: Any) -> Timed:
    """Call `solve` and time it; once more if kernels were compiled during the call. An exception becomes a message."""
    timed = _timed_solve(problem, solver, options)
    if timed.compile_seconds > COMPILED_S and timed.result is not None:
        timed = _timed_solve(problem, solver, options)
    return timed


def _timed_solve(problem: Problem, solver: "str | Solver", options: Mapping[str, Any]) -> Timed:
    start = time.perf_counter()
    try:
        result = solve(problem, solver, **options)
    except (EdgeOptError, MemoryError, ValueError) as error:
        return Timed(None, time.perf_counter() - start, 0.0, " ".join(f"{type(error).__name__}: {error}".split()))
    seconds = time.perf_counter() - start
    if result.status is Status.ERROR:
        return Timed(None, seconds, result.seconds.compile, result.message)
    return Timed(result, seconds - result.seconds.compile, result.seconds.compile)


def warm(problem: Problem, solver: "str | Solver", *, full: bool = True, **options: Any) -> float:
    """Run a solver untimed; return the seconds it spent on compiling kernels, or on loading compiled ones.

    It runs on a tiny problem and then, if `full`, on this one for at most two seconds.
    """
    chosen = get_solver(problem.kind, solver) if isinstance(solver, str) else solver
    with CompileTimer() as timer:
        warm_up(problem, chosen)
        if full:
            _timed_solve(problem, chosen, options | {"time_limit": WARM_UP_S})
    return timer.seconds


def available(names: Iterable[str]) -> list[str]:
    """Return those of the names that are solvers of expert caching."""
    known = {solver.name for solver in solvers_of(KIND)}
    return [name for name in names if name in known]


def first_time(history: SolveHistory, gap: float, bound: float | None = None) -> float | None:
    """Return the seconds at which a run first had a gap of at most `gap`, None if never.

    The gap is to its own bound at that time, or to `bound` if given.
    """
    return next((record.seconds for record in history if _gap(record, bound) <= gap), None)


def gap_at(history: SolveHistory, seconds: float, bound: float | None = None) -> float:
    """Return the gap a run had after some seconds: certified by itself, or to `bound` if given."""
    return min((_gap(record, bound) for record in history if record.seconds <= seconds), default=math.inf)


def _gap(record: Record, bound: float | None) -> float:
    other = record.bound if bound is None else bound
    return math.inf if other is None else relative_gap(record.objective, other)


def consistent(objectives: Iterable[float | None], bounds: Iterable[float | None]) -> bool:
    """Whether no objective of a maximisation beats any of the bounds."""
    best = max((value for value in objectives if value is not None), default=-math.inf)
    least = min((value for value in bounds if value is not None), default=math.inf)
    return best <= least + SLACK * abs(best)


def goal(name: str, target: float, reached: float | None, unit: str, *, at_least: bool = False, note: str = "") -> Row:
    """Return one goal: a number to stay below, or above with ``at_least``; None or infinite means not reached."""
    found = None if reached is None or not math.isfinite(reached) else float(reached)
    met = found is not None and (found >= target if at_least else found <= target)
    return {
        "goal": name,
        "target": target,
        "reached": found,
        "unit": unit,
        "at_least": at_least,
        "met": met,
        "note": note,
    }


def factor(row: Row) -> str:
    """Return by how much a goal was met or missed.

    Examples
    --------
    >>> factor(goal("time", 10.0, 5.0, "ms")), factor(goal("time", 10.0, 15.0, "ms"))
    ('2x better', '1.5x short')
    """
    if row["reached"] is None:
        return "-"
    if not row["reached"] or not row["target"]:
        return "met" if row["met"] else "missed"
    ratio = row["reached"] / row["target"] if row["at_least"] else row["target"] / row["reached"]
    return f"{ratio:.3g}x better" if row["met"] else f"{1 / ratio:.3g}x short"


def facts() -> Row:
    """Return processor, cores, threads of the kernels, and versions."""
    return {"machine": machine() | {"threads": numba.get_num_threads()}, "versions": versions()}


def say(text: str) -> None:
    """Tell on standard error what is being measured."""
    print(text, file=sys.stderr, flush=True)


# --- showing ---------------------------------------------------------------------------------------------------


def percent(gap: float | None) -> str:
    """Return a gap for people."""
    return "-" if gap is None or not math.isfinite(gap) else f"{100 * gap:.4f} %"


def seconds(value: float | None) -> str:
    """Return seconds for people.

    Examples
    --------
    >>> seconds(0.0123), seconds(12.3456), seconds(None)
    ('12.3 ms', '12.35 s', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value:.4g} s"


def show_facts(report: Row, console: Console) -> None:
    """Print the machine and the versions."""
    where = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    console.print(
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, {where['system']}; {packages}",
        highlight=False,
    )


def show_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the first column is text."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_goals(goals: Iterable[Row], console: Console) -> None:
    """Print the summary: goal, reached, by how much."""
    lines = []
    for row in goals:
        sign, unit = (">=" if row["at_least"] else "<="), row["unit"]
        reached = "not reached" if row["reached"] is None else f"{row['reached']:.4g} {unit}"
        met = "yes" if row["met"] else "NO"
        lines.append([row["goal"], f"{sign} {row['target']:.4g} {unit}", reached, met, factor(row), row["note"]])
    show_table(console, "Goals", ("goal", "target", "reached", "met", "by how much", "note"), lines)


def console() -> Console:
    """Return the console of a benchmark; wide where the output is not a terminal."""
    prepare_streams()
    return Console(width=None if sys.stdout.isatty() else 170)


def script(
    name: str,
    description: str | None,
    measure: Callable[[argparse.Namespace], Row],
    show: Callable[[Row, Console], None],
    add: Callable[[argparse.ArgumentParser], object],
    arguments: Sequence[str] | None,
) -> int:
    """Run a benchmark from the command line; exit status 1 if something measured is wrong, 2 if it cannot run."""
    parser = argparse.ArgumentParser(prog=f"python -m edgeopt.evaluation.benchmarks.{name}", description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--quick", action="store_true", help="small instances and short limits: does it run at all?")
    add(parser)
    options = parser.parse_args(arguments)
    if options.json:
        reserve_stdout()
    try:
        report = json.loads(dumps({"benchmark": name, **facts(), "quick": options.quick, **measure(options)}))
    except EdgeOptError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report))
    else:
        to = console()
        show_facts(report, to)
        show(report, to)
        show_goals(report["goals"], to)
    return 0 if report["valid"] else 1
