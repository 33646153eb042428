"""`milp`: the exact mixed-integer programme by tangents, solved by HiGHS. It knows nothing of SLIDE's structure."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError, SolverError
from edgeopt.problem import Problem
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.result import Exact, Guarantee, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.background import Background, Mailbox
from edgeopt.solvers.ending import End, Ending
from edgeopt.solvers.highs import end_of_run, new_highs, own_scheduler, run_highs
from edgeopt.solvers.model_download.common import refusal_message
from edgeopt.solvers.model_download.download_then_infer import offer_something
from edgeopt.solvers.model_download.milp_model import DownloadModel
from edgeopt.stop import Limit

if TYPE_CHECKING:
    import highspy

LARGEST_COST = 100.0  # the objective is scaled so that its largest coefficient is about this
TOLERANCE = 1e-9  # of HiGHS on rows and integers
MARGIN = 1e-6  # of HiGHS on the objective, as scaled
VIOLATED = 1e-8  # relative: what HiGHS may take for satisfied
CHANGED = 1e-11  # relative: smaller changes of the least bandwidth are none
ROUNDS = 60  # of tangents for the pairs alone: about twenty are usual

Floats = NDArray[np.float64]
Served = dict[int, tuple[float, Floats]]


@dataclass(frozen=True, slots=True)
class Milp:
    """Outer approximation and branch and bound by HiGHS on the programme of `DownloadModel`, for every variant.

    First tangents are added where each user with each model alone, by linear programming, needs least bandwidth, until
    that changes no more. Then branch and bound chooses; its choice is turned into a plan, which the problem itself must
    accept. If it does not, tangents are added where the chosen levels need more bandwidth; if there are none to add, the
    choice is forbidden, and its value kept as a bound.

    Guarantee: exact; exponential time in the worst case. Optimal means within ten times HiGHS's tolerance of 1e-6 where the largest
    value is 70 to 142, about 1e-7 of it, and 1e-9 of the objective. A choice that needs all the bandwidth, deadline or energy to a relative 1e-8 may be
    neither found nor excluded: the bound then says so. One iteration is one report of HiGHS.

    Parameters
    ----------
    threads : threads of HiGHS; 1 in deterministic runs.
    max_nonzeros : refuse problems whose model may have more nonzeros than this.
    """

    threads: int = 2
    max_nonzeros: int = 5_000_000

    name: ClassVar[str] = "milp"
    guarantee: ClassVar[Guarantee] = Exact("outer approximation and branch and bound, HiGHS")

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise EdgeOptError(f"threads = {self.threads}: expected an integer >= 1")
        if self.max_nonzeros < 1:
            raise EdgeOptError(f"max_nonzeros = {self.max_nonzeros}: expected an integer >= 1")

    def guarantee_for(self, problem: ModelDownload) -> Guarantee:
        """Return that the optimum is proved, left to finish."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every model-download problem whose model is not too large."""
        if not isinstance(problem, ModelDownload):
            return f"expected a model-download problem, got {problem.kind}"
        if (nonzeros := count_nonzeros(problem)) > self.max_nonzeros:
            return f"the model may have {nonzeros:,} nonzeros, expected at most max_nonzeros = {self.max_nonzeros:,}"
        return None

    def solve(self, problem: ModelDownload, options: SolveOptions) -> Result[Any]:
        """Solve by HiGHS."""
        optimal, failure = False, ""
        with Run[DownloadPlan](self, problem, options) as run:
            run.offer(DownloadPlan.refuse_all(problem.num_users))
            run.tighten(float(np.where(problem.allowed, problem.value, 0.0).max(axis=1).sum()))
            building = Background(run, lambda mailbox: DownloadModel(problem, mailbox.check))
            with run.building():
                model = None if run.stopped() else building.wait()
            if model is not None:
                optimal, failure = _Search(self, run, model).run_all() if model.pairs else (True, "")
            offer_something(run, problem)
        return run.result(optimal=optimal, error=failure, message=refusal_message(run, problem))


def count_nonzeros(problem: ModelDownload) -> int:
    """Return about how many nonzeros the model has before tangents are added where they are needed."""
    per_layer = 50 if problem.frequency_levels is None else 10 + 4 * problem.frequency_levels.size
    layers = problem.allowed @ problem.num_layers
    limited = np.isfinite(problem.energy_j)
    return int((layers * np.where(limited, per_layer, 2)).sum() + 40 * problem.allowed.sum())


