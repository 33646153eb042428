"""`download-then-infer`: the usual way, no layer is run before the whole model has arrived."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.kernels.download import FIT
from edgeopt.solvers.model_download.common import admit, constant_speed_plan, refusal_message, supports_model_download
from edgeopt.stop import Limit


@dataclass(frozen=True, slots=True)
class DownloadThenInfer:
    """Download all bits S, then run the model at one frequency f: rate S / (D - V - C / f). A baseline.

    f is the highest frequency at which V + C / f seconds of computing keep the energy limit. One frequency is the best
    there is without overlap, since energy is convex in speed (with levels: the highest one that the limit allows).
    Admission is optimal for these rates. In the timeline of the plan layers do start early: what counts is that the
    bandwidth was chosen as if they did not. O(K I + K log K) time.
    """

    name: ClassVar[str] = "download-then-infer"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def guarantee_for(self, problem: ModelDownload) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every model-download problem."""
        return supports_model_download(problem)

    def solve(self, problem: ModelDownload, options: SolveOptions) -> Result[Any]:
        """Solve without overlap."""
        with Run[DownloadPlan](self, problem, options) as run:
            run.offer(DownloadPlan.refuse_all(problem.num_users))
            run.offer(separate_plan(run, problem))
        return run.result(message=refusal_message(run, problem))


def separate_plan(run: Run[DownloadPlan], problem: ModelDownload) -> DownloadPlan:
    """Return the best plan without overlap, at one frequency each; limits of the run hold for the admission."""
    rate, speed = separate_rates(problem)
    admission = admit(run, problem, rate)
    return constant_speed_plan(problem, admission, speed[np.arange(problem.num_users), admission.model])


def offer_something(run: Run[DownloadPlan], problem: ModelDownload) -> None:
    """Offer the plan without overlap if time or Ctrl-C has ended the run early: it takes a few milliseconds."""
    if run.stopped() and run.limit in (Limit.TIME, Limit.INTERRUPT):
        run.offer(separate_plan(run, problem))


def separate_rates(problem: ModelDownload) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the least rates [K, I] in bit/s without overlap, inf for never, and the frequencies [K, I] in Hz that go with them."""
    first = problem.layer_indptr[:-1]
    cycles = problem.cycles_per_layer_flop[:, None] * problem.suffix_flops[first]
    budget = problem.energy_j[:, None] - problem.receive_j_per_bit[:, None] * problem.model_bits
    top = np.broadcast_to(problem.top_frequency_hz[:, None], cycles.shape)
    per_square = problem.energy_coefficient[:, None] * cycles  # J / Hz^2
    fastest = np.divide(budget.clip(0.0), per_square, out=np.full_like(cycles, np.inf), where=per_square > 0)
    speed = np.minimum(top, np.sqrt(fastest))
    if (levels := problem.frequency_levels) is not None:
        share = speed / problem.max_frequency_hz[:, None] * (1 + FIT)
        at = np.searchsorted(levels, share, side="right") - 1
        speed = np.where(at >= 0, levels[at] * problem.max_frequency_hz[:, None], 0.0)
    possible = problem.allowed & (budget >= 0) & (speed >= problem.min_frequency_hz[:, None])
    left = problem.deadline_s[:, None] - problem.suffix_fixed_s[first] - cycles / np.where(possible, speed, top)
    rate = np.divide(problem.model_bits, left, out=np.full_like(cycles, np.inf), where=possible & (left > 0))
    return rate, speed
