"""`exact`: the global optimum of batch sizes, cuts and interval, proved by branch and bound over the stage times."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeopt.problem import Problem
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Exact, Guarantee, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.split_training.common import (
    Costs,
    arrays_of,
    finish,
    offer_feasible,
    plan_of,
    safest,
    supports_split_training,
)
from edgeopt.solvers.split_training.hasfl import Hasfl

if TYPE_CHECKING:
    from edgeopt.solvers.kernels.split_tables import Tables

GAPS = (0.3, 0.1, 0.02, 1e-10)  # proved one after another; the last one counts as optimal
BOXES = 1e-11  # relative: how far stage times may be outside their box, and bounds below the value they stand for
ROUNDING = 2.0**-52  # of a sum, relative to the sum of sizes, per term
NODES = 64  # per iteration
OPTIMAL = 1e-9  # relative: the largest gap that counts as none
ROUNDED = "searched to the end; the gap left is the rounding of Den, which is small against the target"


@dataclass(frozen=True, slots=True)
class BranchAndBound:
    r"""Prove, gap by gap, that no plan takes less than (1 - gap) times the incumbent. Ours.

    In the notation of `SplitTraining`, a plan takes less than :math:`\lambda \cdot 2 \vartheta / \gamma` seconds if and
    only if :math:`T_S + T_A / I - \lambda \, Den < 0` (Dinkelbach). A node of the search is a box: ranges of the stage
    times :math:`T_1 = \max b_i a_i`, :math:`T_2 = \max b_i d_i`, :math:`T_3 = \max \delta_{l_i} / r^{UF}_i`,
    :math:`T_4 = \max \delta_{l_i} / r^{DF}_i`, of I and of :math:`L_c`, and the cuts each device may still have.

    **Bound.** Take the times at their least, I at its largest in :math:`T_A / I` and at its least in the drift,
    :math:`L_c` at its least in drift and :math:`\Lambda`. Each only lowers the left-hand side. What is left adds up
    over devices but for the convex :math:`\phi(\Lambda)`, the edge server's part of :math:`T_A / I`; a tangent with
    slope :math:`\mu` at a kink y is below it, :math:`\phi(\Lambda) \ge \phi(y) + \mu (\Lambda - y)`. And
    :math:`T_1 \ge t + \sum_i w_i (b_i a_i - t)^+` for its least t and any stakes :math:`w \ge 0` that sum to at most 1,
    likewise :math:`T_2`: they are what a longer stage would save each device in the incumbent. Then each device on its
    own takes the cut and the batch size with the least
    :math:`b s_l + \lambda c / b + \mu (\delta - \delta_l)^+ + w_i (b a_i - t)^+` within the largest times and its
    memory; for one cut that is convex in b. A box with a bound >= 0 holds no better plan.

    **Shrinking.** With the bound v < 0, no better plan has a stage without stakes above its least time by -v, nor a
    device with an option that costs -v more than its cheapest. That drops options, and bounds stage times from below.

    **Splitting** is where the bound is furthest from the value of the plan that attains it: a stage time, I,
    :math:`L_c`, or the cuts of one device (for the tangent). When nothing is apart, that plan is better than
    :math:`\lambda` says, so it is the new incumbent and lowers :math:`\lambda`. What was excluded stays excluded.

    The gaps 30 %, 10 %, 2 % and 1e-10 are proved in turn, each from scratch; the last proof takes at least about as long
    as the others together. When stopped, the bound is (1 - the last gap proved) times the incumbent then; it is lowered by the
    rounding error of Den, which grows as Den falls against the target. Guarantee: exact; exponential time in the worst
    case. The start is the plan of `hasfl`, within the same run and limits. One iteration is one of `hasfl`, then 64 nodes, O(N L)
    each and less as options are dropped.
    """

    name: ClassVar[str] = "exact"
    guarantee: ClassVar[Guarantee] = Exact("branch and bound over stage times")

    def guarantee_for(self, problem: SplitTraining) -> Guarantee:
        """Return that the optimum is proved, left to finish."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every split-training problem."""
        return supports_split_training(problem)

    def solve(self, problem: SplitTraining, options: SolveOptions) -> Result[Any]:
        """Solve by branch and bound."""
        with Run[SplitPlan](self, problem, options) as run:
            with run.building():
                costs = Costs.of(problem)
            offer_feasible(run, plan_of(*safest(costs, problem.min_interval)))
            if run.solution is not None and not run.stopped():
                Hasfl().search(run, problem, costs)
            if run.solution is not None and not run.stopped():
                self._prove(run, problem, costs)
        open_end = run.limit is None and run.solution is not None and run.gap > OPTIMAL
        return finish(run, problem, ROUNDED if open_end else "")

    def _prove(self, run: Run[SplitPlan], problem: SplitTraining, costs: Costs) -> None:
        """Search until the last gap is proved or a limit is reached."""
        from edgeopt.solvers.kernels.split_bound import DONE, FULL, search
        from edgeopt.solvers.kernels.split_tables import doubled, new_stack, new_work

        assert run.solution is not None
        assert run.objective is not None
        tables = _tables(problem, costs)
        work = new_work(tables)
        batch, cut, interval = arrays_of(run.solution)
        best = np.array([run.objective / costs.scale, interval])
        for gap in GAPS:
            stack, state = new_stack(tables), -1
            while state != DONE and not run.stopped():
                before = best[0]
                state = search(tables, stack, work, cut, batch, best, gap, NODES)
                if best[0] < before:
                    offer_feasible(run, plan_of(batch, cut, int(best[1])))
                if state == FULL:
                    stack = doubled(stack)
                elif state == DONE:
                    share = problem.report(run.solution).accuracy_share["initial gap"]  # Den against the target
                    rounding = BOXES + ROUNDING * (problem.num_devices + 8) / share
                    run.tighten(best[0] * costs.scale * max(0.0, 1 - gap - rounding))
                    if gap == GAPS[-1]:
                        return  # no limit ended it
                run.step()


def _tables(problem: SplitTraining, costs: Costs) -> "Tables":
    """Return the costs as the kernels take them."""
    from edgeopt.solvers.kernels.split_tables import Tables

    return Tables(
        forward=costs.forward.ravel(),
        backward=costs.backward.ravel(),
        limit=costs.limit.astype(np.float64).ravel(),
        server=costs.server,
        bits=costs.client_bits,
        up=costs.fed_up,
        down=costs.fed_down,
        rates=np.array([costs.server_up, costs.server_down]),
        drift=costs.drift,
        intervals=np.array([problem.min_interval, problem.max_interval]),
        noise=costs.noise,
        target=costs.target,
    )
