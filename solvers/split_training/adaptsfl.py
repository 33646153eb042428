"""`adaptsfl`: one batch size for all, the best cut and aggregation interval for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.split_training.common import Costs, finish, supports_split_training
from edgeopt.solvers.split_training.descent import Point, follow, repaired, uniform
from edgeopt.solvers.split_training.steps import best_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptSfl:
    """Try every cut, the same for all devices, with its best aggregation interval. After AdaptSFL (arXiv 2403.13101).

    Devices without the memory for a cut take their deepest one. If no cut reaches the target, the batch size doubles.
    O(N L) time per cut. One iteration is one cut.

    Parameters
    ----------
    batch : batch size of every device, at most what its memory takes.
    """

    batch: int = 16

    name: ClassVar[str] = "adaptsfl"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

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
        """Solve by trying every cut."""
        with Run[SplitPlan](self, problem, options) as run:
            with run.building():
                costs = Costs.of(problem)
            start = repaired(costs, problem, uniform(costs, self.batch), uniform(costs, 0))
            if start is not None:
                follow(run, self._points(costs, problem, start))
        return finish(run, problem)

    @staticmethod
    def _points(costs: Costs, problem: SplitTraining, start: Point) -> Iterator[Point]:
        """Yield the start, which has the first cut, and the plan of each other cut."""
        yield start
        deepest = costs.deepest(uniform(costs, 1))
        for k in range(1, int(deepest.max()) + 1):
            cut = np.minimum(k, deepest)
            batch = np.minimum(start[1], costs.limit_at(cut))
            interval, value = best_interval(costs, batch, cut, problem.min_interval, problem.max_interval)
            yield value, batch, cut, interval
