"""`random`: every server picks at random."""

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
class RandomPicks:
    """Every server picks evenly among its clients, anew in every round. A baseline.

    O(T sum of n_s) time, n_s being the clients that server s covers. One iteration is one round.
    """

    name: ClassVar[str] = "random"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def guarantee_for(self, problem: ClientSelection) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every client-selection problem."""
        return supports_client_selection(problem)

    def solve(self, problem: ClientSelection, options: SolveOptions) -> Result[Any]:
        """Solve by random picks."""
        return play_alone(self, problem, options)

    def policies(self, problem: ClientSelection, seed: int) -> Sequence[Policy]:
        """Return one policy for each server."""
        return one_each(self, problem, seed)

    def policy(self, server: int, seed: int) -> Policy:
        """Return a server's policy, with a random stream of its own."""
        return _Policy(stream(seed, self.name, server))


@dataclass(frozen=True, slots=True)
class _Policy:
    rng: np.random.Generator

    def pick(self, view: ServerView) -> NDArray[np.int64]:
        return self.rng.permutation(view.clients)[: view.num_picks]
