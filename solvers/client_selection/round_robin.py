"""`round-robin`: every server takes its clients in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.problem import Problem
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import ServerView
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.rng import stream
from edgeopt.solve import SolveOptions
from edgeopt.solvers.client_selection.policy import Policy, one_each, play_alone, supports_client_selection


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Every server goes through its clients in a random order of its own, the same in every cycle. A baseline.

    The order is random because servers that all start with the lowest id would meet at the same clients. O(T M S) time.
    One iteration is one round.
    """

    name: ClassVar[str] = "round-robin"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def guarantee_for(self, problem: ClientSelection) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every client-selection problem."""
        return supports_client_selection(problem)

    def solve(self, problem: ClientSelection, options: SolveOptions) -> Result[Any]:
        """Solve by taking turns."""
        return play_alone(self, problem, options)

    def policies(self, problem: ClientSelection, seed: int) -> Sequence[Policy]:
        """Return one policy for each server."""
        return one_each(self, problem, seed)

    def policy(self, server: int, seed: int) -> Policy:
        """Return a server's policy, with an order of its own."""
        return _Policy(seed)


@dataclass(slots=True)
class _Policy:
    seed: int
    order: NDArray[np.int64] | None = None

    def pick(self, view: ServerView) -> NDArray[np.int64]:
        if self.order is None:
            self.order = stream(self.seed, RoundRobin.name, view.server).permutation(view.clients)
        first = view.round * view.num_picks
        return self.order[np.arange(first, first + view.num_picks) % len(self.order)]
