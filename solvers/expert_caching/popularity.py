"""`popularity`: every server caches what its own users use most."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import ExpertCaching, Placement
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import Run, SolveOptions
from edgeopt.solvers.expert_caching.certificates import Certificate, certify_by, check_certificate
from edgeopt.solvers.expert_caching.common import (
    empty_placement,
    fill_in_order,
    has_nothing,
    supports_expert_caching,
)


@dataclass(frozen=True, slots=True)
class Popularity:
    """Cache on each server the experts most used by the users attached to it (least frequently used goes). A baseline.

    A user counts for its access server, or, attached to none, for the server that saves it most on an expert of the
    model. Experts are taken in order of expected uses, ties to the lowest id, and each that still fits is kept.
    O(E U + N E log E) time. One iteration is the whole run.

    Parameters
    ----------
    per_byte : order by uses per byte.
    certificate : ``marginal`` bounds the optimum by marginal values, quick and loose; ``dual`` by steps of the dual after that.
    """

    per_byte: bool = False
    certificate: Certificate = "marginal"

    name: ClassVar[str] = "popularity"
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
        """Solve by counting uses."""
        with Run[Placement](self, problem, options) as run:
            run.offer(empty_placement(problem))
            if not run.stopped() or has_nothing(run):
                run.offer(popular_placement(problem, per_byte=self.per_byte))
                run.step()
            certify_by(self.certificate, run, problem)
        return run.result()


def popular_placement(problem: ExpertCaching, *, per_byte: bool = False) -> Placement:
    """Return the placement of `Popularity`: each server is filled with what the users that count for it use most."""
    uses = uses_at_servers(problem)
    order = np.argsort(-uses / problem.expert_bytes if per_byte else -uses, axis=1, kind="stable")
    return Placement(fill_in_order(order, problem) & (uses > 0))


def offer_popular(run: Run[Placement], problem: ExpertCaching) -> None:
    """Offer what `Popularity` finds, for sets that are not modular.

    Where no expert saves anything by itself (``max`` and room for less than a set), what is good for the sum surrogate may
    be good for nothing, and every single change of it, too. Counting uses is as quick as looking at the surrogate's values,
    and puts experts of one set on servers near each other's users now and then: ours, and nothing is proved of it.
    """
    if not problem.is_modular_per_set and (not run.stopped() or has_nothing(run)):
        run.offer(popular_placement(problem))


def uses_at_servers(problem: ExpertCaching) -> NDArray[np.float64]:
    """Return float64 [N, E]: expected uses per token of each expert by the users that count for each server."""
    uses = np.zeros((problem.num_servers, problem.num_experts))
    device = problem.device_mask()
    attached = np.asarray(problem.access_server)
    users = np.arange(problem.num_users)
    for m, model in enumerate(problem.models):
        experts = slice(problem.first_expert[m], problem.first_expert[m + 1])
        gain = problem.gain_s[m]
        server = np.where(attached >= 0, attached, gain.argmax(axis=1))
        counts = np.zeros((problem.num_servers, problem.num_users))  # of each user at each server
        counts[server, users] = problem.user_weight * problem.request[:, m]
        counts[:, (attached < 0) & (gain.max(axis=1) <= 0)] = 0.0  # nothing at the edge helps them
        uses[:, experts] = counts @ np.where(device[:, experts], 0.0, model.uses[problem.profile[:, m]])
    return uses
