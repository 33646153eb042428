"""`cp-sat`: the exact model with Boolean variables and an integer objective, solved by CP-SAT."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.problems.expert_caching.terms import Columns
from edgeopt.result import Exact, Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.back_ends import cp_model_module
from edgeopt.solvers.background import Action, Background, Mailbox
from edgeopt.solvers.ending import End, Ending
from edgeopt.solvers.expert_caching.common import supports_expert_caching
from edgeopt.solvers.expert_caching.exact import offer_bound, offer_feasible, offer_start, supports_size, whole_sizes

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

RELATIVE_ERROR = 1e-7  # of the rounded objective, against its largest term
MAX_TOTAL = 2.0**52  # largest sum of all integer coefficients: beyond it CP-SAT's own arithmetic suffers


@dataclass(frozen=True, slots=True, eq=False)
class CpSatModel:
    """CP-SAT model of an expert-caching problem, in the variables of `Columns`.

    Parameters
    ----------
    model : the model; its objective is in integer units.
    variables : one for each column.
    objective_scale : integer units per second saved, a power of two.
    rounding_error : by how much the problem's objective and integer objective / scale differ at most, in seconds.
    """

    model: "cp_model.CpModel"
    variables: "list[cp_model.IntVar]"
    objective_scale: float
    rounding_error: float


@dataclass(frozen=True, slots=True)
class Integers:
    """An objective in integer units.

    Parameters
    ----------
    coefficient : int64 [T].
    scale : units per second saved.
    error : by how much value @ y and coefficient @ y / scale differ at most, for any y in [0, 1].
    """

    coefficient: NDArray[np.int64]
    scale: float
    error: float


def integer_objective(value: NDArray[np.float64]) -> Integers:
    """Return values in integer units, each rounded to the nearest.

    T terms are off by at most T / (2 scale) in all. The scale is the power of two that makes this `RELATIVE_ERROR`
    of the largest value, a lower bound on the optimum wherever that term can be had; it is smaller, and the error
    larger, only where the integers would add up to more than `MAX_TOTAL`.

    Examples
    --------
    >>> integers = integer_objective(np.array([0.1, 0.2]))
    >>> integers.coefficient.tolist(), integers.scale, integers.error < 1e-7 * 0.2
    ([6710886, 13421773], 67108864.0, True)
    """
    if value.size == 0:
        return Integers(np.zeros(0, np.int64), 1.0, 0.0)
    wanted = value.size / (2 * RELATIVE_ERROR * float(value.max()))
    scale = 2.0 ** min(math.ceil(math.log2(wanted)), math.floor(math.log2(MAX_TOTAL / float(value.sum()))))
    coefficient = np.rint(value * scale)
    lost = value - coefficient / scale
    error = max(float(lost[lost > 0].sum()), float(-lost[lost < 0].sum()))
    return Integers(coefficient.astype(np.int64), scale, error * (1 + 1e-9))


def build_cp_model(
    problem: ExpertCaching, start: Placement | None = None, check: Action = lambda: None
) -> CpSatModel:  # fmt: skip
    """Return the model of a problem, with hints from a placement; `check` is called again and again meanwhile."""
    cp_model = cp_model_module()
    columns = Columns.of(problem)
    integers = integer_objective(columns.terms.value)
    model = cp_model.CpModel()
    variables = []
    for _ in range(columns.num_columns):
        check()
        variables.append(model.new_bool_var(""))
    _links(model, variables, columns, check)
    _storage(model, variables, problem)
    saved = [variables[c] for c in columns.of_term.tolist()]
    model.maximize(cp_model.LinearExpr.weighted_sum(saved, integers.coefficient.tolist()))
    if start is not None:
        for variable, value in zip(variables, columns.values(start.cached).tolist(), strict=True):
            check()
            model.add_hint(variable, int(value))
    return CpSatModel(model, variables, integers.scale, integers.error)


def _links(
    model: "cp_model.CpModel", variables: "list[cp_model.IntVar]", columns: Columns, check: Action
) -> None:  # fmt: skip
    """Add z => some x of its servers, and y => every z of its experts."""
    server_of = [np.flatnonzero(row) for row in columns.terms.holds]
    for z, (server_set, e) in enumerate(zip(columns.z_set.tolist(), columns.z_expert.tolist(), strict=True)):
        check()
        some = [variables[n * columns.terms.num_experts + e] for n in server_of[server_set].tolist()]
        model.add_bool_or(*some, ~variables[columns.first_z + z])
    for y, literal in enumerate(columns.literal[columns.joint].tolist()):
        check()
        every = [variables[column] for column in literal if column >= 0]
        model.add_bool_and(*every).only_enforce_if(variables[columns.first_y + y])


def _storage(model: "cp_model.CpModel", variables: "list[cp_model.IntVar]", problem: ExpertCaching) -> None:
    """Add that each server's experts fit, in whole numbers."""
    cp_model = cp_model_module()
    units, capacity, _ = whole_sizes(problem)
    sizes = units.tolist()
    for n, limit in enumerate(capacity.tolist()):
        own = variables[n * len(sizes) : (n + 1) * len(sizes)]
        model.add(cp_model.LinearExpr.weighted_sum(own, sizes) <= limit)


