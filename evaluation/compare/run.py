"""Compare solvers on instances: one row per (instance, solver, seed), kept on disk the moment it is made."""

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt import storage
from edgeopt.errors import EdgeOptError, InvalidProblemError, quoted
from edgeopt.evaluation.compare.cells import finished_rows
from edgeopt.evaluation.compare.rows import Row, RowStore, add_gaps, row_key, rows_frame
from edgeopt.evaluation.compare.worker import Parcel, Task
from edgeopt.installed import versions
from edgeopt.problem import Problem
from edgeopt.solve import Solver, refuse_other, time_limit_s
from edgeopt.stop import StopCriterion
from edgeopt.validate import flag, listed, seed_number

if TYPE_CHECKING:
    import pandas as pd

Instance = Problem | str | os.PathLike[str]
Instances = Mapping[str, Instance] | Iterable[Instance] | Instance


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
    tasks = plan(named, solvers, seeds, time_limit, stop, deterministic)
    rows, interrupted = finished_rows(tasks, store, executor, jobs, display)
    return add_gaps(rows, known), interrupted


def plan(
    problems: Mapping[str, Problem],
    solvers: Iterable[str | Solver] | str | Solver | None,
    seeds: Iterable[int] | int,
    time_limit: float | None,
    stop: StopCriterion | None,
    deterministic: bool,
) -> Iterator[tuple[Task, str | None]]:
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
                task = Task(
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
                yield task, reason


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


__all__ = ["compare", "comparison_rows", "name_instances", "solver_label"]
