"""`fixed-frequency`: everybody computes at full speed, whatever the energy."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt.problem import Problem
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.kernels.download import FIT
from edgeopt.solvers.model_download.common import admit, constant_speed_plan, refusal_message, supports_model_download
from edgeopt.solvers.model_download.rates import Tables


@dataclass(frozen=True, slots=True)
class FixedFrequency:
    """Run every layer at the highest frequency; models whose energy then exceeds the limit are out. A baseline.

    Download and inference overlap and admission is optimal, as in `Slide`. Without energy limits it is `Slide`.
    O(K I L + K log K) time.
    """

    name: ClassVar[str] = "fixed-frequency"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def guarantee_for(self, problem: ModelDownload) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every model-download problem."""
        return supports_model_download(problem)

    def solve(self, problem: ModelDownload, options: SolveOptions) -> Result[Any]:
        """Solve at full speed."""
        with Run[DownloadPlan](self, problem, options) as run:
            run.offer(DownloadPlan.refuse_all(problem.num_users))
            top = problem.top_frequency_hz
            rate = Tables.of(problem).full_speed_rates(problem)
            cycles = problem.cycles_per_layer_flop[:, None] * problem.suffix_flops[problem.layer_indptr[:-1]]
            energy = problem.receive_j_per_bit[:, None] * problem.model_bits
            energy += (problem.energy_coefficient * top**2)[:, None] * cycles
            rate[energy > problem.energy_j[:, None] * (1 + FIT)] = np.inf
            run.offer(constant_speed_plan(problem, admit(run, problem, rate), top))
        return run.result(message=refusal_message(run, problem))
