"""`milp`: the exact mixed-integer linear programme, solved by HiGHS."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.problems.expert_caching.terms import Columns, count_nonzeros
from edgeopt.result import Exact, Guarantee, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.back_ends import highs_module
from edgeopt.solvers.background import Background, Mailbox
from edgeopt.solvers.ending import End, Ending
from edgeopt.solvers.expert_caching.common import supports_expert_caching
from edgeopt.solvers.expert_caching.exact import offer_bound, offer_feasible, offer_start, supports_size
from edgeopt.solvers.expert_caching.facility import storage_units
from edgeopt.solvers.highs import new_highs, run_highs
from edgeopt.stop import Limit

if TYPE_CHECKING:
    import highspy

LARGEST_COST = 100.0  # the objective is scaled so that its largest coefficient is about this
LARGEST_SIZE = 1000.0  # sizes that are not whole storage units are scaled to this
SECONDS_PER_NONZERO = 2e-7  # that building takes at least: with less time left it is not begun
TOLERANCE = 1e-6  # of HiGHS on rows and on the objective, both as scaled


@dataclass(frozen=True, slots=True, eq=False)
class MilpModel:
    r"""Mixed-integer linear programme of an expert-caching problem, in the variables of `Columns`.

    .. math:: \max \sum_t v_t y_t, \quad y_t \le z_{S_t e} \; (e \in R_t), \quad z_{Se} \le \sum_{n \in S} x_{ne},
        \quad \sum_e s_e x_{ne} \le Q_n, \quad x \in \{0, 1\}, \; 0 \le y, z \le 1

    At most N E + (pairs S, e) + T columns and, of nonzeros, N E + the sum over z of its servers + 1, + 2 K per y.

    Parameters
    ----------
    cost, upper : float64 [columns], what is maximised, and upper bounds.
    rows, row_upper : float64 [rows, columns], sparse, and [rows]: at most that.
    columns : what the columns are; the x are whole.
    objective_scale : `cost` is this times the problem's: a power of two.
    """

    cost: NDArray[np.float64]
    upper: NDArray[np.float64]
    rows: sparse.csr_array
    row_upper: NDArray[np.float64]
    columns: Columns
    objective_scale: float

    def arguments(self, *, relaxed: bool = False) -> tuple[Any, ...]:
        """Return the programme, or its linear relaxation, as HiGHS takes it."""
        highspy, (num_rows, num_columns) = highs_module(), self.rows.shape
        whole = 0 if relaxed else self.columns.first_z
        return (
            num_columns, num_rows, self.rows.nnz, highspy.MatrixFormat.kRowwise.value, highspy.ObjSense.kMaximize.value, 0.0,
            self.cost, np.zeros(num_columns), self.upper, np.full(num_rows, -np.inf), self.row_upper,
            self.rows.indptr.astype(np.int32), self.rows.indices.astype(np.int32), self.rows.data,
            (np.arange(num_columns) < whole).astype(np.int32),
        )  # fmt: skip


def build_model(problem: ExpertCaching, check: Callable[[], object] = lambda: None) -> MilpModel:
    """Return the programme of a problem; `check` is called between its parts, and may leave by raising."""
    columns = Columns.of(problem, check)
    cost = columns.cost()
    scale = 2.0 ** round(math.log2(LARGEST_COST / cost.max())) if cost.any() else 1.0
    check()
    links = columns.links()
    check()
    storage, capacity = _storage(problem, columns.num_columns)
    return MilpModel(
        cost=cost * scale,
        upper=_upper(problem, cost, links),
        rows=sparse.csr_array(sparse.vstack([storage, links], format="csr")),
        row_upper=np.append(capacity, np.zeros(links.shape[0])),
        columns=columns,
        objective_scale=scale,
    )


def _upper(problem: ExpertCaching, cost: NDArray[np.float64], links: sparse.csr_array) -> NDArray[np.float64]:
    """Return upper bounds: 0 for each x that saves nothing or does not fit, else 1."""
    upper = np.ones(cost.size)
    fits = (problem.expert_bytes <= problem.storage_limit[:, None]).ravel()
    used = np.bincount(links.indices, minlength=cost.size) + (cost > 0)
    upper[: fits.size] = fits & (used[: fits.size] > 0)
    return upper


def _storage(problem: ExpertCaching, num_columns: int) -> tuple[sparse.csr_array, NDArray[np.float64]]:
    """Return the storage rows, in whole units if those are exact, else scaled to `LARGEST_SIZE`."""
    size, capacity = problem.expert_bytes, problem.storage_limit
    units, capacity_units, exact = storage_units(size, capacity)
    if exact:
        size, capacity = units.astype(np.float64), capacity_units.astype(np.float64)
    else:
        factor = LARGEST_SIZE / size.max()
        size, capacity = size * factor, np.minimum(capacity, size.sum()) * factor
    server, expert = np.divmod(np.arange(capacity.size * size.size), size.size)
    shape = (capacity.size, num_columns)
    return sparse.csr_array((size[expert], (server, np.arange(expert.size))), shape=shape), capacity


@dataclass(frozen=True, slots=True)
class Milp:
    """Branch and bound by HiGHS on the programme of `MilpModel`, for every K and latency.

    Guarantee: exact; exponential time in the worst case. Optimal means within HiGHS's tolerance: 1e-6 where the
    largest coefficient of the objective is 70 to 142, about 1e-8 of it. Bounds are reported with that tolerance
    added. One iteration is one report of HiGHS. Only the time limit depends on the clock; where it is too short to build the
    model, the greedy placement is returned at once.

    Parameters
    ----------
    threads : threads of HiGHS; 1 in deterministic runs.
    greedy_start : start from the greedy placement by value per byte; HiGHS alone can take long to find one as good.
    max_nonzeros : refuse problems whose model may have more nonzeros than this.
    """

    threads: int = 2
    greedy_start: bool = True
    max_nonzeros: int = 20_000_000

    name: ClassVar[str] = "milp"
    guarantee: ClassVar[Guarantee] = Exact("branch and bound, HiGHS")

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise EdgeOptError(f"threads = {self.threads}: expected an integer >= 1")
        if self.max_nonzeros < 1:
            raise EdgeOptError(f"max_nonzeros = {self.max_nonzeros}: expected an integer >= 1")

    def guarantee_for(self, problem: ExpertCaching) -> Guarantee:
        """Return that the optimum is proved, left to finish."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-caching problem whose model is not too large."""
        return supports_expert_caching(problem) or supports_size(problem, self.max_nonzeros)

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Solve by HiGHS."""
        optimal, failure, message = False, "", ""
        with Run[Placement](self, problem, options) as run:
            offer_start(run, problem, greedy=self.greedy_start)
            start, settings = run.solution, self._options(run)

            def build(mailbox: Mailbox) -> "tuple[MilpModel, highspy.Highs]":
                model = build_model(problem, mailbox.check)
                mailbox.check()
                highs = new_highs(model.arguments(), settings, mailbox.check)
                _warm_start(highs, model, start)
                return model, highs

            nonzeros = count_nonzeros(problem)
            if run.remaining < SECONDS_PER_NONZERO * nonzeros and not run.stopped():
                run.limit = Limit.TIME
                message = f"the model may have {nonzeros:,} nonzeros, more than can be put together in the time left"
            with run.building():
                built = None if run.stopped() else Background(run, build).wait()
            if built is not None and not run.stopped():
                optimal, failure, message = self._search(run, *built)
        return run.result(optimal=optimal, error=failure, message=message)

    def _options(self, run: Run[Placement]) -> dict[str, Any]:
        return {
            "threads": 1 if run.options.deterministic else self.threads,
            "random_seed": run.seed % 2**31,
            "mip_rel_gap": 0.0,
            "mip_abs_gap": 0.0,
            "mip_feasibility_tolerance": TOLERANCE,
        }

    def _search(self, run: Run[Placement], model: MilpModel, highs: "highspy.Highs") -> tuple[bool, str, str]:
        """Run HiGHS to its end or a limit; return whether the incumbent is optimal, what failed, and what else to say."""
        if math.isfinite(run.options.time_limit):
            highs.setOptionValue("time_limit", run.remaining)
        search = Background(run, lambda mailbox: run_highs(highs, mailbox, _Reporter(run, model, mailbox)))
        if (ending := search.wait()) is None:  # it has not noticed yet that it was told to stop
            return False, "", ""
        if ending.end is not End.OPTIMAL:
            return False, ending.failure(run), ""
        if _is_proved(run, model, ending):
            return True, "", ""
        return False, "", ending.doubt


def _warm_start(highs: "highspy.Highs", model: MilpModel, start: Placement | None) -> None:
    if start is not None and start.cached.any():
        values = model.columns.values(start.cached).astype(np.float64)
        highs.setSolution(values.size, np.arange(values.size, dtype=np.int32), values)


class _Reporter:
    """Posts what HiGHS finds to the calling thread, in the problem's own terms."""

    def __init__(self, run: Run[Placement], model: MilpModel, mailbox: Mailbox) -> None:
        self._run, self._model, self._mailbox = run, model, mailbox
        self._last = math.inf

    def bound(self, value: float) -> None:
        """Post a bound that has become better."""
        if math.isfinite(value) and value < self._last:
            self._last = value
            bound = max(0.0, value + TOLERANCE) / self._model.objective_scale
            self._mailbox.post(lambda: offer_bound(self._run, bound))

    def solution(self, columns: Any) -> None:
        """Post a solution."""
        values = np.array(columns, np.float64)
        num_servers, num_experts = self._run.problem.num_servers, self._run.problem.num_experts  # type: ignore[attr-defined]
        if values.size < num_servers * num_experts:
            return
        placement = Placement(values[: num_servers * num_experts].reshape(num_servers, num_experts) > 0.5)
        self._mailbox.post(lambda: offer_feasible(self._run, placement))


def _is_proved(run: Run[Placement], model: MilpModel, ending: Ending) -> bool:
    """Whether the incumbent is worth what HiGHS says its optimum is worth, up to the tolerance."""
    value = ending.objective / model.objective_scale
    slack = 10 * TOLERANCE / model.objective_scale + 1e-9 * abs(value)
    return run.objective is not None and run.objective >= value - slack
