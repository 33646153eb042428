"""`smallest-model`: nobody gets a larger model than needed."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt.problem import Problem
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.model_download.common import admit, refusal_message, supports_model_download
from edgeopt.solvers.model_download.download_then_infer import offer_something
from edgeopt.solvers.model_download.rates import Tables, overlapped_rates
from edgeopt.solvers.model_download.slide import overlapped_plan


@dataclass(frozen=True, slots=True)
class SmallestModel:
    """Give each user the allowed model of the fewest bits or none; all else as in `Slide`. A baseline.

    The smallest model need not take the least bandwidth: it may need more computing. O(K I L + K log K) time.
    """

    name: ClassVar[str] = "smallest-model"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def guarantee_for(self, problem: ModelDownload) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every model-download problem."""
        return supports_model_download(problem)

    def solve(self, problem: ModelDownload, options: SolveOptions) -> Result[Any]:
        """Solve with the smallest models."""
        with Run[DownloadPlan](self, problem, options) as run:
            run.offer(DownloadPlan.refuse_all(problem.num_users))
            tables = Tables.of(problem)
            rate, _ = overlapped_rates(run, problem, tables, prune=False)
            smallest = np.where(problem.allowed, problem.model_bits, np.inf).argmin(axis=1)
            only = np.full_like(rate, np.inf)
            users = np.arange(problem.num_users)
            only[users, smallest] = rate[users, smallest]
            run.offer(overlapped_plan(problem, tables, admit(run, problem, only), only))
            offer_something(run, problem)
        return run.result(message=refusal_message(run, problem))
