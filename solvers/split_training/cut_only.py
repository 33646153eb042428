"""`cut-only`: the best cuts for one fixed batch size."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt.problem import Problem
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.split_training.common import Costs, check_count, finish, supports_split_training
from edgeopt.solvers.split_training.descent import at_uniform_cuts, descend, doubled, follow


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOnly:
    """Choose the cuts as `Hasfl` does for the same batch size everywhere: HASFL without batch sizes.

    The batch size is the given one, or that doubled again and again, whichever is best; each descends from the best
    uniform cut. O(N L) per box of a step over cuts.

    Parameters
    ----------
    batch : least batch size to try; every device has at most what its memory takes.
    """

    batch: int = 16

    name: ClassVar[str] = "cut-only"
    guarantee: ClassVar[Guarantee] = Heuristic("ablation")

    def __post_init__(self) -> None:
        check_count("batch", self.batch)

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
            for batch in doubled(costs, self.batch):
                start = min(at_uniform_cuts(costs, problem, batch), key=lambda point: point[0])
                if start[0] < np.inf:
                    follow(run, descend(costs, problem, start, batches=False))
                if run.solution is not None and run.stopped():
                    break
        return finish(run, problem)
