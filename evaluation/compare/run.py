"""Compare solvers on instances: one row per (instance, solver, seed), kept on disk the moment it is made."""

import dataclasses
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt import storage
from edgeopt.errors import EdgeOptError, InvalidProblemError, quoted
from edgeopt.evaluation.compare.executors import Engine, is_lost, open_engine
from edgeopt.evaluation.compare.rows import Row, RowStore, add_gaps, row_key, rows_frame
from edgeopt.evaluation.compare.worker import Job, Parcel, common_values, failed_row, run_job
from edgeopt.installed import versions
from edgeopt.problem import Problem
from edgeopt.solve import Solver, refuse_other, time_limit_s
from edgeopt.stop import StopCriterion
from edgeopt.validate import flag, listed, seed_number

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("edgeopt")

Instance = Problem | str | os.PathLike[str]
Instances = Mapping[str, Instance] | Iterable[Instance] | Instance

MAX_RESUBMISSIONS = 2
GRACE_S = 60.0
"""How long a run may take beyond its time limit, for starting its worker, compiling kernels and evaluating the solution."""


def compare(
    problems: Instances,
    solvers: Iterable[str | Solver] | str | Solver | None = None,
    seeds: Iterable[int] | int = (0,),
    time_limit: float | None = math.inf,
    *,
    stop: StopCriterion | None = None,
    deterministic: bool = False,
    out: str | os.PathLike[str] | None = None,
    executor: Executor | str | None = None,
    jobs: int = 1,
    display: bool = True,
    references: Mapping[str, float] | None = None,
) -> "pd.DataFrame":
    """Run every solver on every instance with every seed.

    Every run ends in a row, whatever happens: a solver that does not support an instance gives status ``skipped`` and
    the reason, an exception gives ``error`` and its message (the traceback goes to the log), and a run whose worker
    dies is repeated up to twice. Kernels are compiled before the clock starts, and the objective is recomputed by the
    problem after it has stopped.

    A run that is still not back 60 s after a finite time limit gives ``error``, and its worker is killed; on a Dask
    cluster that may take twice as long. Runs in this process and on executors of the caller's are waited for.

    Parameters
    ----------
    problems : instances by name, or a list of problems, files and names of the library (see `library_names`).
    solvers : names, or solver objects, or one of them; one with other than default parameters is labelled like ``greedy(steps=50)``.
        Default: all solvers of each kind of problem.
    seeds : seeds of the runs, or one.
    time_limit : seconds for each run; None for no limit.
    stop : further stop criteria for each run.
    deterministic : passed on to `edgeopt.solve`.
    out : folder that keeps ``rows/KEY.json``. Called again with the same folder, only what is missing, damaged or
        failed is run; a key is made of the instance's contents, the solver and its parameters, seed, limits and version.
    executor : None for `jobs` worker processes of one thread each (a script then needs the usual
        ``if __name__ == "__main__":``), ``"serial"`` for this process, ``"dask://HOST:PORT"`` for a Dask cluster, or any
        `concurrent.futures.Executor`.
    jobs : worker processes.
    display : show a progress bar, on a terminal only.
    references : best known objective by instance name; library instances bring their own.

    Returns
    -------
    pandas.DataFrame
        One line per run with the columns of `edgeopt.evaluation.compare.rows.COLUMNS`. After Ctrl-C, the rows made so far;
        ``frame.attrs["interrupted"]`` says so.

    Raises
    ------
    EdgeOptError
        If an instance or a solver name is unknown, or the executor cannot be reached.
    MissingDependencyError
        Without pandas; `comparison_rows` does without.

    Examples
    --------
    >>> frame = compare(["facility-tiny"], ["random"], seeds=(0, 1), executor="serial")
    >>> frame[["instance", "solver", "seed", "status"]]
            instance  solver  seed    status
    0  facility-tiny  random     0  feasible
    1  facility-tiny  random     1  feasible
    """
    rows, interrupted = comparison_rows(
        problems,
        solvers,
        seeds,
        time_limit,
        stop=stop,
        deterministic=deterministic,
        out=out,
        executor=executor,
        jobs=jobs,
        display=display,
        references=references,
    )
    frame = rows_frame(rows)
    frame.attrs["interrupted"] = interrupted
    return frame


