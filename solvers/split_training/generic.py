"""`generic`: the problem's own programmes in cvxpy, by Dinkelbach's method for each interval and deepest cut."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.problems.split_training.modelling import aim
from edgeopt.result import Exact, Guarantee, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.background import Background, Mailbox
from edgeopt.solvers.generic import solve_by_highs
from edgeopt.solvers.split_training.common import (
    Costs,
    finish,
    offer_feasible,
    plan_of,
    safest,
    supports_split_training,
)

LEAST_GAIN = 1e-9  # relative: a smaller improvement ends the iteration


@dataclass(frozen=True, slots=True)
class Generic:
    r"""Minimise the ratio by a sequence of `SplitTraining.to_cvxpy`, each solved by HiGHS: the independent check of the other solvers.

    For each aggregation interval and each limit on the deepest cut, the programme finds the plan with the least time less ratio times Den; its own ratio is
    the next one, until it falls no more (Dinkelbach 1967). Written from the formulas alone, without any of the other solvers' steps.

    Guarantee: exact, within the tolerances of HiGHS; a programme has one binary for each device, cut and batch size, and there are at least
    two for each layer and interval. It knows no bound before the end. One iteration is one programme.

    Parameters
    ----------
    max_options : refuse problems whose largest programme has more binaries.
    """

    max_options: int = 20_000

    name: ClassVar[str] = "generic"
    guarantee: ClassVar[Guarantee] = Exact("Dinkelbach's method over mixed-integer programmes in cvxpy, HiGHS")

    def __post_init__(self) -> None:
        if self.max_options < 1:
            raise EdgeOptError(f"max_options = {self.max_options}: expected an integer >= 1")

    def guarantee_for(self, problem: SplitTraining) -> Guarantee:
        """Return that the optimum is proved, left to finish."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every split-training problem whose programmes are not too large."""
        if wrong := supports_split_training(problem):
            return wrong
        assert isinstance(problem, SplitTraining)
        if (options := int(problem.batch_limit.sum())) > self.max_options:
            return f"the programme may have {options:,} binaries, expected at most max_options = {self.max_options:,}"
        return None

    def solve(self, problem: SplitTraining, options: SolveOptions) -> Result[Any]:
        """Solve by Dinkelbach's method."""
        proved = False
        with Run[SplitPlan](self, problem, options) as run:
            start = plan_of(*safest(Costs.of(problem), problem.min_interval))
            offer_feasible(run, start)
            if run.objective is not None and np.isfinite(run.objective):
                best = run.objective

                def search(mailbox: Mailbox) -> bool:
                    return _search(run, problem, mailbox, best)

                proved = not run.stopped() and bool(Background(run, search).wait())
                if proved and run.objective is not None:
                    run.tighten(run.objective)
        return finish(run, problem)


def _search(run: Run[SplitPlan], problem: SplitTraining, mailbox: Mailbox, best: float) -> bool:
    """Post better plans, and return whether all programmes were solved."""
    for deepest in range(problem.num_layers, 0, -1):  # most plans first
        if not (problem.batch_limit[:, :deepest] >= 1).any(axis=1).all():
            continue
        mailbox.check()
        model = problem.to_cvxpy(interval=problem.min_interval, deepest=deepest, ratio=best / problem.time_scale)
        # only plans of a smaller ratio than the best are looked for: without one, the relaxation mostly says so
        model = model.with_constraints(better=model.problem.objective.expr <= 0)
        for interval in range(problem.min_interval, problem.max_interval + 1):
            better = problem.drift(deepest, interval) < problem.target
            while better:
                mailbox.check()
                aim(model, problem, interval, deepest, best / problem.time_scale)
                how = solve_by_highs(model, run.remaining)
                if how == "infeasible":
                    break
                if how != "optimal":
                    return False
                plan = model.solution()
                value = problem.objective(plan)
                better = value < best * (1 - LEAST_GAIN)
                best = min(best, value)
                mailbox.post(lambda plan=plan: (offer_feasible(run, plan), run.step()))  # type: ignore[misc]
    return True
