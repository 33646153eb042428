"""`successive`: one server after another by exact dynamic programming, then best-response sweeps."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError
from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Guarantee, Heuristic, Ratio, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching.certificates import Certificate, certify_by, check_certificate
from edgeopt.solvers.expert_caching.common import empty_placement, supports_expert_caching
from edgeopt.solvers.expert_caching.facility import Facility
from edgeopt.solvers.expert_caching.greedy import offer_something
from edgeopt.solvers.expert_caching.popularity import offer_popular
from edgeopt.solvers.kernels.facility import values_at
from edgeopt.solvers.kernels.knapsack import knapsack


@dataclass(frozen=True, slots=True)
class Successive:
    """Solve each server's knapsack exactly given the servers before it, then sweep until no server can improve.

    With the other servers fixed, one server's problem is modular: a 0/1 knapsack, solved exactly by dynamic
    programming. Guarantee: 1/2 of the optimum for modular sets (K = 1 or latency ``sum``): each server gets at least
    the marginal value of the optimum's own configuration there, and those sum to at least OPT - F(S). Sweeps never
    lose. For ``max`` and ``mix`` it works on the sum surrogate, keeps the placement of `Popularity` where
    that is better, and nothing is promised; see `MaxConvolution`.
    O(N (E U + E Q)) per sweep, Q storage units; the dynamic programme runs on the few items that are not decided by
    their price. One iteration is one server.

    Parameters
    ----------
    max_sweeps : best-response sweeps after the first pass; 0 gives plain successive decomposition.
    certificate : ``marginal`` bounds the optimum by marginal values, quick and loose; ``dual`` by steps of the dual after that.
    """

    max_sweeps: int = 20
    certificate: Certificate = "marginal"

    name: ClassVar[str] = "successive"
    guarantee: ClassVar[Guarantee] = Ratio(
        0.5, "successive knapsacks, as Chen, Chen, Huang 2025 (arXiv 2507.06567) with exact inner solver; proof ours",
        "1/2 (K = 1 or sum)",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_certificate(self.certificate)
        if self.max_sweeps < 0:
            raise EdgeOptError(f"max_sweeps = {self.max_sweeps}: expected an integer >= 0")

    def guarantee_for(self, problem: ExpertCaching) -> Guarantee:
        """Return 1/2 for modular sets and sizes that are whole storage units."""
        if problem.is_modular_per_set and Facility.units_are_exact(problem):
            return self.guarantee
        return Heuristic("1/2 is proved for K = 1 or latency sum and whole storage units")

    def supports(self, problem: Problem) -> str | None:
        """Support every expert-caching problem."""
        return supports_expert_caching(problem)

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Solve server by server."""
        with Run[Placement](self, problem, options) as run:
            run.offer(empty_placement(problem))
            with run.building():
                facility = Facility.of(problem)
            cached = np.zeros((facility.num_servers, facility.num_experts), bool)
            respond(run, facility, cached, range(facility.num_servers))
            run.offer(Placement(cached))
            sweep(run, facility, cached, self.max_sweeps)
            if options.initial_solution is not None:  # warm start: sweeps from the given placement too
                sweep(run, facility, np.array(options.initial_solution.cached), self.max_sweeps)
            offer_something(run, problem, facility)
            offer_popular(run, problem)
            certify_by(self.certificate, run, problem, facility)
        return run.result()


def respond(run: Run[Placement], facility: Facility, cached: NDArray[np.bool_], servers: Any) -> bool:
    """Replace each server's experts by the best ones given the others, in place; return whether anything changed.

    A server that holds more than fits is brought under its storage, so one pass over all servers repairs a placement, also
    when a limit is reached on the way.
    """
    changed, by_server = False, facility.gain_by_server()
    for n in servers:
        fits = facility.units @ cached[n] <= facility.capacity_units[n]
        if fits and run.stopped():
            continue
        values = values_at(n, cached, facility.weight, by_server, facility.model)
        value, chosen = knapsack(values, facility.units, int(facility.capacity_units[n]))
        if not fits or value > values[cached[n]].sum() * (1 + 1e-12):
            cached[n] = chosen
            changed = True
        run.step()
    return changed


def sweep(run: Run[Placement], facility: Facility, cached: NDArray[np.bool_], max_sweeps: int) -> None:
    """Best-response sweeps over all servers until none improves, in place; each better placement is offered."""
    for _ in range(max_sweeps):
        if not respond(run, facility, cached, range(facility.num_servers)):
            break
        run.offer(Placement(cached))
