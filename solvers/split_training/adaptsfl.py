"""`adaptsfl`: one batch size for all, the best cut and aggregation interval for it."""

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

from edgeopt.problem import Problem
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.split_training.common import Costs, check_count, finish, supports_split_training
from edgeopt.solvers.split_training.descent import at_uniform_cuts, doubled, follow


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptSfl:
    """Try every cut, the same for all devices, with its best aggregation interval. After AdaptSFL (arXiv 2403.13101).

    The batch size is the given one, or that doubled again and again, whichever is best. Devices without the memory for a
    cut take the deepest one that they have it for. O(N) time per cut and batch size, which is one iteration.

    Parameters
    ----------
    batch : least batch size to try; every device has at most what its memory takes.
    """

    batch: int = 16

    name: ClassVar[str] = "adaptsfl"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def __post_init__(self) -> None:
        check_count("batch", self.batch)

    def guarantee_for(self, problem: SplitTraining) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every split-training problem."""
        return supports_split_training(problem)

    def solve(self, problem: SplitTraining, options: SolveOptions) -> Result[Any]:
        """Solve by trying every cut."""
        with Run[SplitPlan](self, problem, options) as run:
            with run.building():
                costs = Costs.of(problem)
            points = (at_uniform_cuts(costs, problem, batch) for batch in doubled(costs, self.batch))
            follow(run, itertools.chain.from_iterable(points))
        return finish(run, problem)
