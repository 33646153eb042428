"""Exact finish of a Lagrangian relaxation: branch and bound by HiGHS over the columns that can still matter."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from edgeopt.problems import Placement
from edgeopt.solve import Run
from edgeopt.solvers.back_ends import highs_module
from edgeopt.solvers.background import Background, Mailbox
from edgeopt.solvers.ending import End
from edgeopt.solvers.expert_caching.exact import offer_feasible
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.pricing import NearColumns, Prices
from edgeopt.solvers.expert_caching.successive import respond
from edgeopt.solvers.highs import new_highs, run_highs
from edgeopt.solvers.kernels.subsets import cached_to_masks, masks_to_cached

if TYPE_CHECKING:
    import highspy

MAX_SIZES = 16  # distinct sizes up to which a server's experts are counted per size
TOLERANCE = 1e-6  # of HiGHS on its scaled objective
DETERMINISTIC_NODES = 1000  # of branch and bound when the clock must not matter
SCALE = 1000.0  # what the gap to close is scaled to
ROUGH = 5.0  # on that scale: near enough to the best of some columns
SUB_PROGRAMMES = tuple(f"mip_heuristic_run_{name}" for name in ("rens", "rins", "root_reduced_cost"))


@dataclass(frozen=True, slots=True, eq=False)
class Finish:
    r"""Minimise what a placement falls short of the bound, over columns c with loss l and counts k per server and size.

    .. math:: \min \sum_c l_c y_c + \sum_n \lambda_n (Q_n - \sum_g s_g k_{ng}), \quad \sum_{c \in e} y_c = 1, \quad
        \sum_{c \ni n, e \in g} y_c = k_{ng}, \quad \sum_g s_g k_{ng} \le Q_n, \quad y, k \text{ integer}

    A placement better than the incumbent uses only columns whose loss is below the gap, so this is exact. The counts
    say nothing new, but branching on them is what makes it tractable (ours): once the counts are fixed the rest is
    nearly integral.
    """

    facility: Facility
    prices: Prices
    columns: NearColumns
    loss: NDArray[np.float64]

    @classmethod
    def of(cls, facility: Facility, prices: Prices, columns: NearColumns) -> "Finish":
        """Return the finish from a dual point and the columns near it."""
        loss = columns.losses(facility.size, prices)
        return cls(facility, prices, columns, np.maximum(loss, 0.0))

    def solve(
        self, run: Run[Placement], allowed: float, seconds: float, *, exact: bool = True, threads: int = 2
    ) -> tuple[bool, str]:
        """Search for at most so many seconds (deterministic runs: nodes); return whether the incumbent is proved optimal.

        Also return a sentence on what came in between, empty if nothing did.

        `allowed` is the gap between the bound of these prices and the incumbent. With ``exact=False`` the columns are only
        some of those within it: better placements are offered, and nothing is proved. Only the counts are whole then: columns are
        nearly always whole with them, and are rounded and repaired where they are not.
        """
        with run.building():
            scale = SCALE / allowed
            lp, constant = self._model(scale, whole_columns=exact)
            fixed = run.options.deterministic
            options: dict[str, Any] = {
                "threads": 1 if fixed or not exact else threads,
                "random_seed": run.seed % 2**31,
                "mip_rel_gap": 0.0,
                "mip_abs_gap": 2 * TOLERANCE if exact else ROUGH,
                "time_limit": run.remaining if fixed else min(seconds, run.remaining),
            }
            if not exact:  # programmes over parts of the columns take half of the time, and find no more
                options |= dict.fromkeys(SUB_PROGRAMMES, False)
            if fixed:
                options["mip_max_nodes"] = DETERMINISTIC_NODES
            highs = new_highs(lp, options)
            self._start(run, highs)
        reporter = _Reporter(run, self, scale, constant, exact)
        ending = Background(run, lambda mailbox: run_highs(highs, mailbox, reporter.at(mailbox))).wait()
        if ending is None or not exact:
            return False, ""
        if ending.end is End.INFEASIBLE:  # no choice of columns fits: nothing beats the incumbent
            return True, ""
        if ending.end is not End.OPTIMAL:
            return False, ending.message if ending.end is End.FAILED else ""
        # HiGHS may call a placement optimal that the problem refuses by a hair: then nothing is proved
        short = ending.objective / scale + constant
        slack = 1e-6 * allowed + 1e-9 * abs(self.prices.bound)
        if (run.objective or 0.0) >= self.prices.bound - short - slack:
            return True, ""
        return False, ending.doubt

    @property
    def groups(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Distinct sizes [G], and the group [E] of every expert; one group per expert if there are too many sizes."""
        sizes, group = np.unique(self.facility.size, return_inverse=True)
        if sizes.size > MAX_SIZES:
            return np.array(self.facility.size), np.arange(self.facility.num_experts)
        return sizes, group.astype(np.int64)

    def _model(self, scale: float, *, whole_columns: bool) -> tuple["highspy.HighsLp", float]:
        """Return the programme, and the constant of its objective."""
        facility, columns = self.facility, self.columns
        sizes, group = self.groups
        num_columns, num_servers, num_groups = columns.mask.size, facility.num_servers, sizes.size
        expert = columns.expert
        used, server = np.nonzero((columns.mask[:, None] >> np.arange(num_servers)) & 1)
        counts = num_columns + np.arange(num_servers * num_groups)
        count_row = facility.num_experts + np.arange(counts.size)
        store_row = facility.num_experts + counts.size + np.repeat(np.arange(num_servers), num_groups)
        rows = np.concatenate([
            expert, facility.num_experts + server * num_groups + group[expert[used]], count_row, store_row
        ])  # fmt: skip
        places = np.concatenate([np.arange(num_columns), used, counts, counts])
        entries = np.concatenate([
            np.ones(num_columns + used.size), -np.ones(counts.size), np.tile(sizes, num_servers)
        ])  # fmt: skip
        num_rows = facility.num_experts + counts.size + num_servers
        matrix = sparse.csr_array((entries, (rows, places)), shape=(num_rows, num_columns + counts.size))
        highspy = highs_module()
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = num_columns + counts.size, num_rows
        lp.col_cost_ = scale * np.append(self.loss, -np.outer(self.prices.price, sizes).ravel())
        lp.col_lower_ = np.zeros(lp.num_col_)
        lp.col_upper_ = np.append(np.ones(num_columns), np.tile(np.bincount(group), num_servers).astype(float))
        exactly = np.append(np.ones(facility.num_experts), np.zeros(counts.size))
        lp.row_lower_ = np.append(exactly, np.full(num_servers, -np.inf))
        lp.row_upper_ = np.append(exactly, facility.capacity)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.num_row_, lp.a_matrix_.num_col_ = num_rows, lp.num_col_
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        whole, real = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
        lp.integrality_ = [whole if whole_columns else real] * num_columns + [whole] * counts.size
        return lp, float(self.prices.price @ facility.capacity)

    def _start(self, run: Run[Placement], highs: "highspy.Highs") -> None:
        """Give HiGHS the incumbent, if all its columns are listed."""
        assert run.solution is not None
        mask = cached_to_masks(run.solution.cached)
        chosen = self.columns.mask == mask[self.columns.expert]
        if chosen.sum() == mask.size:
            sizes, group = self.groups
            counts = np.array([np.bincount(group[row], minlength=sizes.size) for row in run.solution.cached])
            solution = highs_module().HighsSolution()
            solution.col_value = np.append(chosen.astype(float), counts.ravel().astype(float)).tolist()
            highs.setSolution(solution)


