"""`random-batch`: random batch sizes, the best cuts for them."""

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
class RandomBatch:
    """Draw each device's batch size, then choose the cuts as `Hasfl` does. A baseline.

    Batch sizes are uniform up to what the memory takes at cut 1, and double if they miss the target there. O(N L) per
    box of the step over cuts.
    """

    name: ClassVar[str] = "random-batch"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def guarantee_for(self, problem: SplitTraining) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every split-training problem."""
        return supports_split_training(problem)

    def solve(self, problem: SplitTraining, options: SolveOptions) -> Result[Any]:
        """Solve by random batch sizes and the best cuts."""
        with Run[SplitPlan](self, problem, options) as run:
            with run.building():
                costs = Costs.of(problem)
            batch = stream(run.seed, self.name).integers(1, costs.limit[:, 0] + 1)
            start = repaired(costs, problem, batch, uniform(costs, 0))
            if start is not None:
                follow(run, descend(costs, problem, start, batches=False))
        return finish(run, problem)
