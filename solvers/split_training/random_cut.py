"""`random-cut`: random cuts, the best batch sizes for them."""

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeopt.problem import Problem
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.rng import stream
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.split_training.common import Costs, finish, supports_split_training
from edgeopt.solvers.split_training.descent import descend, follow, repaired, uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCut:
    """Draw each device's cut, then choose the batch sizes as `Hasfl` does. A baseline.

    Cuts are uniform among those that a device has memory for; all become shallower if they miss the target. O(N) per
    pair of times tried.
    """

    name: ClassVar[str] = "random-cut"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def guarantee_for(self, problem: SplitTraining) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every split-training problem."""
        return supports_split_training(problem)

    def solve(self, problem: SplitTraining, options: SolveOptions) -> Result[Any]:
        """Solve by random cuts and the best batch sizes."""
        with Run[SplitPlan](self, problem, options) as run:
            with run.building():
                costs = Costs.of(problem)
            cut = stream(run.seed, self.name).integers(0, costs.deepest(uniform(costs, 1)) + 1)
            start = repaired(costs, problem, costs.limit[:, 0], cut)
            if start is not None:
                follow(run, descend(costs, problem, start, cuts=False))
        return finish(run, problem)
