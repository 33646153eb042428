"""`SelectionTeam`: client selection as agents that learn together, who may be shown what a coordinator would pick."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import SelectionEnvironment
from edgeopt.rl.environments.team import Seen
from edgeopt.rl.grammar import Grammar, Orders
from edgeopt.rl.instructions import Request
from edgeopt.solve import Solver, solve
from edgeopt.solvers.client_selection.features import FEATURES, local_features
from edgeopt.solvers.client_selection.matching import Matching


class SelectionTeam:
    """One agent per server. It sees `FEATURES` of each client that it covers, and picks some; nothing of the others'.

    Instructions name clients, ``[Select, Client_5, Server_1]``, those of a server round after round. The planner is `matching`, which
    knows who is busy: what it picks may be better than what any server could know. Demonstrations hold what each
    server saw when the picks were played, and its own picks alone. Forecasts of conflicts are left out.

    Parameters
    ----------
    problem : its rounds are the steps of an episode, which draw chance of their own.
    """

    def __init__(self, problem: ClientSelection) -> None:
        self.problem = problem
        self.num_agents, self.horizon = problem.num_servers, problem.rounds
        covered = problem.num_covered
        self.num_actions = int(covered.max())
        self.clients = np.full((self.num_agents, self.num_actions), -1, np.int64)
        """int64 [N, A], ids of the covered clients, -1 to fill up."""
        for s, row in enumerate(problem.coverage):
            self.clients[s, : covered[s]] = np.flatnonzero(row)
        self.taken = np.arange(problem.max_picks) < problem.picks[:, None]
        self.observation_shape = (self.num_actions, len(FEATURES))
        self.grammar = Grammar("Select", "Client", "Server", problem.num_clients, problem.num_servers)
        self._covered = self.clients >= 0
        self._environment = SelectionEnvironment(problem)
        self._seeds: tuple[int, ...] = (problem.seed,)
        self._conflicts = np.zeros(problem.num_clients)

    def reset(self, seeds: Sequence[int]) -> Seen:
        """Start episodes."""
        self._seeds = tuple(int(seed) for seed in seeds)
        self._environment.reset(self._seeds)
        self._conflicts = np.zeros(self.problem.num_clients)
        return self._look()

    def step(self, action: NDArray[np.int64]) -> tuple[NDArray[np.float32], Seen]:
        """Play a round."""
        chosen = np.take_along_axis(self.clients[:, None], action, axis=2)
        picks = np.where(self.taken[:, None], chosen, -1).swapaxes(0, 1)
        result = self._environment.step(np.ascontiguousarray(picks, np.int32))
        self._conflicts += (result.outcome == 1).sum(axis=(0, 1))
        return np.ascontiguousarray(result.reward.T, np.float32), self._look()

    def _look(self) -> Seen:
        episodes = self._environment.num_episodes
        allowed = np.broadcast_to(self._covered[:, None], (self.num_agents, episodes, self.num_actions)).copy()
        if self._environment.done:  # nobody looks at this
            return Seen(np.zeros((self.num_agents, episodes, *self.observation_shape), np.float32), allowed)
        every = local_features(self._environment)  # (E, S, C, F)
        seen = every[:, np.arange(self.num_agents)[:, None], self.clients].swapaxes(0, 1)
        return Seen(np.where(self._covered[:, None, :, None], seen, np.float32(0)), allowed)

    # --- instructions ----------------------------------------------------------------------------------------------

    def plan(self, episode: int) -> Orders:
        """Return what `matching` picks in every round of the episode."""
        return self.solved(Matching(), self._seeds[episode])

    def solved(self, solver: Solver | str, seed: int) -> Orders:
        """Return what a solver of client selection picks in the episode of a seed."""
        plan = solve(self.problem.replace(seed=seed), solver).solution
        if plan is None:
            raise EdgeOptError(f"{quoted(solver)}: expected a plan, found none")
        picks = plan.picks  # (T, S, M)
        return [row[row >= 0].tolist() for row in picks.swapaxes(0, 1)]

    def choices(self, agent: int, episode: int, places: Sequence[int]) -> list[int]:
        """Return the clients that a server covers."""
        return [int(client) for client in self.clients[agent] if client >= 0]

    def describe(self, episode: int) -> str:
        """Return who covers whom, in words."""
        lines = [
            f"Server_{s} covers clients {', '.join(map(str, self.choices(s, episode, ())))} and selects {count} in each round."
            for s, count in enumerate(self.problem.picks.tolist())
        ]
        told = f"There are {self.horizon} rounds. A client that two servers select in one round is lost to both."
        return "\n".join([*lines, told])

    def lessons(self) -> str:
        """Return the clients with the most conflicts."""
        if not self._conflicts.any():
            return ""
        worst = np.argsort(-self._conflicts, kind="stable")[:5]
        return f"Most conflicts had clients {', '.join(map(str, worst.tolist()))}."

    def repaired(self, agent: int, episode: int, places: Sequence[int]) -> list[int]:
        """Return enough different covered clients for each round: others are left out, gaps filled with those picked least."""
        covered, count = self.choices(agent, episode, ()), int(self.problem.picks[agent])
        known, usage = set(covered), dict.fromkeys(covered, 0)
        found: list[int] = []
        for first in range(0, self.horizon * count, count):
            own = list(dict.fromkeys(client for client in places[first : first + count] if client in known))
            spare = sorted(known.difference(own), key=lambda client: (usage[client], client))
            own += spare[: count - len(own)]
            for client in own:
                usage[client] += 1
            found += own
        return found

    def obey(self, orders: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of the clients of the coming round."""
        action = np.zeros((self.num_agents, orders.shape[1], self.taken.shape[1]), np.int64)
        for s, count in enumerate(self.problem.picks.tolist()):
            named = orders[s, :, self._environment.now * count :][:, :count]  # (E, count)
            if named.shape[1] < count or (named < 0).any():
                raise EdgeOptError(f"orders of server {s}: expected {count} clients for round {self._environment.now}")
            own = self.clients[s, : self.problem.num_covered[s]]
            action[s, :, :count] = np.searchsorted(own, named)
            free = np.ones((orders.shape[1], len(own)), np.int8)
            np.put_along_axis(free, action[s, :, :count], 0, axis=1)
            others = np.argsort(-free, axis=1, kind="stable")
            action[s, :, count:] = others[:, : action.shape[2] - count]  # not played; picks of a draw differ
        return action


@dataclass(frozen=True, slots=True)
class SolverSource:
    """A solver of client selection that writes what it would pick in an episode as instructions.

    Parameters
    ----------
    solver : name or instance, such as ``"matching"``, or ``"fastest"``, which knows no more than the servers do.
    """

    solver: Solver | str = "matching"

    def instructions(self, request: Request) -> str:
        """Return the picks of all rounds."""
        if not isinstance(request.team, SelectionTeam):
            raise EdgeOptError(f"{type(request.team).__name__}: expected a SelectionTeam, which solvers know of")
        return request.team.grammar.text(request.team.solved(self.solver, request.seed))