class _Search:
    """One solve: the pairs alone, then the choice among them."""

    def __init__(self, solver: Milp, run: Run[DownloadPlan], model: DownloadModel) -> None:
        self._run, self._model = run, model
        self._options: dict[str, Any] = {
            "threads": 1 if run.options.deterministic else solver.threads,
            "random_seed": run.seed % 2**31,
            "primal_feasibility_tolerance": TOLERANCE,
            "dual_feasibility_tolerance": TOLERANCE,
        }
        self._served: Served = {}
        self._is_settled = run.problem.frequency_levels is None  # type: ignore[attr-defined]
        self._undecided = -math.inf
        self._scale = 2.0 ** round(math.log2(LARGEST_COST / model.value.max()))

    def run_all(self) -> tuple[bool, str]:
        """Return whether the incumbent is optimal, and what failed."""
        if Background(self._run, self._prepare).wait() is None:
            self._run.limit = self._run.limit or Limit.TIME  # HiGHS has a clock of its own
            return False, ""
        while not self._run.stopped():
            ended = Background(self._run, self._choose).wait()
            if ended is None:  # it has not noticed yet that it was told to stop
                return False, ""
            highs, ending = ended
            if ending.end is not End.OPTIMAL:
                return False, ending.failure(self._run)
            value = ending.objective / self._scale
            if self._reaches(value):
                return self._reaches(self._undecided), ""
            found = np.array(highs.getSolution().col_value)
            if self._is_settled or not self._model.cut_choice(found, VIOLATED):
                self._undecided = max(self._undecided, value)
                self._model.forbid(found, self._serve_all(found))
        return False, ""

    def _prepare(self, mailbox: Mailbox) -> bool | None:
        """Find out what the pairs need alone, and join them; return None if there was no time to."""
        if (values := self._pairs_alone(mailbox)) is None:
            return None
        self._close(values, mailbox)
        self._model.join(mailbox.check)
        return True

    def _choose(self, mailbox: Mailbox) -> "tuple[highspy.Highs, Ending]":
        """Run HiGHS on the choice among all pairs, and return it with how it ended."""
        highs = new_highs(self._model.together(self._scale), self._options | self._mip_options())
        return highs, run_highs(highs, mailbox, _Reporter(self, mailbox))

    def _mip_options(self) -> dict[str, Any]:
        return {"mip_rel_gap": 0.0, "mip_abs_gap": 0.0, "mip_feasibility_tolerance": TOLERANCE} | self._time_limit()

    def _time_limit(self) -> dict[str, Any]:
        return {"time_limit": self._run.remaining} if math.isfinite(self._run.options.time_limit) else {}

    def _reaches(self, value: float) -> bool:
        """Whether the incumbent is worth so much, up to the tolerance of HiGHS."""
        objective = self._run.objective
        return objective is not None and objective >= value - 10 * MARGIN / self._scale - 1e-9 * abs(value)

    def _pairs_alone(self, mailbox: Mailbox) -> Floats | None:
        """Add tangents where every pair alone needs least bandwidth; return that point, None if there was no time to."""
        model = self._model
        highs = new_highs(model.alone(), self._options | self._time_limit())
        highs.cbSimplexInterrupt.subscribe(lambda event: event.interrupt() if mailbox.stopping else None)
        values = np.zeros(model.num_columns)
        with own_scheduler():
            for _ in range(ROUNDS):
                ending = end_of_run(highs)
                if mailbox.stopping or ending.end is End.TIME:
                    return None
                if ending.end is not End.OPTIMAL:
                    raise SolverError(ending.message)
                last, values, start = values, np.array(highs.getSolution().col_value), model.num_blocks
                if not model.cut(values) or np.allclose(values[model.x + 1], last[model.x + 1], rtol=CHANGED, atol=0.0):
                    break
                rows, lower, upper = model.rows(start)
                highs.addRows(lower.size, lower, upper, rows.nnz, rows.indptr[:-1], rows.indices, rows.data)
        return values

    def _close(self, values: Floats, mailbox: Mailbox) -> None:
        """Close the pairs that need more than there is; keep how the others are served, where it is settled."""
        model = self._model
        needed = values[model.x + 1] * model.hz
        model.is_open = (values[model.x] > 0.5) & (needed <= model.limit_hz * (1 + TOLERANCE))
        for index in np.flatnonzero(model.is_open).tolist() if self._is_settled else []:
            mailbox.check()
            if (how := model.serve(index, values)) is not None:
                self._served[index] = how
        best = np.zeros(self._run.problem.num_users)  # type: ignore[attr-defined]
        np.maximum.at(best, model.user[model.is_open], model.value[model.is_open])
        mailbox.post(lambda: self._run.tighten(float(best.sum())))

    def _serve_all(self, values: Floats) -> Served:
        """Return how the pairs chosen at a point are served, those that can be."""
        chosen = np.flatnonzero(values[self._model.x] > 0.5).tolist()
        if self._is_settled:
            return {index: self._served[index] for index in chosen if index in self._served}
        found = {index: self._model.serve(index, values) for index in chosen}
        return {index: how for index, how in found.items() if how is not None}

    def offer(self, values: Floats) -> None:
        """Offer the plan of a point, of the pairs that can be served, if the problem accepts it; one iteration."""
        plan = self._model.plan(self._serve_all(values))
        if self._run.problem.is_feasible(plan):
            self._run.offer(plan)
        self._run.step()

    def bound(self, value: float) -> None:
        """Report a bound of HiGHS; one iteration."""
        self._run.tighten(max((value + MARGIN) / self._scale, self._undecided, 0.0))
        self._run.step()


class _Reporter:
    """Posts what HiGHS finds to the calling thread."""

    def __init__(self, search: _Search, mailbox: Mailbox) -> None:
        self._search, self._mailbox = search, mailbox
        self._last = math.inf

    def bound(self, value: float) -> None:
        """Post a bound that has become better."""
        if math.isfinite(value) and value < self._last:
            self._last = value
            self._mailbox.post(lambda: self._search.bound(value))

    def solution(self, columns: Any) -> None:
        """Post a solution."""
        if (values := np.array(columns, np.float64)).size:
            self._mailbox.post(lambda: self._search.offer(values))
