"""Client selection under the interfaces of reinforcement learning: PettingZoo for all servers, Gymnasium for one.

A server observes `local_features` of the clients it covers, float32 [n, F] from 0 to 1, lowest id first. Its action is a
score for each of them, float32 [n] from -1 to 1: it picks the clients of highest score, the lowest ids on ties. Needs
the extra ``rl``.
"""

from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import InvalidProblemError, quoted
from edgeopt.extras import needs
from edgeopt.problems import ClientSelection
from edgeopt.problems.client_selection.environment import RoundResult, SelectionEnvironment
from edgeopt.problems.client_selection.kernels import CONFLICTS, DELIVERED
from edgeopt.rng import stream
from edgeopt.solvers.client_selection.features import FEATURES, local_features
from edgeopt.solvers.client_selection.forecaster import ConflictForecaster
from edgeopt.solvers.client_selection.policy import LocalSolver
from edgeopt.solvers.client_selection.random_picks import RandomPicks

with needs("an environment of reinforcement learning", "rl"):
    from gymnasium import Env
    from gymnasium.spaces import Box, Space
    from pettingzoo import ParallelEnv  # type: ignore[import-untyped, unused-ignore]

Scores = NDArray[np.float32]
Infos = dict[str, Any]

_SEEDS = 2**31  # episodes without a seed of their own get one below


class SelectionParallelEnv(ParallelEnv):  # type: ignore[misc, unused-ignore]
    """All servers of a problem, one agent each, ``server-0``, ``server-1``, ...

    An episode is one horizon of the problem; at its end all agents are truncated. ``reset(seed=k)`` plays what chance
    decides under seed k, so that the problem's own seed gives the episode its plans are judged on; later resets
    without a seed draw new ones. Rewards are those of `ClientSelection`. Infos hold seconds, conflicts and deliveries of
    the round.

    Parameters
    ----------
    problem : the problem.
    forecaster : forecasts of conflicts for one episode. Default: a new `ConflictForecaster`, which starts without models.

    Examples
    --------
    >>> env = SelectionParallelEnv(ClientSelection.random(num_servers=2, num_clients=8, picks=2, rounds=5, seed=1))
    >>> observations, infos = env.reset(seed=7)
    >>> observations["server-0"].shape, env.action_space("server-0").shape
    ((6, 5), (6,))
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "client_selection_v0", "render_modes": []}
    render_mode = None

    def __init__(self, problem: ClientSelection, forecaster: ConflictForecaster | None = None) -> None:
        self.possible_agents = [f"server-{s}" for s in range(problem.num_servers)]
        self.agents: list[str] = []
        self._game = _Game(problem, forecaster)
        self._rng = stream(problem.seed, "episodes")
        sizes = problem.num_covered.tolist()
        self.observation_spaces = {a: _observations(n) for a, n in zip(self.possible_agents, sizes, strict=True)}
        self.action_spaces = {a: _actions(n) for a, n in zip(self.possible_agents, sizes, strict=True)}

    def observation_space(self, agent: str) -> Space[Scores]:
        """Return the space of what a server observes."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Space[Scores]:
        """Return the space of a server's scores."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Scores], dict[str, Infos]]:
        """Start an episode."""
        if seed is not None:
            self._rng = stream(seed, "episodes")
        self._game.reset(int(self._rng.integers(_SEEDS)) if seed is None else seed)
        self.agents = list(self.possible_agents)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Scores]
    ) -> tuple[dict[str, Scores], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Infos]]:
        """Play one round."""
        if not self.agents:
            raise InvalidProblemError("no episode is running: call reset first")
        game = self._game
        picks = np.full((game.problem.num_servers, game.problem.max_picks), -1, np.int32)
        for s, agent in enumerate(self.agents):
            game.choose(picks, s, actions[agent])
        result = game.play(picks)
        agents, done = self.agents, game.done
        observations = self._observe()
        if done:
            self.agents = []
        return (
            observations,
            {agent: float(result.reward[0, s]) for s, agent in enumerate(agents)},
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, done),
            {agent: _info(result, s) for s, agent in enumerate(agents)},
        )

    def render(self) -> None:
        """Draw nothing: there are no render modes."""

    def close(self) -> None:
        """Release nothing."""

    def _observe(self) -> dict[str, Scores]:
        return {agent: self._game.observe(s) for s, agent in enumerate(self.agents)}


class SingleServerEnv(Env[Scores, Scores]):
    """One server of a problem; the other servers play policies of their own, which do not learn.

    Episodes, observations, actions and rewards are as in `SelectionParallelEnv`.

    Parameters
    ----------
    problem : the problem.
    server : which server the agent is.
    others : the solver whose policies the other servers play. Default: `random`.
    forecaster : as in `SelectionParallelEnv`.

    Examples
    --------
    >>> problem = ClientSelection.random(num_servers=2, num_clients=8, picks=2, rounds=5, seed=1)
    >>> env = SingleServerEnv(problem, server=1)
    >>> observation, info = env.reset(seed=7)
    >>> env.step(env.action_space.sample())[3]  # not truncated after one of five rounds
    False
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(
        self,
        problem: ClientSelection,
        server: int = 0,
        *,
        others: LocalSolver | None = None,
        forecaster: ConflictForecaster | None = None,
    ) -> None:
        if not 0 <= server < problem.num_servers:
            raise InvalidProblemError(
                f"server = {quoted(server)}: expected an integer from 0 to {problem.num_servers - 1}"
            )
        self._game = _Game(problem, forecaster)
        self._server, self._others = server, RandomPicks() if others is None else others
        size = int(problem.num_covered[server])
        self.observation_space: Space[Scores] = _observations(size)
        self.action_space: Space[Scores] = _actions(size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Scores, Infos]:
        """Start an episode."""
        super().reset(seed=seed)
        episode = int(self.np_random.integers(_SEEDS)) if seed is None else seed
        self._game.reset(episode)
        self._policies = {
            s: self._others.policy(s, episode) for s in range(self._game.problem.num_servers) if s != self._server
        }
        return self._game.observe(self._server), {}

    def step(self, action: Scores) -> tuple[Scores, float, bool, bool, Infos]:
        """Play one round."""
        game = self._game
        picks = np.full((game.problem.num_servers, game.problem.max_picks), -1, np.int32)
        game.choose(picks, self._server, action)
        for s, policy in self._policies.items():
            chosen = policy.pick(game.environment.view(s))
            picks[s, : len(chosen)] = chosen
        result = game.play(picks)
        s = self._server
        return game.observe(s), float(result.reward[0, s]), False, game.done, _info(result, s)


