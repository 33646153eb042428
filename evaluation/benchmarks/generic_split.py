"""Split training in a generic modelling language: Dinkelbach's method over mixed-integer linear programmes in cvxpy.

One binary per device, cut and batch size, one variable per maximum. For each aggregation interval and each limit on
the deepest cut, HiGHS minimises time - ratio Den, and the ratio falls until no plan is below zero. Written from the
formulas alone, without any of the solvers' own steps: what they are compared with.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.solvers.back_ends import highs_module
from edgeopt.solvers.highs import own_scheduler

LEAST_GAIN = 1e-9  # relative: a smaller improvement ends the iteration
SCALE = 100.0  # seconds are scaled so that a round takes at most this: HiGHS's tolerances are absolute


@dataclass(frozen=True, slots=True)
class GenericResult:
    """What the generic model found.

    Parameters
    ----------
    plan : the best plan, None if there is none or none was found in time.
    objective : its seconds to the target, inf without a plan.
    finished : whether every programme was solved to optimality.
    programmes : how many there were.
    """

    plan: SplitPlan | None
    objective: float
    finished: bool
    programmes: int


def solve_generic(problem: SplitTraining, time_limit: float = math.inf) -> GenericResult:
    """Minimise the seconds to the target; optimal within HiGHS's tolerances if it finishes."""
    start, programmes = time.perf_counter(), 0
    plan = SplitPlan(  # noise and drift are least: it reaches every target that can be reached
        batch_size=problem.batch_limit[:, 0],
        cut_layer=np.ones(problem.num_devices, int),
        aggregation_interval=problem.min_interval,
    )
    best = problem.objective(plan)
    if not math.isfinite(best):
        return GenericResult(None, math.inf, True, 0)
    for deepest in range(1, problem.num_layers + 1):
        for interval in range(problem.min_interval, problem.max_interval + 1):
            if problem.drift(deepest, interval) >= problem.target:
                continue
            model = _Model(problem, deepest, interval)
            better = True
            while better:
                seconds = time_limit - (time.perf_counter() - start)
                found = model.solve(best / problem.time_scale, seconds) if seconds > 0 else None
                if found is None:
                    return GenericResult(plan, best, False, programmes)
                programmes += 1
                value = problem.objective(found)
                better = value < best * (1 - LEAST_GAIN)
                if value < best:
                    best, plan = value, found
    return GenericResult(plan, best, True, programmes)


class _Model:
    """The programme for one aggregation interval and one limit on the deepest cut; the ratio is a parameter."""

    def __init__(self, problem: SplitTraining, deepest: int, interval: int) -> None:
        highs_module()  # before anything else loads another version of it
        import cvxpy as cp

        limit = problem.batch_limit[:, :deepest]
        self.device, self.cut = (np.repeat(index, limit.ravel()) for index in np.indices(limit.shape).reshape(2, -1))
        self.batch = np.concatenate([np.arange(1, most + 1) for most in limit.ravel()])
        self.interval = interval
        self.target = problem.target
        chosen, bits = cp.Variable(self.batch.size, boolean=True), problem.averaged_bits
        up, down, upload, download = (cp.Variable() for _ in range(4))
        self.ratio, self.scale = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
        noise = cp.sum(cp.multiply(problem.noise_weight / self.batch, chosen))
        left = problem.target - problem.drift(deepest, interval)
        server = (self.batch * problem.server_s[self.cut]) @ chosen
        missing = (bits[deepest - 1] - bits[self.cut]) @ chosen / 1e6
        self.chosen = chosen
        seconds = up + server + down + (upload + download) / interval
        self.problem = cp.Problem(
            cp.Minimize(self.scale * seconds + self.ratio * (noise - left)),
            [
                self._per_device(np.ones(self.batch.size)) @ chosen == 1,
                self._per_device(self.batch * problem.forward_s[self.device, self.cut]) @ chosen <= up,
                self._per_device(self.batch * problem.backward_s[self.device, self.cut]) @ chosen <= down,
                self._per_device(bits[self.cut] / problem.fed_uplink_bps[self.device]) @ chosen <= upload,
                self._per_device(bits[self.cut] / problem.fed_downlink_bps[self.device]) @ chosen <= download,
                missing / (problem.server_fed_uplink_bps / 1e6) <= upload,
                missing / (problem.server_fed_downlink_bps / 1e6) <= download,
            ],
        )

    def _per_device(self, values: Any) -> Any:
        """Return the sparse matrix that sums `values` of the chosen options per device."""
        return sparse.csr_array((values, (self.device, np.arange(self.device.size))))

    def solve(self, ratio: float, seconds: float) -> SplitPlan | None:
        """Return the plan that minimises time - ratio Den, None if it was not found in so many seconds."""
        import cvxpy as cp

        self.scale.value = SCALE / (ratio * self.target)
        self.ratio.value = SCALE / self.target
        limit = {"time_limit": seconds} if math.isfinite(seconds) else {}
        try:
            with own_scheduler():
                self.problem.solve(solver=cp.HIGHS, mip_rel_gap=0.0, mip_abs_gap=1e-7, threads=1, **limit)
        except cp.error.SolverError:  # nothing found within the limit
            return None
        if self.problem.status != cp.OPTIMAL:
            return None
        value = np.asarray(self.chosen.value)
        taken = [int(np.argmax(np.where(self.device == i, value, -1.0))) for i in range(self.device.max() + 1)]
        return SplitPlan(
            batch_size=self.batch[taken],
            cut_layer=np.asarray(self.cut[taken] + 1, np.int32),
            aggregation_interval=self.interval,
        )