class _Reporter:
    """Posts what HiGHS finds to the calling thread, in the problem's own terms."""

    def __init__(self, run: Run[Placement], finish: Finish, scale: float, constant: float, exact: bool) -> None:
        self._run, self._finish, self._scale, self._constant = run, finish, scale, constant
        self._exact = exact
        self._last = -math.inf
        self._mailbox = Mailbox()

    def at(self, mailbox: Mailbox) -> "_Reporter":
        """Post to this mailbox."""
        self._mailbox = mailbox
        return self

    def bound(self, value: float) -> None:
        """Post a lower bound on what the best column choice falls short."""
        if self._exact and math.isfinite(value) and value > self._last:
            self._last = value
            short = (value - 2 * TOLERANCE) / self._scale + self._constant
            self._mailbox.post(lambda: self._tighten(self._finish.prices.bound - short))

    def solution(self, values: Any) -> None:
        """Post a solution."""
        columns, facility = self._finish.columns, self._finish.facility
        chosen = np.array(values, np.float64)[: columns.mask.size]
        most = np.lexsort((-chosen, columns.expert))[columns.first[:-1]]  # each expert's column of the largest share
        if self._exact and chosen[most].min() <= 0.5:
            return
        cached = masks_to_cached(columns.mask[most], facility.num_servers)
        if chosen[most].min() > 0.5:
            self._mailbox.post(lambda: offer_feasible(self._run, Placement(cached)))
        else:
            self._mailbox.post(lambda: self._repair(cached))

    def _repair(self, cached: NDArray[np.bool_]) -> None:
        """Bring a rounded placement within all storages, and offer it."""
        respond(self._run, self._finish.facility, cached, range(cached.shape[0]))
        offer_feasible(self._run, Placement(cached))

    def _tighten(self, bound: float) -> None:
        """Report the bound: the optimum is within it, or the incumbent is optimal."""
        self._run.tighten(max(bound, self._run.objective or 0.0))
        self._run.step()