@dataclass(frozen=True, slots=True)
class CpSat:
    """Clause learning and linear relaxations by CP-SAT on the model of `CpSatModel`, for every K and latency.

    Guarantee: exact if sizes are whole numbers; exponential time in the worst case. Optimal means up to the
    rounding of the objective to integers, at most 1e-7 of its largest term (`integer_objective`); bounds are reported
    with that error added. Other sizes are rounded up to a grid: then the result is feasible, but
    neither optimality nor CP-SAT's bound is claimed. One iteration is one solution or bound of CP-SAT.

    Parameters
    ----------
    workers : threads of CP-SAT, each with a search of its own; 1 in deterministic runs. Eight are worth having even
        on fewer cores: with two to four, the search that uses linear relaxations is missing. One worker uses them.
    greedy_start : hint the greedy placement by value per byte.
    max_nonzeros : refuse problems whose model may have more nonzeros than this: it is built row by row.
    """

    workers: int = 8
    greedy_start: bool = True
    max_nonzeros: int = 3_000_000

    name: ClassVar[str] = "cp-sat"
    guarantee: ClassVar[Guarantee] = Exact("clause learning, CP-SAT")

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise EdgeOptError(f"workers = {self.workers}: expected an integer >= 1")
        if self.max_nonzeros < 1:
            raise EdgeOptError(f"max_nonzeros = {self.max_nonzeros}: expected an integer >= 1")

    def guarantee_for(self, problem: ExpertCaching) -> Guarantee:
        """Return that the optimum is proved, if sizes are whole numbers."""
        if whole_sizes(problem)[2]:
            return self.guarantee
        return Heuristic("exact for whole sizes; these were rounded up to a grid")

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-caching problem whose model is not too large."""
        return supports_expert_caching(problem) or supports_size(problem, self.max_nonzeros)

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Solve by CP-SAT."""
        optimal, failure, message = False, "", ""
        with Run[Placement](self, problem, options) as run:
            offer_start(run, problem, greedy=self.greedy_start)
            start = run.solution
            building = Background(run, lambda mailbox: build_cp_model(problem, start, mailbox.check))
            with run.building():
                model = None if run.stopped() else building.wait()
            if model is not None and not run.stopped():
                optimal, failure, message = self._search(run, problem, model)
        return run.result(optimal=optimal, error=failure, message=message)

    def _search(self, run: Run[Placement], problem: ExpertCaching, model: CpSatModel) -> tuple[bool, str, str]:
        """Run CP-SAT to its end or a limit; return whether the incumbent is optimal, what failed, and what else to say."""
        solver = cp_model_module().CpSolver()
        self._configure(solver, run)
        claims = whole_sizes(problem)[2]
        search = _Search(run, problem, model, solver, claims)
        ending = Background(run, search, solver.stop_search).wait()
        if ending is None:  # it has not noticed yet that it was told to stop
            return False, "", ""
        if ending.end is not End.OPTIMAL:
            return False, ending.failure(run), ""
        value = ending.objective / model.objective_scale
        if run.objective is None or run.objective < value - model.rounding_error - 1e-9 * abs(value):
            return False, "", ending.doubt
        return claims, "", ""

    def _configure(self, solver: "cp_model.CpSolver", run: Run[Placement]) -> None:
        parameters = solver.parameters
        workers = 1 if run.options.deterministic else self.workers
        parameters.num_workers = workers
        if workers == 1:
            parameters.linearization_level = 2  # without linear relaxations even tiny instances are not proved
        parameters.random_seed = run.seed % 2**31
        parameters.catch_sigint_signal = False  # Ctrl-C is Python's
        parameters.relative_gap_limit = 0.0
        if math.isfinite(run.options.time_limit):
            if run.options.deterministic:  # units of work close to seconds; the clock only ends what overruns
                parameters.max_deterministic_time = run.options.time_limit
            else:
                parameters.max_time_in_seconds = run.remaining


class _Search:
    """One call of CP-SAT: posts solutions and bounds to the calling thread, in the problem's own terms."""

    def __init__(
        self, run: Run[Placement], problem: ExpertCaching, model: CpSatModel, solver: "cp_model.CpSolver", claims: bool
    ) -> None:
        self._run, self._model, self._solver, self._claims = run, model, solver, claims
        self._shape = (problem.num_servers, problem.num_experts)

    def __call__(self, mailbox: Mailbox) -> Ending:
        """Solve in the current thread and return how it ended."""
        cp_model = cp_model_module()

        def solution(callback: Any) -> None:
            self._solution(mailbox, callback.boolean_value)

        solutions = type("Solutions", (cp_model.CpSolverSolutionCallback,), {"on_solution_callback": solution})
        self._solver.best_bound_callback = lambda value: self._bound(mailbox, value)
        status = self._solver.solve(self._model.model, solutions())
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            self._solution(mailbox, self._solver.boolean_value)
            self._bound(mailbox, self._solver.best_objective_bound)
        return self._ending(status)

    def _ending(self, status: Any) -> Ending:
        cp_model, text = cp_model_module(), f"CP-SAT: {self._solver.status_name(status)}"
        if status == cp_model.OPTIMAL:
            return Ending(End.OPTIMAL, text, float(self._solver.objective_value))
        if status in (cp_model.FEASIBLE, cp_model.UNKNOWN):  # stopped, by its own limit of time unless from outside
            return Ending(End.TIME if math.isfinite(self._run.options.time_limit) else End.STOPPED, text)
        if status == cp_model.INFEASIBLE:
            return Ending(End.INFEASIBLE, text)
        return Ending(End.FAILED, f"{text} {self._model.model.validate()}".rstrip())

    def _solution(self, mailbox: Mailbox, value_of: Any) -> None:
        num_x = self._shape[0] * self._shape[1]
        cached = np.fromiter((value_of(x) for x in self._model.variables[:num_x]), bool, num_x)
        placement = Placement(cached.reshape(self._shape))
        mailbox.post(lambda: offer_feasible(self._run, placement))

    def _bound(self, mailbox: Mailbox, value: float) -> None:
        if self._claims:
            bound = max(0.0, value) / self._model.objective_scale + self._model.rounding_error
            mailbox.post(lambda: offer_bound(self._run, bound))
