"""`random`: users in random order, each with a random model."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt.problem import Problem
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.rng import stream
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
class RandomAdmission:
    """Take users in random order, each with a random one of the models it can finish, and admit whom the band still fits.

    A baseline. Bandwidths and frequencies are those of `Slide` for the drawn models. O(K I L + K log K) time.
    """

    name: ClassVar[str] = "random"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def guarantee_for(self, problem: ModelDownload) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every model-download problem."""
        return supports_model_download(problem)

    def solve(self, problem: ModelDownload, options: SolveOptions) -> Result[Any]:
        """Solve by one random draw."""
        with Run[DownloadPlan](self, problem, options) as run:
            run.offer(DownloadPlan.refuse_all(problem.num_users))
            rng = stream(run.seed, self.name)
            tables = Tables.of(problem)
            rate, _ = overlapped_rates(run, problem, tables, prune=False)
            users = np.arange(problem.num_users)
            drawn = np.where(np.isfinite(rate), rng.random(rate.shape), 2.0).argmin(axis=1)
            needed = bandwidth_needed(problem, rate)[users, drawn]
            left = problem.bandwidth_hz * (1 + FILL)
            model, bandwidth = np.full(problem.num_users, -1, np.int32), np.zeros(problem.num_users)
            for k in rng.permutation(problem.num_users):
                if needed[k] <= left:
                    model[k], bandwidth[k] = drawn[k], needed[k]
                    left -= needed[k]
            run.offer(overlapped_plan(problem, tables, Admission(model, bandwidth, np.inf), rate))
            offer_something(run, problem)
        return run.result(message=refusal_message(run, problem))
