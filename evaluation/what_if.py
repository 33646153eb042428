"""What if a limit were another: a problem solved along one or two of its numbers, each point from its neighbours' solutions."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from edgeopt import storage
from edgeopt.errors import EdgeOptError, InvalidProblemError, quoted
from edgeopt.evaluation.compare.cells import finished_rows
from edgeopt.evaluation.compare.rows import Row, RowStore, check_row, row_key
from edgeopt.evaluation.compare.worker import machine, warm_up
from edgeopt.evaluation.what_if_axes import Axis, read_axis
from edgeopt.fields import Fields
from edgeopt.installed import versions
from edgeopt.problem import Problem
from edgeopt.result import relative_gap
from edgeopt.solve import Solver, solve, time_limit_s
from edgeopt.validate import listed, seed_number

DEFAULT = {
    "expert-caching": "lagrangian",
    "model-download": "slide",
    "split-training": "exact",
    "client-selection": "reservation",
    "expert-balancing": "local-search",
}
"""The solver of each kind where none is named."""
MAX_CELLS = 100_000
LOOSENS = (
    "storage_bytes", "bandwidth_hz", "memory_bytes", "deadline_s", "energy_j", "max_batch", "max_interval", "max_frequency_hz",
    "target", "slots",
)  # fmt: skip
"""Limits of which more only admits more solutions: a bound at more of them holds at less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of the grid, a `edgeopt.evaluation.compare.cells.Cell`. Points run one after another, in this process.

    Parameters
    ----------
    place : int per axis, which value of each.
    values : the values.
    names : of the axes.
    base : fingerprint of the problem that is varied.
    problem : the problem there; the one that is varied where a check refuses it.
    solver, seed, time_limit : how it is solved.
    made : rows of the points before it, by place; its own is added.
    """

    place: tuple[int, ...]
    values: tuple[float, ...]
    names: tuple[str, ...]
    base: str
    problem: Problem
    solver: Solver
    seed: int
    time_limit: float
    made: dict[tuple[int, ...], Row]

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value:.6g}" for name, value in zip(self.names, self.values, strict=True))

    @property
    def key(self) -> str:
        """Equal for equal problems, values, solvers and limits."""
        point, how = (self.base, self.names, self.values), (repr(self.solver), self.seed, self.time_limit)
        return row_key("what-if", *point, *how, versions()["edgeopt"])

    def run(self) -> Row:
        """Solve, from the best solution of a neighbour that fits here, if there is one."""
        warm_up(self.problem, self.solver)
        result = solve(
            self.problem, self.solver, time_limit=self.time_limit, seed=self.seed, initial_solution=self._start()
        )
        found = result.to_json(with_solution=True) | {"history": []}
        found["decisions"] = decisions(self.problem, result.solution) if result.feasible else {}
        self.made[self.place] = found
        return found

    def _start(self) -> Any:
        best, start = -math.inf, None
        for axis, at in enumerate(self.place):
            neighbour = self.made.get((*self.place[:axis], at - 1, *self.place[axis + 1 :]))
            if not neighbour or neighbour.get("solution") is None:
                continue
            try:
                solution = self.problem.solution_from_json(neighbour["solution"])
                fits = self.problem.is_feasible(solution)
            except InvalidProblemError:  # of another shape here
                continue
            value = self.problem.objective(solution) * (1.0 if self.problem.sense == "max" else -1.0) if fits else best
            if value > best:
                best, start = value, solution
        return start

    def failed(self, status: str, message: str) -> Row:
        """Return what takes the place of findings."""
        return {
            "problem": self.problem.kind, "sense": self.problem.sense, "status": status, "limit": None, "objective": None,
            "bound": None, "gap": None, "guarantee": str(self.solver.guarantee), "feasible": False,
            "seconds": {"build": None, "compile": None, "solve": None, "total": None}, "message": message,
            "versions": versions(), "solution": None, "history": [], "decisions": {},
        }  # fmt: skip

    def common(self) -> Row:
        """Return what every row says."""
        return {
            "key": self.key,
            "instance": str(self),
            "solver": self.solver.name,
            "seed": self.seed,
            "time_limit": self.time_limit if math.isfinite(self.time_limit) else None,
            "place": list(self.place),
            "values": list(self.values),
            "axes": list(self.names),
            "machine": machine(),
        }


def what_if(
    problem: Problem,
    vary: Sequence[str | Axis] | str | Axis,
    solver: str | Solver | None = None,
    *,
    time_limit: float | None = 10.0,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    display: bool = True,
) -> tuple[list[Row], bool]:
    """Solve a problem along one or two of its numbers, and return a row for each point, and whether Ctrl-C came.

    Points run one after another, so that each starts from the best solution of the points before it that fits. Where more of a
    limit only admits more, as of storage, a bound at more of it holds at less: each point has the best of those.

    Parameters
    ----------
    problem : the problem.
    vary : one or two of ``NAME=LOW..HIGH``, ``NAME=LOW..HIGH/POINTS`` or ``NAME=A,B,C``, see
        `edgeopt.evaluation.what_if_axes.read_axis`, or axes.
    solver : a solver or its name; None for the one in `DEFAULT`.
    time_limit : seconds for each point; None for no limit.
    seed : of every run.
    out : folder that keeps ``rows/KEY.json``; called again with the same folder, only what is missing is run.
    display : show a progress bar, on a terminal only.

    Returns
    -------
    rows : as those of a comparison, with ``axes`` (names), ``values`` and ``place`` (one for each axis) and ``decisions``, a few numbers that say
        what was decided. A point where there is no problem, as a check refuses it, has the status ``skipped`` and the reason.
    interrupted : whether Ctrl-C ended it; the rows made so far are returned.

    Raises
    ------
    EdgeOptError
        If an axis is not one of the problem, or the solver does not support it.

    Examples
    --------
    >>> from edgeopt.problems import ModelDownload
    >>> rows, _ = what_if(ModelDownload.random(num_users=9, seed=1), "bandwidth=20,100MHz")
    >>> [(row["values"], row["objective"]) for row in rows]
    [([20000000.0], 2.0), ([100000000.0], 5.0)]
    """
    from edgeopt.solvers import get_solver

    if isinstance(solver, str) or solver is None:
        solver = get_solver(problem.kind, solver or DEFAULT.get(problem.kind, ""))
    if (reason := solver.supports(problem)) is not None:
        raise EdgeOptError(f"{solver.name}: {reason}")
    axes = [
        axis if isinstance(axis, Axis) else read_axis(problem, axis)
        for axis in listed("vary", vary, single=(str, Axis))
    ]
    if not 1 <= len(axes) <= 2:
        raise EdgeOptError(f"vary: {len(axes)} parameters, expected one or two")
    if math.prod(len(axis.values) for axis in axes) > MAX_CELLS:
        raise EdgeOptError(f"vary: expected at most {MAX_CELLS} points")
    seconds, number = time_limit_s(time_limit), seed_number("seed", seed)
    store = None if out is None else RowStore(storage.open_folder(out) / "rows", check_point)
    made: dict[tuple[int, ...], Row] = {}
    cells = list(_points(problem, axes, solver, number, seconds, made))
    if store is not None:
        for point, _ in cells:
            if (row := store.get(point.key)) is not None:
                made[point.place] = row
    rows, interrupted = finished_rows(cells, store, "serial", 1, display)
    return [_bounded(row, rows, [axis.field in LOOSENS for axis in axes]) for row in rows], interrupted


def _points(
    problem: Problem, axes: list[Axis], solver: Solver, seed: int, seconds: float, made: dict[tuple[int, ...], Row]
) -> Iterator[tuple[Point, str | None]]:
    """Yield the points in order, each with None, or with the reason why there is no problem."""
    base = problem.fingerprint()
    for place in product(*(range(len(axis.values)) for axis in axes)):
        values = tuple(axis.values[at] for axis, at in zip(axes, place, strict=True))
        changed, reason = problem, None
        try:
            for axis, value in zip(axes, values, strict=True):
                changed = axis.applied(changed, value)
        except InvalidProblemError as error:
            changed, reason = problem, str(error)
        point = Point(
            place=place,
            values=values,
            names=tuple(axis.name for axis in axes),
            base=base,
            problem=changed,
            solver=solver,
            seed=seed,
            time_limit=seconds,
            made=made,
        )
        yield point, reason


def _bounded(row: Row, rows: list[Row], loosens: list[bool]) -> Row:
    """Return a row with the best bound of all points that allow more, its own among them."""
    if not row["feasible"]:
        return row
    best, worse = row["bound"], max if row["sense"] == "min" else min
    for other in rows:
        pairs = zip(row["place"], other["place"], loosens, strict=True)
        if other["bound"] is not None and all(there >= here if more else there == here for here, there, more in pairs):
            best = other["bound"] if best is None else worse(best, other["bound"])
    gap = relative_gap(row["objective"], best) if best is not None else math.inf
    return row | {"bound": best, "gap": gap if math.isfinite(gap) else None}


def decisions(problem: Any, solution: Any) -> dict[str, float | int | str]:
    """Return a few numbers that say what a solution decides, by kind of problem."""
    if problem.kind == "expert-caching":
        report = problem.report(solution)
        served = report.hit_ratio["own server"] + report.hit_ratio["other server"]
        return {
            "copies": solution.num_copies,
            "experts cached": int(solution.cached.any(axis=0).sum()),
            "served at the edge, %": round(100 * served, 2),
            "latency, s": report.latency_s,
        }
    if problem.kind == "model-download":
        admitted = solution.model[solution.model >= 0]
        counts = {f"with {problem.model_names[i]}": int((admitted == i).sum()) for i in sorted(set(admitted.tolist()))}
        return {"admitted": solution.num_admitted, **counts}
    if problem.kind == "split-training":
        report = problem.report(solution)
        cuts = solution.cut_layer
        return {
            "mean batch": round(float(solution.batch_size.mean()), 2),
            "cuts": f"{cuts.min()} to {cuts.max()}",
            "interval": solution.aggregation_interval,
            "seconds of a round": report.round_s,
            "rounds": report.rounds,
        }
    if problem.kind == "client-selection":
        report = problem.report(solution)
        return {
            "delivered, %": round(100 * report.delivery_rate, 2),
            "conflicts, %": round(100 * report.conflict_rate, 2),
            "seconds of a round": report.mean_round_s,
        }
    if problem.kind == "expert-balancing":
        report = problem.report(solution)
        return {
            "largest load": float(report.largest.max()),
            "most replicas of an expert": int(report.replicas.max()),
            "balancedness": report.balancedness,
            "moves": report.moves,
        }
    return {}


def public_point(row: Row) -> Row:
    """Return what ``edgeopt whatif --json`` says about a point."""
    keys = (
        "axes",
        "values",
        "status",
        "limit",
        "objective",
        "bound",
        "gap",
        "feasible",
        "decisions",
        "seconds",
        "message",
    )
    return {key: row.get(key) for key in keys}


def check_point(document: Row) -> None:
    """Refuse what is no row of a what-if."""
    check_row(document)
    row = Fields(document, "not a point of a what-if: ")
    for name in ("axes", "values", "place"):
        if not row.entries(name):
            raise row.wrong(name, "a list with an entry for each parameter")
    for at, value in enumerate(row.entries("values")):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidProblemError(f"values[{at}] = {quoted(value)}: expected a number")
    for name in (decided := row.table("decisions")):
        if not isinstance(decided.value(name), int | float | str):
            raise decided.wrong(name, "a number or a text")
