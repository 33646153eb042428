"""`milp`: the exact mixed-integer linear programme of each layer, solved by HiGHS."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import ExpertBalancing, Replicas
from edgeopt.result import Exact, Guarantee, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.back_ends import highs_module
from edgeopt.solvers.background import Background, Mailbox
from edgeopt.solvers.ending import End
from edgeopt.solvers.expert_balancing.common import Ints, laid_out, layer_value, supports_expert_balancing
from edgeopt.solvers.expert_balancing.local_search import improve
from edgeopt.solvers.highs import new_highs, run_highs

TOLERANCE = 1e-7  # of HiGHS on rows
LARGEST = 100.0  # the bound of a layer is scaled to this
MARGIN = 1e-6  # of HiGHS on the objective, as scaled
TINY = 1e-10  # cost of a move that is none, as scaled: of thousands of moves it is below the margin


class LayerModel:
    r"""The programme of one layer: how many replicas each expert has is a choice among options.

    .. math:: \min T + c \sum_{d, e} m_{de}, \quad \sum_r y_{er} = 1, \quad \sum_d x_{der} = r \, y_{er}, \quad
        \sum_{e, r} x_{der} \le S_d, \quad \sum_{e, r} \frac{w_e}{r} x_{der} \le T, \quad
        \sum_r \frac{w_e}{r} y_{er} \le T, \quad m_{de} \ge \sum_r x_{der} - x^0_{de}

    with y binary and x whole; with groups, a binary q for each group of experts and of devices, and
    :math:`\sum_r x_{der} \le S_d q`. Devices that differ in nothing have their loads in order. A move
    costs twice the load of all experts at most, where there is any: then no load is worth a move, whatever more it costs.
    """

    def __init__(self, problem: ExpertBalancing, layer: int) -> None:
        self.problem, self.present = problem, problem.present_counts()[layer]
        p = problem
        bound, total = float(problem.layer_bounds()[layer]), float(problem.load[layer].sum())
        self.move_cost = min(p.move_cost, 2 * total) if total > 0 else p.move_cost
        self.scale = LARGEST / (bound or self.move_cost or LARGEST)
        self.load = problem.load[layer] * self.scale
        self.options = self._options()
        self.expert = np.repeat(np.arange(problem.num_experts), self.options)
        self.count = np.concatenate([np.arange(1, n + 1) for n in self.options])
        self.y, self.x = 0, self.expert.size  # first columns
        devices = problem.num_devices
        self.q = self.x + devices * self.expert.size
        groups = np.unique(p.expert_group).size * np.unique(p.device_group).size
        self.m = self.q + (groups if p.is_grouped else 0)
        self.top = self.m + (devices * p.num_experts if p.move_cost > 0 else 0)
        self.num_columns = self.top + 1
        self.is_ordered = p.move_cost == 0 and not p.is_grouped
        self.order = np.argsort(p.slots, kind="stable")  # alike devices beside each other
        self._rows: list[tuple[Any, Any, Any]] = []
        self._limits: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self._add_all()

    def lp(self) -> Any:
        """Return the programme as HiGHS takes it."""
        highspy, p = highs_module(), self.problem
        offset, rows = 0, []
        for row, column, value in self._rows:
            rows.append((row + offset, column, value))
            offset += int(row.max()) + 1
        row, column, value = (np.concatenate(some) for some in zip(*rows, strict=True))
        matrix = sparse.csr_array((value, (row, column)), shape=(offset, self.num_columns))
        lp = highspy.HighsLp()
        lp.num_row_, lp.num_col_ = matrix.shape
        cost = np.zeros(self.num_columns)
        cost[self.top] = 1.0
        if self.move_cost * self.scale > TINY:  # HiGHS goes astray with less
            cost[self.m : self.top] = self.move_cost * self.scale
        upper = np.ones(self.num_columns)
        upper[self.x : self.q] = np.minimum(self.count, p.slots[:, None]).ravel()
        upper[self.m : self.top], upper[self.top] = np.inf, np.inf
        lower = np.zeros(self.num_columns)
        lower[self.top] = min(LARGEST - MARGIN, float(self.load.sum()))  # nearer, HiGHS may find nothing
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, lower, upper
        lp.row_lower_ = np.concatenate([low for low, _ in self._limits])
        lp.row_upper_ = np.concatenate([high for _, high in self._limits])
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.num_row_, lp.a_matrix_.num_col_ = matrix.shape
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        kinds = highspy.HighsVarType
        lp.integrality_ = [kinds.kInteger] * self.m + [kinds.kContinuous] * (self.num_columns - self.m)
        return lp

    def counts(self, values: NDArray[np.float64]) -> Ints:
        """Return int64 [D, E], the replicas of a point."""
        x = np.round(values[self.x : self.q]).astype(np.int64).reshape(self.problem.num_devices, -1)
        return np.add.reduceat(x, np.cumsum(self.options) - self.options, axis=1)

    def values(self, counts: Ints) -> NDArray[np.float64]:
        """Return the point of replicas [D, E], to start from."""
        found, p = np.zeros(self.num_columns), self.problem
        replicas = counts.sum(axis=0)
        if self.is_ordered:  # within each number of slots, the most loaded device first
            device_load = (counts * (self.load / replicas)).sum(axis=1)
            counts = counts[np.lexsort((-device_load, p.slots))][np.argsort(self.order)]
        column = np.cumsum(self.options) - self.options + replicas - 1  # of each expert's y
        found[column] = 1.0
        for device, row in enumerate(counts):
            found[self.x + device * self.expert.size + column] = row
        if p.is_grouped:
            kinds, nodes = np.unique(p.expert_group), np.unique(p.device_group)
            for i, group in enumerate(kinds.tolist()):
                node = p.device_group[np.flatnonzero(counts[:, p.expert_group == group].any(axis=1))[0]]
                found[self.q + i * nodes.size + np.searchsorted(nodes, node)] = 1.0
        found[self.m : self.top] = np.maximum(counts - self.present, 0).ravel()[: self.top - self.m]
        found[self.top] = (counts * (self.load / replicas)).sum(axis=1).max()
        return found

    def _options(self) -> Ints:
        """Return int64 [E]: the most replicas that an expert can have, beside one of each that shares its devices."""
        p = self.problem
        if not p.is_grouped:
            return np.full(p.num_experts, int(p.slots.sum()) - p.num_experts + 1, np.int64)
        room = int(np.bincount(p.device_group, p.slots).max())
        return room - np.bincount(p.expert_group)[p.expert_group] + 1

    def _add(self, row: Any, column: Any, value: Any, low: Any, high: Any) -> None:
        """Add rows by their entries, numbered from 0, and their limits, one for each row or one for all."""
        entries = np.broadcast_arrays(row, column, np.asarray(value, np.float64))
        self._rows.append(tuple(entry.ravel() for entry in entries))  # type: ignore[arg-type]
        count = int(entries[0].max()) + 1
        self._limits.append((np.broadcast_to(low, count).astype(float), np.broadcast_to(high, count).astype(float)))

    def _add_all(self) -> None:
        p, n = self.problem, self.expert.size
        device, option = np.divmod(np.arange(p.num_devices * n), n)
        x, share = self.x + np.arange(device.size), (self.load[self.expert] / self.count)[option]
        self._add(self.expert, np.arange(n), 1.0, 1.0, 1.0)  # one option each
        self._add(
            np.append(option, np.arange(n)),
            np.append(x, np.arange(n)),
            np.append(np.ones(x.size), -self.count),
            0.0,
            0.0,
        )
        self._add(device, x, 1.0, -np.inf, p.slots)
        tops = np.full(p.num_devices, self.top)
        self._add(
            np.append(device, np.arange(p.num_devices)), np.append(x, tops), np.append(share, -np.ones(p.num_devices)),
            -np.inf, 0.0,
        )  # fmt: skip
        experts = np.arange(p.num_experts)
        self._add(
            np.append(self.expert, experts), np.append(np.arange(n), np.full(experts.size, self.top)),
            np.append(self.load[self.expert] / self.count, -np.ones(experts.size)), -np.inf, 0.0,
        )  # fmt: skip
        pair = device * p.num_experts + self.expert[option]
        pairs = np.arange(p.num_devices * p.num_experts)
        if p.is_grouped:
            kind = np.unique(p.expert_group, return_inverse=True)[1]
            nodes, node = np.unique(p.device_group, return_inverse=True)
            q = self.q + kind[pairs % p.num_experts] * nodes.size + node[pairs // p.num_experts]
            room = p.slots[pairs // p.num_experts]
            self._add(np.append(pair, pairs), np.append(x, q), np.append(np.ones(x.size), -room), -np.inf, 0.0)
            which = np.arange(np.unique(kind).size * nodes.size)
            self._add(which // nodes.size, self.q + which, 1.0, 1.0, 1.0)
        if p.move_cost > 0:
            self._add(
                np.append(pair, pairs), np.append(x, self.m + pairs), np.append(np.ones(x.size), -np.ones(pairs.size)),
                -np.inf, self.present.ravel(),
            )  # fmt: skip
        if self.is_ordered:
            for first, second in zip(self.order[:-1].tolist(), self.order[1:].tolist(), strict=True):
                if p.slots[first] == p.slots[second]:
                    entries = np.append(np.flatnonzero(device == second), np.flatnonzero(device == first))
                    sign = np.repeat([1.0, -1.0], n)
                    self._add(np.zeros(2 * n, int), x[entries], sign * share[entries], -np.inf, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Milp:
    """Branch and bound by HiGHS on the programme of each layer, one after another, from where `local-search` ends.

    Guarantee: exact; exponential time in the worst case, for ten experts on as many devices seconds to minutes. Optimal
    means within HiGHS's tolerance, about 1e-7 of a layer's bound. Bounds are reported with that tolerance. One iteration is
    one report of HiGHS. Only the time limit depends on the clock.

    Parameters
    ----------
    threads : threads of HiGHS; 1 in deterministic runs.
    kicks : of the local search before.
    max_columns : refuse problems whose layers' programmes would have more columns than this.
    """

    threads: int = 2
    kicks: int = 20
    max_columns: int = 200_000

    name: ClassVar[str] = "milp"
    guarantee: ClassVar[Guarantee] = Exact("branch and bound, HiGHS")

    def __post_init__(self) -> None:
        for name, low in (("threads", 1), ("kicks", 0), ("max_columns", 1)):
            if getattr(self, name) < low:
                raise EdgeOptError(f"{name} = {getattr(self, name)}: expected an integer >= {low}")

    def guarantee_for(self, problem: ExpertBalancing) -> Guarantee:
        """Return that the optimum is proved, left to finish."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-balancing problem whose programme is not too large."""
        if (reason := supports_expert_balancing(problem)) is not None:
            return reason
        assert isinstance(problem, ExpertBalancing)
        options = int(problem.slots.sum()) - problem.num_experts + 1
        columns = (problem.num_devices + 1) * problem.num_experts * options
        if columns > self.max_columns:
            return f"a layer may have {columns:,} columns, expected at most max_columns = {self.max_columns:,}"
        return None

    def solve(self, problem: ExpertBalancing, options: SolveOptions) -> Result[Any]:
        """Solve by HiGHS."""
        optimal, infeasible, failure = False, False, ""
        with Run[Replicas](self, problem, options) as run:
            run.tighten(problem.lower_bound)
            improve(run, problem, self.kicks)
            if not run.stopped():
                search = _Search(self, run, problem)
                optimal, infeasible, failure = search.run_all()
        return run.result(optimal=optimal, infeasible=infeasible, error=failure)


