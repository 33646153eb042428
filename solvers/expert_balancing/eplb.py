"""`eplb`: replicas for the experts with most load, packed onto the devices with least."""

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeopt.problem import Problem
from edgeopt.problems import ExpertBalancing, Replicas
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_balancing.common import NO_FIT, all_packed, supports_expert_balancing


@dataclass(frozen=True, slots=True)
class Eplb:
    """Give each slot that is left over to the expert whose replicas have most load, then pack the largest replicas first.

    The field's baseline, after DeepSeek's Expert Parallelism Load Balancer (2025): each replica goes to the device with
    least load that has a slot left, and where there are groups, they are packed onto groups of devices first. It does not
    look at what is placed at present. O(L (R E + R D)) time with R slots. One iteration is the whole run.
    """

    name: ClassVar[str] = "eplb"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def guarantee_for(self, problem: ExpertBalancing) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-balancing problem."""
        return supports_expert_balancing(problem)

    def solve(self, problem: ExpertBalancing, options: SolveOptions) -> Result[Any]:
        """Solve by handing out and packing."""
        found = None
        with Run[Replicas](self, problem, options) as run:
            run.tighten(problem.lower_bound)
            if (found := all_packed(problem)) is not None:
                run.offer(found)
            run.step()
        return run.result(message=NO_FIT if run.solution is None else "")