class _Game:
    """One episode with its forecasts."""

    def __init__(self, problem: ClientSelection, forecaster: ConflictForecaster | None) -> None:
        self.problem = problem
        self.environment = SelectionEnvironment(problem)
        self.forecaster = ConflictForecaster(problem.coverage) if forecaster is None else forecaster
        self._models = self.forecaster.models
        self._clients = [np.flatnonzero(row) for row in problem.coverage]
        self._features = np.zeros((*problem.coverage.shape, len(FEATURES)), np.float32)

    @property
    def done(self) -> bool:
        return self.environment.done

    def reset(self, seed: int) -> None:
        self.environment.reset([seed])
        self.forecaster.reset(1, models=self._models)  # every episode starts from the models given, not the last ones
        self._look()

    def choose(self, picks: NDArray[np.int32], server: int, scores: Scores) -> None:
        """Write the picks of a server."""
        clients, count = self._clients[server], int(self.problem.picks[server])
        given = np.asarray(scores, np.float64)
        if given.shape != clients.shape or np.isnan(given).any():
            raise InvalidProblemError(
                f"action of server {server}: expected {len(clients)} numbers, got {quoted(scores)}"
            )
        picks[server, :count] = clients[np.argsort(-given, kind="stable")[:count]]

    def play(self, picks: NDArray[np.int32]) -> RoundResult:
        result = self.environment.step(picks[None])
        self.forecaster.update(result.outcome)
        if not self.done:  # after the last round the last observation stays
            self._look()
        return result

    def observe(self, server: int) -> Scores:
        return np.asarray(self._features[server, self._clients[server]])

    def _look(self) -> None:
        self._features = local_features(self.environment, self.forecaster.probability)[0]


def _observations(num_clients: int) -> Space[Scores]:
    return cast("Space[Scores]", Box(0.0, 1.0, (num_clients, len(FEATURES)), np.float32))


def _actions(num_clients: int) -> Space[Scores]:
    return cast("Space[Scores]", Box(-1.0, 1.0, (num_clients,), np.float32))


def _info(result: RoundResult, server: int) -> Infos:
    tally = result.tally[0, server]
    return {
        "round_s": float(result.round_s[0, server]),
        "conflicts": int(tally[CONFLICTS]),
        "deliveries": int(tally[DELIVERED]),
    }
