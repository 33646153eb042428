"""`power-of-choice`: every server draws some candidates and picks those it has waited for longest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.problem import Problem
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import ServerView
from edgeopt.result import Guarantee, Heuristic, Result
from edgeopt.rng import stream
from edgeopt.solve import SolveOptions
from edgeopt.solvers.client_selection.policy import Policy, one_each, play_alone, supports_client_selection


@dataclass(frozen=True, slots=True)
class PowerOfChoice:
    """Every server draws candidates at random and picks those of most staleness, of less latency on ties.

    After power-of-choice (Y. J. Cho, J. Wang, G. Joshi, *Client selection in federated learning*, arXiv 2010.01243),
    which picks by the clients' losses. There are no losses here: staleness stands in for them, since the loss of a client
    rises while others are trained on. O(T sum of n_s) time, n_s being the clients of server s. One iteration is one
    round.

    Parameters
    ----------
    candidates : drawn per pick, at least 1; 1 is `random`.
    """

    candidates: float = 2.0

    name: ClassVar[str] = "power-of-choice"
    guarantee: ClassVar[Guarantee] = Heuristic("baseline")

    def __post_init__(self) -> None:
        if not 1 <= self.candidates < math.inf:
            raise EdgeOptError(f"candidates = {quoted(self.candidates)}: expected a number >= 1")

    def guarantee_for(self, problem: ClientSelection) -> Guarantee:
        """Return that nothing is promised."""
        return self.guarantee

    def supports(self, problem: Problem) -> str | None:
        """Support every client-selection problem."""
        return supports_client_selection(problem)

    def solve(self, problem: ClientSelection, options: SolveOptions) -> Result[Any]:
        """Solve by the power of choice."""
        return play_alone(self, problem, options)

    def policies(self, problem: ClientSelection, seed: int) -> Sequence[Policy]:
        """Return one policy for each server."""
        return one_each(self, problem, seed)

    def policy(self, server: int, seed: int) -> Policy:
        """Return a server's policy, with a random stream of its own."""
        return _Policy(self.candidates, stream(seed, self.name, server))


@dataclass(frozen=True, slots=True)
class _Policy:
    candidates: float
    rng: np.random.Generator

    def pick(self, view: ServerView) -> NDArray[np.int64]:
        drawn = self.rng.permutation(len(view.clients))[: math.ceil(self.candidates * view.num_picks)]
        order = np.lexsort((view.latency_s[drawn], -view.staleness[drawn]))
        return view.clients[drawn[order[: view.num_picks]]]
