"""`slide`: the least rate for every user and model, then the best admission under the bandwidth."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt.problem import Problem
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.result import Exact, Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.model_download.common import (
    Admission,
    admit,
    refusal_message,
    share_spare_bandwidth,
    supports_model_download,
)
from edgeopt.solvers.model_download.download_then_infer import offer_something
from edgeopt.solvers.model_download.rates import Tables, overlapped_rates

_EXACT = Exact("a user depends on the others through its bandwidth alone, of which the least is found")


@dataclass(frozen=True, slots=True)
class Slide:
    r"""Find the least rate that each user needs for each model, turn it into bandwidth, and admit whom it pays to.

    Optimal: users share nothing but the band, and more bandwidth never hurts, so a plan is no worse when each admitted
    user gets the least bandwidth for its model. What remains is a choice among K times I sizes.

    - Without an energy limit every layer runs at full speed, and the least rate is
      :math:`\max_l (S_1 + ... + S_l) / (D - c_l - ... - c_L)`, where c are the compute times.
    - With an energy limit, the least energy E(r) at a rate r is a speed-scaling problem with one deadline, solved by an
      upper hull in one pass over the layers. It falls with r; the least r with E(r) <= the limit is found by Newton's
      method on E^(-1/2), which is concave in 1/r, to a relative 1e-12 of the limit.
    - A rate becomes bandwidth by division, or by Lambert's W where the rate is concave, and is rounded up to whole blocks.
    - Admission: by rising bandwidth if all users are worth the same, else a multiple-choice knapsack, exact unless
      a limit or its memory stops it.
    - With discrete frequency levels *and* energy limits, least-energy speeds are rounded up to levels. That is not
      exact; the bound is the optimum with free frequencies from the lowest to the highest level.

    After SLIDE (arXiv 2512.20946); hull, Newton's method and the variants are ours. O(K I L + K log K) time without
    weights, a few passes more over the layers with energy limits, and O(K I) memory. One iteration is up to 8,192 users.

    Parameters
    ----------
    share_spare : give the bandwidth that is left to the admitted users, in proportion. Users with an energy limit then run
        slower and save energy, the others are done earlier. With frequency levels all keep their frequencies, and are
        done earlier.
    """

    share_spare: bool = True

    name: ClassVar[str] = "slide"
    guarantee: ClassVar[Guarantee] = _EXACT

    def guarantee_for(self, problem: ModelDownload) -> Guarantee:
        """Return exact, unless frequencies have levels and there are energy limits."""
        if problem.frequency_levels is not None and problem.is_energy_limited:
            return Heuristic("speeds are rounded up to levels; the bound is the optimum with free frequencies")
        return _EXACT

    def supports(self, problem: Problem) -> str | None:
        """Support every model-download problem."""
        return supports_model_download(problem)

    def solve(self, problem: ModelDownload, options: SolveOptions) -> Result[Any]:
        """Solve to optimality, see the class."""
        unproved = ""
        with Run[DownloadPlan](self, problem, options) as run:
            run.offer(DownloadPlan.refuse_all(problem.num_users))
            with run.building():
                tables = Tables.of(problem)
            rate, lower = overlapped_rates(run, problem, tables, prune=not problem.has_model_reward)
            offer_something(run, problem)  # users whose rates are missing would be refused
            admission = admit(run, problem, rate)
            run.offer(overlapped_plan(problem, tables, admission, rate, share_spare=self.share_spare))
            relaxed = admission if lower is rate else admit(run, problem, lower)
            run.tighten(relaxed.bound)
            unproved = admission.message or relaxed.message
        messages = (unproved, refusal_message(run, problem))
        return run.result(message="; ".join(message for message in messages if message))


def overlapped_plan(
    problem: ModelDownload, tables: Tables, admission: Admission, rate: Any, *, share_spare: bool = True
) -> DownloadPlan:
    """Return the plan of an admission at the rates [K, I] that it was made for, with frequencies for what users get."""
    model, bandwidth = admission.model, admission.bandwidth_hz
    if share_spare:
        bandwidth = share_spare_bandwidth(problem, bandwidth)
    given = problem.rate_bps(bandwidth)
    if tables.levels.size > 0:  # rounded energy may rise with the rate: keep to the frequencies that are known to do
        given = rate[np.arange(problem.num_users), model]
    frequency = tables.frequencies(problem, model, given)
    return DownloadPlan(model=model, bandwidth_hz=bandwidth, frequency_hz=frequency)
