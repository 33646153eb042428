"""`solve`, what a solver is, and the `Run` that a solver reports to."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from edgeopt.errors import EdgeOptError, InvalidProblemError, SolverError, UnsupportedProblemError, quoted
from edgeopt.installed import versions
from edgeopt.interrupts import interrupted, interrupts_noted, is_interrupt
from edgeopt.problem import Problem, Solution
from edgeopt.progress import Callback, ProgressLine
from edgeopt.result import Guarantee, Record, Result, Seconds, SolveHistory, Status, relative_gap
from edgeopt.stop import AnyOf, Limit, MaxTime, Progress, StopCriterion
from edgeopt.validate import flag, real, seed_number

logger = logging.getLogger("edgeopt")
logger.addHandler(logging.NullHandler())

S = TypeVar("S", bound=Solution)

TOLERANCE = 1e-7  # relative, by which a reported objective or bound may contradict the problem
NO_GAP = 1e-9  # relative: a smaller gap is none
ROUNDING = 1e-15  # relative to the terms of an objective that cancel


class Solver(Protocol):
    """What every solver offers: a frozen dataclass whose fields are its hyper-parameters."""

    @property
    def name(self) -> str:
        """Name on the command line."""
        ...

    @property
    def guarantee(self) -> Guarantee:
        """Best guarantee on the problems it supports."""
        ...

    def guarantee_for(self, problem: Any) -> Guarantee:
        """Return the guarantee on this very problem."""
        ...

    def supports(self, problem: Problem) -> str | None:
        """Return None, or the sentence that says why this problem cannot be solved."""
        ...

    def solve(self, problem: Any, options: "SolveOptions") -> Result[Any]:
        """Solve the problem. Call `edgeopt.solve` instead, which checks first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveOptions:
    """Options common to all solvers, see `solve`."""

    time_limit: float = math.inf
    stop: StopCriterion | None = None
    seed: int | None = 0
    initial_solution: Any | None = None
    callback: Callback | None = None
    display: bool = False
    deterministic: bool = False
    started: float | None = None
    """When the call began, by `time.perf_counter`; None: when the solver's `Run` is made."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "time_limit", time_limit_s(self.time_limit))
        if self.seed is not None:  # NumPy's integers are no JSON
            object.__setattr__(self, "seed", seed_number("seed", self.seed, "an integer >= 0 or None"))
        for name in ("display", "deterministic"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        if self.stop is not None:
            refuse_other("stop", self.stop, StopCriterion, "check")
        if self.callback is not None:
            refuse_other("callback", self.callback, Callback, "on_start", "on_iteration", "on_best", "on_end")


def time_limit_s(value: float | None) -> float:
    """Return a time limit in seconds; None is no limit."""
    try:
        return math.inf if value is None else real("time_limit", value, nonnegative=True, finite=False)
    except InvalidProblemError:
        raise EdgeOptError(f"time_limit = {quoted(value)}: expected seconds >= 0, or None for no limit") from None


def refuse_other(name: str, value: object, kind: type, *methods: str) -> None:
    """Refuse an argument that is no object with the methods of its kind, such as a class or a name."""
    lacking = [method for method in methods if not hasattr(value, method)]
    if isinstance(value, type) or lacking:
        got = f"the class {value.__name__}" if isinstance(value, type) else quoted(value)
        if not isinstance(value, type) and len(lacking) < len(methods):  # it was meant to be one
            got += f" without {lacking[0]!r}"
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise InvalidProblemError(f"{name}: expected {article} {kind.__name__}, got {got}")


def solve(
    problem: Problem,
    solver: "str | Solver",
    *,
    time_limit: float | None = math.inf,
    stop: StopCriterion | None = None,
    seed: int | None = 0,
    initial_solution: Any | None = None,
    callback: Callback | None = None,
    display: bool = False,
    deterministic: bool = False,
) -> Result[Any]:
    """Solve a problem.

    Ctrl-C, whenever it comes, ends the solve as a limit does: the best solution so far is returned, with the limit
    ``interrupt``; a second one is raised. Where Ctrl-C has a handler of the caller's, that is called instead.

    Parameters
    ----------
    problem : the problem.
    solver : a solver object, or the name of one with its default hyper-parameters.
    time_limit : seconds for the whole call, compilation included; None for no limit. Never an error: the best solution
        so far is returned. A kernel that is being compiled is not interrupted: the first call on a machine may take that
        much longer.
    stop : further stop criteria, for example ``TargetGap(1e-4)``.
    seed : same seed, same result. None draws a fresh seed and reports it.
    initial_solution : feasible solution to start from (warm start); the result is never worse.
    callback : told of every iteration and every better solution; may stop the run.
    display : show progress on a terminal.
    deterministic : one worker and no clock inside back ends, so that equal seeds give equal results everywhere.

    Returns
    -------
    Result

    Raises
    ------
    UnsupportedProblemError
        If the solver cannot handle the problem; the message says what is missing.
    InvalidProblemError
        If the initial solution does not fit the problem.

    Examples
    --------
    >>> import edgeopt
    >>> problem = edgeopt.problems.ExpertCaching.random(num_servers=3, num_users=20, seed=1)
    >>> result = edgeopt.solve(problem, "greedy")
    >>> result.status, result.objective <= result.bound
    (<Status.FEASIBLE: 'feasible'>, True)
    """
    started = time.perf_counter()
    with interrupts_noted() as noted:
        if not isinstance(problem, Problem):
            raise InvalidProblemError(f"problem: expected a problem, got {quoted(problem)}")
        if isinstance(solver, str):
            from edgeopt import solvers  # late: the core does not depend on the solvers

            solver = solvers.get_solver(problem.kind, solver)
        refuse_other("solver", solver, Solver, "supports", "solve")
        if (reason := solver.supports(problem)) is not None:
            raise UnsupportedProblemError(f"{solver.name}: {reason}")
        if initial_solution is not None and (violations := problem.violations(initial_solution)):
            raise InvalidProblemError(f"initial_solution: {violations[0].message}")
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        options = SolveOptions(
            time_limit=time_limit_s(time_limit),
            stop=stop,
            seed=seed,
            initial_solution=initial_solution,
            callback=callback,
            display=display,
            deterministic=deterministic,
            started=started,
        )
        result = solver.solve(problem, options)
    return dataclasses.replace(result, limit=Limit.INTERRUPT) if noted.pressed else result


class Run(Generic[S]):
    """One solve in progress: clock, limits, incumbent, bound, history. Used as a context manager by every solver.

    Inside the ``with`` block the solver calls `offer` for solutions, `tighten` for bounds and `step` once an
    iteration, and looks at `stopped`, often: Ctrl-C is a limit like others. One that is raised, by a callback or a handler
    of the caller's, leaves the block quietly, and `result` returns the incumbent.
    """

    def __init__(self, solver: Solver, problem: Problem, options: SolveOptions) -> None:
        self.problem, self.options, self._solver = problem, options, solver
        self._sign = 1.0 if problem.sense == "max" else -1.0
        self._start = time.perf_counter() if options.started is None else options.started
        self._build = 0.0
        self.solution: S | None = None
        self.objective: float | None = None
        self.bound = math.inf * self._sign
        self.iteration = 0
        self.limit: Limit | None = None
        self._best_at = (0.0, 0)
        self.history = SolveHistory()
        criteria: list[StopCriterion] = [MaxTime(options.time_limit)] if math.isfinite(options.time_limit) else []
        self._criteria = AnyOf((*criteria, options.stop) if options.stop else tuple(criteria))
        self._callbacks = [c for c in (options.callback, ProgressLine() if options.display else None) if c]

    def __enter__(self) -> Self:
        from edgeopt.jit import CompileTimer  # late: numba takes 0.3 s to import

        self._compile = CompileTimer()
        self._compile.__enter__()
        for callback in self._callbacks:
            callback.on_start(self._solver.name, self.problem.kind)
        if self.options.initial_solution is not None:
            try:
                self.offer(self.options.initial_solution)
            except (KeyboardInterrupt, SystemError) as error:
                if not is_interrupt(error):
                    raise
                self.limit = Limit.INTERRUPT  # as inside the block: the solver sees the limit at its first look
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._compile.__exit__()
        for callback in self._callbacks:
            callback.on_end(self.progress())
        if is_interrupt(error):
            self.limit = Limit.INTERRUPT
            return True
        return False

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.options.seed if self.options.seed is not None else 0

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    @property
    def remaining(self) -> float:
        """Seconds left under the time limit, maybe infinite, never negative."""
        return max(0.0, self.options.time_limit - self.seconds)

    @property
    def gap(self) -> float:
        """Relative gap between incumbent and bound."""
        return relative_gap(self.objective, self.bound)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Charge what happens inside to build time; compilation inside counts as compilation."""
        start, compiled = time.perf_counter(), self._compile.seconds
        try:
            yield
        finally:
            self._build += time.perf_counter() - start - (self._compile.seconds - compiled)

    def progress(self) -> Progress:
        """Return a snapshot."""
        return Progress(self.seconds, self.iteration, self.objective, self.bound, self.gap, *self._best_at)

    def offer(self, solution: S, objective: float | None = None) -> bool:
        """Report a feasible solution; keep it if it is better than the incumbent, and return whether it is."""
        value = self.problem.objective(solution) if objective is None else float(objective)
        if math.isnan(value):  # it would compare as neither better nor worse than anything
            raise SolverError(f"{self._solver.name} reported a solution with objective nan")
        if self.objective is not None and self._sign * (value - self.objective) <= 0:
            return False
        self.solution, self.objective = solution, value
        self._best_at = (self.seconds, self.iteration)
        self._record()
        for callback in self._callbacks:
            if callback.on_best(self.progress()) is False:
                self.limit = Limit.CALLBACK
        return True

    def tighten(self, bound: float) -> None:
        """Report a valid bound on the optimum; the best one is kept."""
        if self._sign * (self.bound - bound) > 0:
            self.bound = float(bound)
            self._record()

    def step(self) -> bool:
        """Count one iteration; return whether to go on."""
        self.iteration += 1
        for callback in self._callbacks:
            if callback.on_iteration(self.progress()) is False:
                self.limit = Limit.CALLBACK
        return not self.stopped()

    def stopped(self) -> bool:
        """Return whether a limit has been reached."""
        if self.limit is None:
            self.limit = Limit.INTERRUPT if interrupted() else self._criteria.check(self.progress())
        return self.limit is not None

    def result(
        self, *, optimal: bool = False, infeasible: bool = False, error: str = "", message: str = ""
    ) -> Result[S]:
        """Return the result: objective and feasibility recomputed by the problem, status derived from them.

        Parameters
        ----------
        optimal : the solver has proved the incumbent optimal.
        infeasible : the solver has proved that there is no solution.
        error : what failed, in the words of the back end.
        message : one sentence for the user.
        """
        total = self.seconds
        compiled = min(self._compile.seconds, total)
        build = min(max(self._build, 0.0), total - compiled)
        objective, feasible, bound = None, False, self.bound
        if self.solution is not None:
            objective = self.problem.objective(self.solution)
            violations = self.problem.violations(self.solution)
            feasible = not violations
            rounding = ROUNDING * self.problem.largest_term
            tolerance = max(TOLERANCE * abs(objective), rounding)
            if violations:
                error, bound = f"returned an infeasible solution: {violations[0].message}", math.inf * self._sign
            elif self.objective is not None and abs(objective - self.objective) > tolerance:
                error = f"reported objective {self.objective!r}, the problem says {objective!r}"
            if error:
                optimal = False
            elif optimal or abs(bound - objective) <= max(NO_GAP * abs(objective), rounding):
                optimal, bound = True, objective
            elif self._sign * (objective - bound) > tolerance:
                error = f"reported the bound {bound!r}, which its own solution of {objective!r} beats"
            else:  # equal up to rounding: a bound never contradicts the objective
                bound = self._sign * max(self._sign * bound, self._sign * objective)
        return Result(
            problem=self.problem.kind,
            solver=self._solver.name,
            sense=self.problem.sense,
            status=self._status(feasible, optimal, infeasible, error),
            limit=self.limit,
            message=error or message,
            solution=self.solution,
            feasible=feasible,
            bound=bound,
            guarantee=self._solver.guarantee_for(self.problem),
            history=self.history,
            seconds=Seconds(build, compiled, total - compiled - build),
            seed=self.options.seed,
            versions=versions(),
            _objective=objective,
            _problem=self.problem,
        )

    @staticmethod
    def _status(feasible: bool, optimal: bool, infeasible: bool, error: str) -> Status:
        if error:
            return Status.ERROR
        if infeasible:
            return Status.INFEASIBLE
        if not feasible:
            return Status.NO_SOLUTION
        return Status.OPTIMAL if optimal else Status.FEASIBLE

    def _record(self) -> None:
        bound = self.bound if math.isfinite(self.bound) else None
        self.history.append(Record(self.seconds, self.iteration, self.objective, bound))


def configure(solver: Solver, **changes: Any) -> Solver:
    """Return a copy of a solver with some hyper-parameters changed; unknown names are errors that list the known."""
    fields = [field.name for field in dataclasses.fields(solver)]  # type: ignore[arg-type]
    if unknown := sorted(set(changes) - set(fields)):
        raise EdgeOptError(f"{solver.name} has no parameter {quoted(unknown[0])}; it has {', '.join(fields) or 'none'}")
    return dataclasses.replace(solver, **changes)  # type: ignore[type-var]


__all__ = ["Run", "SolveOptions", "Solver", "SolverError", "configure", "solve"]
