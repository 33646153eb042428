"""`fixed`: one batch size and one cut for all devices."""

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeopt.problem import Problem
from edgeopt.problems import SplitPlan, SplitTraining
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.split_training.common import Costs, check_count, finish, supports_split_training
from edgeopt.solvers.split_training.descent import follow, middle, repaired, uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Give every device the same batch size and the same cut. A baseline.

    If that misses the target, all batches double up to the memory's limit, then all cuts become shallower. The
    aggregation interval, where the problem leaves it open, is the best one, as in all baselines. O(N L) time.

    Parameters
    ----------
    batch : batch size of every device, at most what its memory takes.
    cut : layer after which every model is cut, at most what a device's memory takes. Default: the middle one.
    """

    batch: int = 16
    cut: int | None = None

    name: ClassVar[str] = "fixed"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def __post_init__(self) -> None:
        check_count("batch", self.batch)
        if self.cut is not None:
            check_count("cut", self.cut)

    def guarantee_for(self, problem: SplitTraining) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every split-training problem."""
        return supports_split_training(problem)

    def solve(self, problem: SplitTraining, options: SolveOptions) -> Result[Any]:
        """Solve by one plan."""
        with Run[SplitPlan](self, problem, options) as run:
            with run.building():
                costs = Costs.of(problem)
            start = repaired(costs, problem, uniform(costs, self.batch), middle(costs, self.cut))
            follow(run, iter(() if start is None else (start,)))
        return finish(run, problem)