def comparison_rows(
    problems: Instances,
    solvers: Iterable[str | Solver] | str | Solver | None = None,
    seeds: Iterable[int] | int = (0,),
    time_limit: float | None = math.inf,
    *,
    stop: StopCriterion | None = None,
    deterministic: bool = False,
    out: str | os.PathLike[str] | None = None,
    executor: Executor | str | None = None,
    jobs: int = 1,
    display: bool = True,
    references: Mapping[str, float] | None = None,
) -> tuple[list[Row], bool]:
    """Do what `compare` does, and return the full rows, histories and solutions included, and whether Ctrl-C came."""
    named = name_instances(problems)
    known = {name: value for name in named if (value := _library_value(name, named[name])) is not None}
    known |= references or {}
    store = RowStore(storage.open_folder(out) / "rows") if out is not None else None
    rows: dict[str, Row] = {}
    order: list[str] = []
    left: list[Job] = []

    def keep(row: Row) -> None:
        rows[row["key"]] = row
        if store is not None:
            store.put(row)

    for job, reason in plan(named, solvers, seeds, time_limit, stop, deterministic):
        if job.key in order:
            continue
        order.append(job.key)
        if reason is not None:
            keep(storage.plain(failed_row(job, "skipped", reason)))
        elif store is not None and (row := store.get(job.key)) and row["status"] not in ("error", "skipped"):
            rows[job.key] = row | storage.plain(common_values(job) | {"machine": row.get("machine")})
        else:
            left.append(job)
    interrupted = False
    if left:
        engine = open_engine(executor, jobs)
        with _progress(len(left), display) as advance:
            interrupted = run_all(left, engine, keep, advance)
    return add_gaps((rows[key] for key in order if key in rows), known), interrupted


def plan(
    problems: Mapping[str, Problem],
    solvers: Iterable[str | Solver] | str | Solver | None,
    seeds: Iterable[int] | int,
    time_limit: float | None,
    stop: StopCriterion | None,
    deterministic: bool,
) -> Iterator[tuple[Job, str | None]]:
    """Yield every run with None, or with the sentence that says why it is skipped."""
    chosen = choose_solvers(problems, solvers)
    given = listed("seeds", seeds, single=(int, np.integer))
    numbers = [seed_number(f"seeds[{i}]", seed) for i, seed in enumerate(given)]
    if not numbers:
        raise EdgeOptError("seeds: expected at least one")
    seconds = time_limit_s(time_limit)
    deterministic = flag("deterministic", deterministic)
    if stop is not None:
        refuse_other("stop", stop, StopCriterion, "check")
    version = versions()["edgeopt"]
    for name, problem in problems.items():
        fingerprint, parcel = problem.fingerprint(), Parcel(problem)
        for solver in chosen[name]:
            reason, label = solver.supports(problem), solver_label(solver)
            for seed in numbers:
                key = row_key(fingerprint, _identity(solver), seed, seconds, repr(stop), deterministic, version)
                job = Job(
                    key=key,
                    instance=name,
                    parcel=parcel,
                    solver=solver,
                    label=label,
                    seed=seed,
                    time_limit=seconds,
                    stop=stop,
                    deterministic=deterministic,
                )
                yield job, reason


def run_all(jobs: Iterable[Job], engine: Engine, keep: Callable[[Row], None], advance: Callable[[Row], None]) -> bool:
    """Run the jobs, hand each row to `keep` as it comes, and return whether Ctrl-C ended it.

    When a worker dies, every run in flight on an executor that does not say whose it was is suspect: each is repeated
    alone, so that the one which kills its worker takes no other down with it. A run that is `GRACE_S` behind its time
    limit loses its worker.
    """
    queue, suspects = deque(jobs), deque[Job]()
    attempts: dict[str, int] = {}
    running: dict[Future[Row], Job] = {}
    due: dict[Future[Row], float] = {}
    finished = False

    def start(job: Job) -> None:
        future = _submit(engine, job)
        running[future], due[future] = job, time.monotonic() + job.time_limit + GRACE_S

    def end(job: Job, row: Row) -> None:
        if row.get("traceback"):
            logger.error("%s on %s, seed %d:\n%s", job.label, job.instance, job.seed, row["traceback"])
        keep(row)
        advance(row)

    try:
        while queue or suspects or running:
            while queue and len(running) < engine.window:
                start(queue.popleft())
            if suspects and not queue and not running:
                start(suspects.popleft())
            for future in wait(running, _until(due.values()), FIRST_COMPLETED).done:
                job = running.pop(future)
                del due[future]
                row = _outcome(future, job)
                if row is None:
                    attempts[job.key] = attempts.get(job.key, 0) + 1
                    if attempts[job.key] <= MAX_RESUBMISSIONS:
                        suspects.append(job)
                        continue
                    message = f"its worker died {attempts[job.key]} times: {future_error(future)}"
                    row = storage.plain(failed_row(job, "error", message))
                elif row["limit"] == "interrupt":  # not a result of the solver: it is run again next time
                    return True
                end(job, row)
            for future in [late for late in running if due[late] <= time.monotonic() and not late.done()]:
                job = running[future]
                if not engine.kill(future):
                    due[future] += job.time_limit + GRACE_S
                    continue
                del running[future], due[future]
                message = f"did not return within {GRACE_S:g} s after its time limit of {job.time_limit:g} s"
                end(job, storage.plain(failed_row(job, "error", f"{message}: its worker was killed")))
        finished = True
        return False
    except KeyboardInterrupt:
        return True
    finally:
        engine.close(now=not finished)


def _until(due: Iterable[float]) -> float | None:
    """Return the seconds until the first of some times, None for ever."""
    seconds = min(due, default=math.inf) - time.monotonic()
    return max(0.0, seconds) if seconds < threading.TIMEOUT_MAX else None


