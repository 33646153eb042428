"""`equal-bandwidth`: all admitted users get the same bandwidth."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt.problem import Problem
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.model_download.common import (
    FILL,
    Admission,
    bandwidth_needed,
    refusal_message,
    supports_model_download,
)
from edgeopt.solvers.model_download.download_then_infer import offer_something
from edgeopt.solvers.model_download.rates import Tables, overlapped_rates
from edgeopt.solvers.model_download.slide import overlapped_plan


@dataclass(frozen=True, slots=True)
class EqualBandwidth:
    """Split the band evenly among as many users as can do with an equal share. A baseline.

    Each user counts with the model of the least rate, computed as in `Slide`. If more users than shares can do with one,
    the most valuable are admitted (the lowest index on ties). O(K I L + K log K) time.
    """

    name: ClassVar[str] = "equal-bandwidth"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def guarantee_for(self, problem: ModelDownload) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every model-download problem."""
        return supports_model_download(problem)

    def solve(self, problem: ModelDownload, options: SolveOptions) -> Result[Any]:
        """Solve with equal shares."""
        with Run[DownloadPlan](self, problem, options) as run:
            run.offer(DownloadPlan.refuse_all(problem.num_users))
            tables = Tables.of(problem)
            rate, _ = overlapped_rates(run, problem, tables, prune=True)
            users, best = np.arange(problem.num_users), rate.argmin(axis=1)
            needed = bandwidth_needed(problem, rate)[users, best]
            share = problem.bandwidth_hz / (users + 1)  # of the first n + 1 users
            if (block := problem.resource_block_hz) is not None:
                share = block * np.floor(share / block * (1 + FILL))
            enough = np.flatnonzero(np.sort(needed) <= share * (1 + FILL))
            count = int(enough[-1]) + 1 if enough.size else 0
            equal = float(share[count - 1]) if count else 0.0
            able = np.flatnonzero(needed <= equal * (1 + FILL))
            worth = problem.value[able, best[able]]
            chosen = able[np.argsort(-worth, kind="stable")[:count]]
            model = np.full(problem.num_users, -1, np.int32)
            model[chosen] = best[chosen]
            admission = Admission(model, np.where(model >= 0, equal, 0.0), np.inf)
            run.offer(overlapped_plan(problem, tables, admission, rate, share_spare=False))
            offer_something(run, problem)
        return run.result(message=refusal_message(run, problem))
