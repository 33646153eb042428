"""`random`: fill every server with experts in random order."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.rng import stream
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching.certificates import Certificate, certify_by, check_certificate
from edgeopt.solvers.expert_caching.common import fill_in_order, supports_expert_caching


@dataclass(frozen=True, slots=True)
class RandomFill:
    """Take experts in random order, a different one on each server, and keep each that still fits. A baseline.

    O(N E) time. One iteration is one server.

    Parameters
    ----------
    certificate : ``marginal`` bounds the optimum by marginal values, quick and loose; ``dual`` by steps of the dual after that.
    """

    certificate: Certificate = "marginal"

    name: ClassVar[str] = "random"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def __post_init__(self) -> None:
        check_certificate(self.certificate)

    def guarantee_for(self, problem: ExpertCaching) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-caching problem."""
        return supports_expert_caching(problem)

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Solve by one random fill."""
        with Run[Placement](self, problem, options) as run:
            rng = stream(run.seed, self.name)
            order = np.argsort(rng.random((problem.num_servers, problem.num_experts)), axis=1)
            run.offer(Placement(fill_in_order(order, problem)))
            run.step()
            certify_by(self.certificate, run, problem)
        return run.result()