def choose_solvers(
    problems: Mapping[str, Problem], solvers: Iterable[str | Solver] | str | Solver | None
) -> dict[str, list[Solver]]:
    """Return the solvers to try on each instance; a name must belong to at least one kind of problem among them."""
    from edgeopt.solvers import get_solver, solvers_of

    own = {kind: solvers_of(kind) for kind in dict.fromkeys(problem.kind for problem in problems.values())}
    if solvers is None:
        return {name: list(own[problem.kind]) for name, problem in problems.items()}
    chosen: dict[str, list[Solver]] = {name: [] for name in problems}
    one = isinstance(solvers, str) or hasattr(solvers, "supports")
    given = [solvers] if one else listed("solvers", solvers)
    if not given:
        raise EdgeOptError("solvers: expected at least one")
    for i, wanted in enumerate(given):
        if not isinstance(wanted, str):
            refuse_other(f"solvers[{i}]", wanted, Solver, "supports", "solve", "name")
        found = {kind: solver for kind in own for solver in own[kind] if solver.name == wanted}
        if isinstance(wanted, str) and not found:
            get_solver(next(iter(own)), wanted)  # raises, with a hint
        for name, problem in problems.items():  # of another kind: its `supports` says why it is skipped
            other = next(iter(found.values())) if isinstance(wanted, str) else wanted
            chosen[name].append(found.get(problem.kind, other))
    return chosen


def name_instances(problems: Instances) -> dict[str, Problem]:
    """Return the problems by name: a file's name is its stem, a problem's without a name ``instance-N``.

    Examples
    --------
    >>> list(name_instances("facility-tiny"))
    ['facility-tiny']
    """
    if isinstance(problems, Mapping):
        return {str(name): _resolve(value) for name, value in problems.items()}
    given = listed("problems", problems, single=(Problem, str, os.PathLike))
    named: dict[str, Problem] = {}
    for position, value in enumerate(given, start=1):
        name = Path(value).stem if isinstance(value, str | os.PathLike) else f"instance-{position}"
        if name in named:
            name = str(value) if not isinstance(value, Problem) and str(value) not in named else f"{name}-{position}"
        named[name] = _resolve(value)
    if not named:
        raise EdgeOptError("problems: expected at least one instance")
    return named


def solver_label(solver: Solver) -> str:
    """Return the solver's name with the parameters that differ from their defaults.

    Examples
    --------
    >>> from edgeopt.solvers import get_solver
    >>> solver_label(get_solver("expert-caching", "random"))
    'random'
    """
    changed = []
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(solver) if dataclasses.is_dataclass(solver) else ()
    for field in fields:
        default: Any = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if (value := getattr(solver, field.name)) != default:
            changed.append(f"{field.name}={value}")
    return f"{solver.name}({', '.join(changed)})" if changed else solver.name


def future_error(future: Future[Row]) -> str:
    """Return in one line why a finished future has no result."""
    error = None if future.cancelled() else future.exception()
    return "cancelled" if error is None else " ".join(f"{type(error).__name__}: {error}".split())


def _submit(engine: Engine, job: Job) -> Future[Row]:
    try:
        return engine.submit(run_job, job)
    except (BrokenExecutor, RuntimeError) as error:  # broken by an earlier run
        if engine.restart():
            return engine.submit(run_job, job)
        future: Future[Row] = Future()
        future.set_exception(BrokenExecutor(str(error)))
        return future


def _outcome(future: Future[Row], job: Job) -> Row | None:
    """Return the row, or None if the worker was lost."""
    try:
        return future.result()
    except Exception as error:  # run_job returns its own errors as rows: these come from the way there and back
        if is_lost(error):
            return None
        logger.error("%s on %s, seed %d", job.label, job.instance, job.seed, exc_info=error)
        row: Row = storage.plain(failed_row(job, "error", future_error(future)))
        return row


def _identity(solver: Solver) -> str:
    text = repr(solver)
    kind = f"{type(solver).__module__}.{type(solver).__qualname__}"
    return f"{kind} {solver.name}" if " at 0x" in text else f"{kind} {text}"


def _resolve(value: Instance) -> Problem:
    if isinstance(value, Problem):
        return value
    if not isinstance(value, str | os.PathLike):
        raise InvalidProblemError(f"problems: expected problems, files or names, got {quoted(value)}")
    from edgeopt.evaluation.instances.library import load_instance  # late: it can be run as a program

    return load_instance(value)


def _library_value(name: str, problem: Problem) -> float | None:
    from edgeopt.evaluation.instances.library import best_known, library_names, load_instance

    if name not in library_names() or load_instance(name).fingerprint() != problem.fingerprint():
        return None
    return best_known(name).objective


@contextmanager
def _progress(total: int, display: bool) -> Iterator[Callable[[Row], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not (display and console.is_terminal)) as bar:
        line = bar.add_task("", total=total)
        yield lambda row: bar.update(
            line, advance=1, description=f"{row['solver']} on {row['instance']}: {row['status']}"
        )


__all__ = ["compare", "comparison_rows", "name_instances", "solver_label"]
