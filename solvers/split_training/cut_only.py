"""`cut-only`: the best cuts for one fixed batch size."""

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.split_training.common import Costs, finish, supports_split_training
from edgeopt.solvers.split_training.descent import descend, follow, repaired, uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOnly:
    """Choose the cuts as `Hasfl` does for the same batch size everywhere: HASFL without batch sizes.

    If the batch size misses the target at the first cut, it is doubled. O(N L) per box of a step over cuts.

    Parameters
    ----------
    batch : batch size of every device, at most what its memory takes.
    """

    batch: int = 16

    name: ClassVar[str] = "cut-only"
    guarantee: ClassVar[Guarantee] = Heuristic("ablation")

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise EdgeOptError(f"batch = {self.batch!r}: expected an integer >= 1")

    def guarantee_for(self, problem: SplitTraining) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every split-training problem."""
        return supports_split_training(problem)

    def solve(self, problem: SplitTraining, options: SolveOptions) -> Result[Any]:
        """Solve by cuts alone."""
        with Run[SplitPlan](self, problem, options) as run:
            with run.building():
                costs = Costs.of(problem)
            start = repaired(costs, problem, uniform(costs, self.batch), uniform(costs, 0))
            if start is not None:
                follow(run, descend(costs, problem, start, batches=False))
        return finish(run, problem)
