"""`batch-only`: the best batch sizes for one fixed cut."""

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeopt.problem import Problem
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.split_training.common import Costs, check_count, finish, supports_split_training
from edgeopt.solvers.split_training.descent import descend, follow, middle, repaired


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOnly:
    """Choose the batch sizes as `Hasfl` does and leave all cuts where they are: HASFL without model splitting.

    If no batch sizes reach the target, all cuts become shallower. O(N) per pair of times tried.

    Parameters
    ----------
    cut : layer after which every model is cut, at most what a device's memory takes. Default: the middle one.
    """

    cut: int | None = None

    name: ClassVar[str] = "batch-only"
    guarantee: ClassVar[Guarantee] = Heuristic("ablation")

    def __post_init__(self) -> None:
        if self.cut is not None:
            check_count("cut", self.cut)

    def guarantee_for(self, problem: SplitTraining) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every split-training problem."""
        return supports_split_training(problem)

    def solve(self, problem: SplitTraining, options: SolveOptions) -> Result[Any]:
        """Solve by batch sizes alone."""
        with Run[SplitPlan](self, problem, options) as run:
            with run.building():
                costs = Costs.of(problem)
            cut = middle(costs, self.cut)
            start = repaired(costs, problem, costs.limit[:, 0], cut)
            if start is not None:
                follow(run, descend(costs, problem, start, cuts=False))
        return finish(run, problem)
