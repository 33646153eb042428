"""`generic`: the problem's own models in cvxpy: each pair by itself, then the choice among them."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import DownloadPlan, ModelDownload
from edgeopt.problems.model_download.needs import bandwidths, choice_model, least_rates
from edgeopt.result import Exact, Guarantee, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.background import Background, Mailbox
from edgeopt.solvers.generic import solve_by_highs
from edgeopt.solvers.model_download.common import refusal_message, share_spare_bandwidth, supports_model_download
from edgeopt.solvers.model_download.download_then_infer import offer_something
from edgeopt.solvers.model_download.rates import Tables

MARGINS = (0.0, 1e-8, 1e-6)  # relative: by how much the least rates are raised until the problem accepts the plan


@dataclass(frozen=True, slots=True)
class Generic:
    """Solve `ModelDownload.to_cvxpy` of every pair by Clarabel or HiGHS, then choose among them by HiGHS.

    Users meet only in the band, so the least bandwidth of each pair is all that the choice needs to know: the independent check of the
    other solvers. Plans run at the frequencies of least energy for their rates, or at the levels that were found.

    Guarantee: exact, within the tolerances of the solvers: about 1e-8 of the least rates with energy limits. If the problem refuses the plan by that
    much, rates are raised a little, and nothing is proved unless the value stays. One iteration is the whole programme.

    Parameters
    ----------
    max_pairs : refuse problems with more pairs of a user and a model it may have: each takes some ten milliseconds.
    """

    max_pairs: int = 500

    name: ClassVar[str] = "generic"
    guarantee: ClassVar[Guarantee] = Exact("conic programmes in cvxpy, then a mixed-integer one")

    def __post_init__(self) -> None:
        if self.max_pairs < 1:
            raise EdgeOptError(f"max_pairs = {self.max_pairs}: expected an integer >= 1")

    def guarantee_for(self, problem: ModelDownload) -> Guarantee:
        """Return that the optimum is proved, left to finish."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every model-download problem that has few enough pairs."""
        if wrong := supports_model_download(problem):
            return wrong
        assert isinstance(problem, ModelDownload)
        if (pairs := int(problem.allowed.sum())) > self.max_pairs:
            return f"{pairs:,} pairs of a user and a model, expected at most max_pairs = {self.max_pairs:,}"
        return None

    def solve(self, problem: ModelDownload, options: SolveOptions) -> Result[Any]:
        """Solve pair by pair, then choose."""
        proved = False
        with Run[DownloadPlan](self, problem, options) as run:
            run.offer(DownloadPlan.refuse_all(problem.num_users))
            run.tighten(float(np.where(problem.allowed, problem.value, 0.0).max(axis=1).sum()))

            def search(mailbox: Mailbox) -> bool:
                return self._search(run, problem, mailbox)

            proved = not run.stopped() and bool(Background(run, search).wait())
            offer_something(run, problem)
        return run.result(optimal=proved, message=refusal_message(run, problem))

    def _search(self, run: Run[DownloadPlan], problem: ModelDownload, mailbox: Mailbox) -> bool:
        """Post plans, and return whether the last one is worth what the choice at the least rates is."""
        (rate, frequency), best = least_rates(problem, mailbox.check), 0.0
        tables = Tables.of(problem)
        for margin in MARGINS:
            raised = rate * (1 + margin)
            hz = bandwidths(problem, raised)
            if not np.isfinite(hz).any():
                return True
            choice = choice_model(problem, hz)
            mailbox.check()
            if solve_by_highs(choice, run.remaining) != "optimal":
                return False
            best = max(best, choice.value)
            model = choice.solution()
            carried = np.where(model >= 0, raised[np.arange(model.size), model], 0.0)
            if problem.frequency_levels is None:
                run_at = tables.frequencies(problem, model, carried)
            else:
                chosen = [frequency[k, int(model[k])] for k in np.flatnonzero(model >= 0).tolist()]
                run_at = np.concatenate([np.zeros(0), *chosen])
            band = share_spare_bandwidth(problem, np.where(model >= 0, hz[np.arange(model.size), model], 0.0))
            plan = DownloadPlan(model=model, bandwidth_hz=band, frequency_hz=run_at)
            if problem.is_feasible(plan):
                mailbox.post(lambda plan=plan: (run.offer(plan), run.step()))  # type: ignore[misc]
                return problem.objective(plan) >= best * (1 - 1e-9)
        return False