class _Search:
    """One solve: a programme for each layer, one after another."""

    def __init__(self, solver: Milp, run: Run[Replicas], problem: ExpertBalancing) -> None:
        self._run, self._problem = run, problem
        self._settings: dict[str, Any] = {
            "threads": 1 if run.options.deterministic else solver.threads,
            "random_seed": run.seed % 2**31,
            "mip_rel_gap": 0.0,
            "mip_abs_gap": 2 * MARGIN,
            "mip_feasibility_tolerance": TOLERANCE,
        }
        self._bounds = problem.layer_bounds()
        self._present = problem.present_counts()
        self._counts: list[Ints | None] = [None] * problem.num_layers
        if run.solution is not None:
            self._counts = list(run.solution.counts(problem.num_experts))

    def run_all(self) -> tuple[bool, bool, str]:
        """Return whether the incumbent is optimal, whether there is none, and what failed."""
        claimed = 0.0
        for layer in range(self._problem.num_layers):
            found = Background(self._run, lambda mailbox, layer=layer: self._solve_layer(mailbox, layer)).wait()  # type: ignore[misc]
            if found is None:  # it has not noticed yet that it was told to stop
                return False, False, ""
            ending, model = found
            if ending.end is End.INFEASIBLE:
                return False, self._run.solution is None, "" if self._run.solution is None else ending.message
            if ending.end is not End.OPTIMAL:
                return False, False, ending.failure(self._run)
            claimed += (ending.objective + 10 * MARGIN) / model.scale + self._cut_off(model, layer)
        is_proved = self._run.objective is not None and self._run.objective <= claimed * (1 + 1e-9)
        return is_proved, False, ""

    def _solve_layer(self, mailbox: Mailbox, layer: int) -> Any:
        """Run HiGHS on a layer; return how it ended, and the scale of its objective. In HiGHS's thread."""
        model = LayerModel(self._problem, layer)
        highs = new_highs(model.lp(), self._settings)
        if math.isfinite(self._run.options.time_limit):
            highs.setOptionValue("time_limit", self._run.remaining)
        if (start := self._counts[layer]) is not None:
            solution = highs_module().HighsSolution()
            solution.col_value = model.values(start).tolist()
            highs.setSolution(solution)
        return run_highs(highs, mailbox, _Reporter(self, model, layer, mailbox)), model

    def _cut_off(self, model: LayerModel, layer: int) -> float:
        """Return what the moves of the incumbent cost, of which there are as few as can be, beyond what the programme says."""
        counts = self._counts[layer]
        if counts is None or self._problem.move_cost <= model.move_cost:
            return 0.0
        return (self._problem.move_cost - model.move_cost) * int(np.maximum(counts - self._present[layer], 0).sum())

    def bound(self, layer: int, value: float) -> None:
        """Take over the bound of a layer; one iteration."""
        self._bounds[layer] = max(self._bounds[layer], value)
        self._run.tighten(math.fsum(self._bounds))
        self._run.step()

    def solution(self, layer: int, counts: Ints) -> None:
        """Take over the placement of a layer where it makes the whole better; one iteration."""
        before, fits = self._counts[layer], bool((counts.sum(axis=1) <= self._problem.slots).all())
        if fits and (before is None or self._value(layer, counts) < self._value(layer, before)):
            self._counts[layer] = counts
            if all(some is not None for some in self._counts):
                width = int(self._problem.slots.max())
                placed = Replicas(np.stack([laid_out(some, width) for some in self._counts if some is not None]))
                if self._problem.is_feasible(placed):
                    self._run.offer(placed)
        self._run.step()

    def _value(self, layer: int, counts: Ints) -> float:
        return layer_value(self._problem, layer, counts, self._present[layer])


class _Reporter:
    """Posts what HiGHS finds of a layer to the calling thread, in the problem's own terms."""

    def __init__(self, search: _Search, model: LayerModel, layer: int, mailbox: Mailbox) -> None:
        self._search, self._model, self._layer, self._mailbox = search, model, layer, mailbox
        self._last = -math.inf

    def bound(self, value: float) -> None:
        """Post a bound that has become better."""
        if math.isfinite(value) and value > self._last:
            self._last = value
            bound = (value - MARGIN) / self._model.scale
            self._mailbox.post(lambda: self._search.bound(self._layer, bound))

    def solution(self, columns: Any) -> None:
        """Post a solution."""
        values = np.array(columns, np.float64)
        if values.size == self._model.num_columns:
            counts = self._model.counts(values)
            self._mailbox.post(lambda: self._search.solution(self._layer, counts))
