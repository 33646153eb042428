"""`generic`: the problem's own model in cvxpy, solved by HiGHS."""

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Exact, Guarantee, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.background import Background, Mailbox
from edgeopt.solvers.expert_caching.common import empty_placement, supports_expert_caching
from edgeopt.solvers.expert_caching.exact import supports_size
from edgeopt.solvers.expert_caching.greedy import offer_something
from edgeopt.solvers.expert_caching.popularity import offer_popular
from edgeopt.solvers.generic import solve_by_highs


@dataclass(frozen=True, slots=True)
class Generic:
    """Hand `ExpertCaching.to_cvxpy` to HiGHS through cvxpy: the independent check of the other solvers.

    Guarantee: exact, within the tolerances of HiGHS; exponential time in the worst case. It reports nothing before it has finished,
    and knows no bound until then. One iteration is the whole programme.

    Parameters
    ----------
    max_nonzeros : refuse problems whose model may have more nonzeros than this.
    """

    max_nonzeros: int = 1_000_000

    name: ClassVar[str] = "generic"
    guarantee: ClassVar[Guarantee] = Exact("mixed-integer linear programme in cvxpy, HiGHS")

    def __post_init__(self) -> None:
        if self.max_nonzeros < 1:
            raise EdgeOptError(f"max_nonzeros = {self.max_nonzeros}: expected an integer >= 1")

    def guarantee_for(self, problem: ExpertCaching) -> Guarantee:
        """Return that the optimum is proved, left to finish."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-caching problem whose model is not too large."""
        return supports_expert_caching(problem) or supports_size(problem, self.max_nonzeros)

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Solve by HiGHS."""
        ended, proved, found = "stopped", False, None
        with Run[Placement](self, problem, options) as run:
            run.offer(empty_placement(problem))
            offer_popular(run, problem)

            def search(mailbox: Mailbox) -> tuple[str, Placement | None, float]:
                model = problem.to_cvxpy()
                mailbox.check()
                how = solve_by_highs(model, run.remaining)
                return how, model.solution() if how == "optimal" else None, model.value

            found = None if run.stopped() else Background(run, search).wait()
            if found is not None:
                ended, placement, value = found
                if placement is not None and problem.is_feasible(placement):
                    run.offer(placement)
                    proved = (run.objective or 0.0) >= value - 1e-7 * abs(value)
                run.step()
            offer_something(run, problem)
        failed = found is not None and not proved and ended != "stopped"
        return run.result(optimal=proved, message=f"HiGHS: {ended}" if failed else "")
