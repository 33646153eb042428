"""`continuous-greedy`: continuous greedy over whole server configurations, with lossless rounding."""

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
from edgeopt.solvers.expert_caching.successive import sweep
from edgeopt.solvers.kernels.facility import server_gradient
from edgeopt.solvers.kernels.knapsack import knapsack

CHUNK = 1 << 23  # experts x users x servers between two looks at the clock: some tens of milliseconds


@dataclass(frozen=True, slots=True)
class ContinuousGreedy:
    """Build for every server an even mixture of T configurations, then pick one configuration per server.

    O(T N (E U N + knapsack)) time. One iteration is one step.

    Guarantee: 1 - (1 + 1/T)^-T = 1 - 1/e - O(1/T) of the optimum for K = 1 or latency ``sum``, deterministic (ours).
    Let F be the multilinear extension and y[n] the mixture of server n. In each of T steps the servers take turns:
    server n solves its knapsack with values dF/dy[n, e] to a configuration C_n, and y[n] += 1_{C_n} / T. F is linear
    in one server's row, so that turn gains exactly 1/T sum over C_n of dF/dy[n, .], at least 1/T sum over the
    optimum's own configuration; derivatives only fall as y grows, so the step gains at least
    (OPT - F(y after)) / T, and OPT - F falls by 1 + 1/T per step. Taking turns is what spares the second-order error
    of simultaneous updates. Rounding replaces server after server's mixture by its best member: F is linear in
    it, so nothing is lost. Best-response sweeps afterwards can only gain. Background: Calinescu et al. 2011.

    Parameters
    ----------
    steps : T.
    max_sweeps : best-response sweeps after rounding.
    certificate : ``marginal`` bounds the optimum by marginal values, quick and loose; ``dual`` by steps of the dual after that.
    """

    steps: int = 20
    max_sweeps: int = 20
    certificate: Certificate = "marginal"

    name: ClassVar[str] = "continuous-greedy"
    guarantee: ClassVar[Guarantee] = Ratio(
        1 - (1 + 1 / 20) ** -20, "ours, after Calinescu, Chekuri, Pal, Vondrak 2011", "1 - 1/e - O(1/T) (K = 1 or sum)"
    )

    def __post_init__(self) -> None:
        check_certificate(self.certificate)
        if self.steps < 1:
            raise EdgeOptError(f"steps = {self.steps}: expected an integer >= 1")
        if self.max_sweeps < 0:
            raise EdgeOptError(f"max_sweeps = {self.max_sweeps}: expected an integer >= 0")

    def guarantee_for(self, problem: ExpertCaching) -> Guarantee:
        """Return 1 - (1 + 1/T)^-T, if sizes are whole storage units."""
        if not Facility.units_are_exact(problem):
            return Heuristic("1 - 1/e - O(1/T) is proved for exact knapsacks; these sizes were rounded to a grid")
        alpha = 1 - (1 + 1 / self.steps) ** -self.steps
        return Ratio(alpha, "ours, after Calinescu, Chekuri, Pal, Vondrak 2011", f"{alpha:.4f} (1 - (1 + 1/T)^-T)")

    def supports(self, problem: Problem) -> str | None:
        """Support K = 1 or latency ``sum``: the multilinear extension has no closed form otherwise."""
        if (reason := supports_expert_caching(problem)) is not None:
            return reason
        assert isinstance(problem, ExpertCaching)
        if not problem.is_modular_per_set:
            return f"expected K = 1 or latency 'sum', got K = {problem.top_k} with latency {problem.latency!r}"
        return None

    def solve(self, problem: ExpertCaching, options: SolveOptions) -> Result[Any]:
        """Solve by continuous greedy, rounding and sweeps."""
        with Run[Placement](self, problem, options) as run:
            run.offer(empty_placement(problem))
            with run.building():
                facility = Facility.of(problem)
                order = np.argsort(-facility.gain, axis=2, kind="stable")
                rank = np.argsort(order, axis=2, kind="stable")
            mixture = self._grow(run, facility, order, rank)
            if mixture:
                cached = _round(facility, np.array(mixture), order, rank)
                run.offer(Placement(cached))
                sweep(run, facility, cached, self.max_sweeps)
            offer_something(run, problem, facility)
            certify_by(self.certificate, run, problem, facility)
        return run.result()

    def _grow(
        self, run: Run[Placement], facility: Facility, order: NDArray[np.int64], rank: NDArray[np.int64]
    ) -> list[NDArray[np.bool_]]:
        """Return the T configurations [N, E] of the mixture; fewer if the run is stopped."""
        y = np.zeros((facility.num_servers, facility.num_experts))
        mixture: list[NDArray[np.bool_]] = []
        values = np.empty(facility.num_experts)
        chunk = max(1, CHUNK // (facility.weight.shape[1] * facility.num_servers))
        for _ in range(self.steps):
            configuration = np.zeros(y.shape, bool)
            for n in range(facility.num_servers):
                for start in range(0, values.size, chunk):
                    if run.stopped():  # an unfinished step is worth nothing to the guarantee
                        return mixture
                    some = slice(start, start + chunk)
                    values[some] = server_gradient(
                        n,
                        np.ascontiguousarray(y[:, some]),
                        facility.weight[some],
                        facility.gain,
                        facility.model[some],
                        order,
                        rank,
                    )
                configuration[n] = knapsack(values, facility.units, int(facility.capacity_units[n]))[1]
                y[n] += configuration[n] / self.steps
            mixture.append(configuration)
            if not run.step():
                break
        return mixture


def _round(
    facility: Facility, mixture: NDArray[np.bool_], order: NDArray[np.int64], rank: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return the placement [N, E] that keeps of each server's mixture [T, N, E] the member worth most given the rest."""
    y = mixture.mean(axis=0)
    for n in range(facility.num_servers):
        values = server_gradient(n, y, facility.weight, facility.gain, facility.model, order, rank)
        y[n] = mixture[int((mixture[:, n] @ values).argmax()), n]
    return np.asarray(y > 0.5)
