"""`fastest`: every server picks the clients whose updates would be back first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import ServerView
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.solve import SolveOptions
from edgeopt.solvers.client_selection.policy import Policy, one_each, play_alone, supports_client_selection


@dataclass(frozen=True, slots=True)
class Fastest:
    """Every server picks the clients of least latency in this round, the lowest id on ties. A baseline.

    O(T sum of n_s log n_s) time, n_s being the clients that server s covers. One iteration is one round.
    """

    name: ClassVar[str] = "fastest"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def guarantee_for(self, problem: ClientSelection) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every client-selection problem."""
        return supports_client_selection(problem)

    def solve(self, problem: ClientSelection, options: SolveOptions) -> Result[Any]:
        """Solve by picking the fastest."""
        return play_alone(self, problem, options)

    def policies(self, problem: ClientSelection, seed: int) -> Sequence[Policy]:
        """Return one policy for each server."""
        return one_each(self, problem, seed)

    def policy(self, server: int, seed: int) -> Policy:
        """Return a server's policy; nothing is random."""
        return _Policy()


@dataclass(frozen=True, slots=True)
class _Policy:
    def pick(self, view: ServerView) -> NDArray[np.int64]:
        return view.clients[np.argsort(view.latency_s, kind="stable")[: view.num_picks]]
