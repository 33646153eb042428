"""`Routing`: agents on a road network, each on its way from a start to a goal of its own; roads that many take cost more."""

from collections.abc import Sequence

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.jit import kernel
from edgeopt.rl.environments.team import Seen
from edgeopt.rl.grammar import Grammar, Orders
from edgeopt.rng import stream
from edgeopt.validate import integer, real

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_BUSIEST = 3  # roads that are told of


class Routing:
    r"""N agents travel a connected graph; a move along a road that n agents take in that step costs more the more they are.

    An agent has one goal, and a few starts of which every episode draws one, with the step of departure. It then moves to
    a neighbouring node in every step until it arrives. A move costs :math:`c\,(1 + \kappa (n - 1))`, arriving brings `bonus`. What
    it sees: where it is, the time, whether it has departed or arrived, and how many took each road out of its node in the
    last step. [ours: LEED (arXiv 2509.14680) routes agents on graphs; its environments are not known to us]

    Parameters
    ----------
    graph : connected, without loops; its nodes, sorted, are numbered from 0.
    num_agents : N.
    horizon : steps of an episode. Default: the longest way and half of it, and the latest departure.
    starts : how many nodes an agent may start from.
    latest : latest step of departure.
    cost, congestion, bonus : c, kappa, and what arriving brings.
    seed : of the agents' goals and starts.

    Examples
    --------
    >>> team = Routing(nx.path_graph(3), 1, starts=1, latest=0, seed=1)
    >>> seen = team.reset([7])
    >>> team.grammar.text(team.plan(0)).splitlines()[-1] == team.grammar.line(int(team.goal[0]), 0)
    True
    """

    taken: NDArray[np.bool_]

    def __init__(
        self,
        graph: nx.Graph,
        num_agents: int,
        *,
        horizon: int | None = None,
        starts: int = 3,
        latest: int = 2,
        cost: float = 0.05,
        congestion: float = 1.0,
        bonus: float = 2.0,
        seed: int = 0,
    ) -> None:
        self.num_agents = integer("num_agents", num_agents, low=1)
        self.latest, starts = integer("latest", latest, low=0), integer("starts", starts, low=1)
        for name, value in {"cost": cost, "congestion": congestion, "bonus": bonus}.items():
            if not 0 <= real(name, value) < np.inf:
                raise EdgeOptError(f"{name} = {quoted(value)}: expected a number >= 0")
        self.cost, self.congestion, self.bonus = float(cost), float(congestion), float(bonus)
        names = sorted(graph.nodes)
        if len(names) < 2 or graph.is_directed() or not nx.is_connected(graph) or nx.number_of_selfloops(graph):
            raise EdgeOptError("graph: expected an undirected connected graph of two nodes or more, without loops")
        number = {name: i for i, name in enumerate(names)}
        roads = sorted(tuple(sorted((number[a], number[b]))) for a, b in graph.edges)
        self.roads = np.array(roads, np.int64)
        """int64 [R, 2], the nodes of every road."""
        around = [sorted(number[other] for other in graph[name]) for name in names]
        self.num_actions = max(map(len, around))
        self.neighbours = np.full((len(names), self.num_actions), -1, np.int64)
        """int64 [V, A], where each action leads, -1 for nowhere."""
        self._road = np.full(self.neighbours.shape, -1, np.int64)
        by_ends = {ends: i for i, ends in enumerate(roads)}
        for node, others in enumerate(around):
            self.neighbours[node, : len(others)] = others
            self._road[node, : len(others)] = [by_ends[min(node, o), max(node, o)] for o in others]
        lengths = dict(nx.all_pairs_shortest_path_length(graph))
        self.distance = np.array([[lengths[a][b] for b in names] for a in names], np.int64)
        """int64 [V, V], moves from node to node."""
        rng, far = stream(seed, "routing"), max(1, int(self.distance.max()) // 2)
        self.goal = rng.integers(len(names), size=num_agents)
        self.start = np.stack([self._starts(rng, int(goal), starts, far) for goal in self.goal])
        """int64 [N, starts], where each agent may start."""
        longest = int(self.distance.max())
        self.horizon = integer("horizon", longest + longest // 2 + latest if horizon is None else horizon, low=1)
        self.grammar = Grammar("MoveTo", "Intersection", "Agent", len(names), num_agents)
        self.taken = np.ones((num_agents, 1), np.bool_)
        self.observation_shape = (len(names) + 3 + self.num_actions,)
        self.reset([0])

    def _starts(self, rng: np.random.Generator, goal: int, count: int, far: int) -> Ints:
        nodes = np.flatnonzero(self.distance[goal] >= min(far, int(self.distance[goal].max())))
        return rng.choice(nodes, size=count)

    def reset(self, seeds: Sequence[int]) -> Seen:
        """Start episodes, each with starts and departures of its own."""
        shape = (self.num_agents, len(seeds))
        self.position, self.departure = np.empty(shape, np.int64), np.empty(shape, np.int64)
        for e, seed in enumerate(seeds):
            rng = stream(seed, "trips")
            own = rng.integers(self.start.shape[1], size=self.num_agents)
            self.position[:, e] = self.start[np.arange(self.num_agents), own]
            self.departure[:, e] = rng.integers(self.latest + 1, size=self.num_agents)
        self.now = 0
        self.arrived = self.position == self.goal[:, None]
        self._moves = np.zeros(shape, np.int64)
        self._load = np.zeros((len(seeds), len(self.roads)), np.int64)  # of the last step
        self._total = np.zeros(len(self.roads))
        return self._look()

    def step(self, action: Ints) -> tuple[NDArray[np.float32], Seen]:
        """Move all agents that are on their way."""
        moving = self._moving()
        chosen = action[..., 0]
        to = self.neighbours[self.position, chosen]
        if self.now >= self.horizon or (moving & (to < 0)).any():
            raise EdgeOptError(
                f"step {self.now}: expected an allowed action of every agent, within {self.horizon} steps"
            )
        road = self._road[self.position, chosen]
        episode = np.broadcast_to(np.arange(moving.shape[1]), moving.shape)
        count = np.bincount((episode * len(self.roads) + road)[moving], minlength=self._load.size)
        self._load = count.reshape(self._load.shape)
        crowd = self._load[episode, np.where(moving, road, 0)] - 1
        self.position = np.where(moving, to, self.position)
        there = moving & (self.position == self.goal[:, None])
        reward = np.where(moving, -self.cost * (1 + self.congestion * crowd), 0.0) + self.bonus * there
        self.arrived = self.arrived | there
        self._moves += moving
        self._total += self._load.sum(axis=0)
        self.now += 1
        return reward.astype(np.float32), self._look()

    def _moving(self) -> NDArray[np.bool_]:
        return np.asarray((self.departure <= self.now) & ~self.arrived)

    def _look(self) -> Seen:
        agents, episodes = self.position.shape
        nodes, moving = len(self.neighbours), self._moving()
        seen = np.zeros((agents, episodes, *self.observation_shape), np.float32)
        n, e = np.indices(self.position.shape)
        seen[n, e, self.position] = 1.0
        seen[..., nodes] = self.now / self.horizon
        seen[..., nodes + 1] = self.departure <= self.now
        seen[..., nodes + 2] = self.arrived
        out = self._road[self.position]  # (N, E, A)
        seen[..., nodes + 3 :] = np.where(out >= 0, self._load[e[..., None], out], 0) / 4
        allowed = np.where(moving[..., None], out >= 0, np.arange(self.num_actions) == 0)
        return Seen(seen, allowed)

    # --- instructions ----------------------------------------------------------------------------------------------

    def plan(self, episode: int) -> Orders:
        """Return ways planned one agent after another, each the best in time given the load of those before it.

        A road counts with what the agent pays and what it makes the others pay more. After a first round, every agent is
        planned once more beside all others. [ours]
        """
        paths = plan_paths(
            self.neighbours, self._road, len(self.roads), self.position[:, episode].copy(), self.goal,
            self.departure[:, episode].copy(), self.horizon, self.cost, self.congestion, self.bonus,
        )  # fmt: skip
        return [row[row >= 0].tolist() for row in paths]

    def choices(self, agent: int, episode: int, places: Sequence[int]) -> list[int]:
        """Return the neighbours of the last place."""
        around = self.neighbours[places[-1] if places else self.position[agent, episode]]
        return [int(node) for node in around if node >= 0]

    def describe(self, episode: int) -> str:
        """Return roads and trips in words."""
        roads = ", ".join(f"{a}-{b}" for a, b in self.roads.tolist())
        trips = "\n".join(
            f"Agent_{n}: from Intersection_{self.position[n, episode]} to Intersection_{self.goal[n]}, "
            f"departs in step {self.departure[n, episode]}"
            for n in range(self.num_agents)
        )
        return f"Roads between intersections: {roads}\nA road costs more the more agents take it in one step.\n{trips}"

    def lessons(self) -> str:
        """Return the busiest roads."""
        if not self.now:
            return ""
        worst = np.argsort(-self._total, kind="stable")[:_BUSIEST]
        said = ", ".join(f"{self.roads[r, 0]}-{self.roads[r, 1]}" for r in worst.tolist())
        return f"The busiest roads were {said}."

    def repaired(self, agent: int, episode: int, places: Sequence[int]) -> list[int]:
        """Return a way along roads that ends at the goal: gaps are filled with shortest ways, what follows the goal is cut."""
        at, way, goal = int(self.position[agent, episode]), [], int(self.goal[agent])
        for place in [*places, goal]:
            while at != place and at != goal:
                around = self.neighbours[at][self.neighbours[at] >= 0]
                at = int(around[np.argmin(self.distance[around, place])])
                way.append(at)
        return way

    def obey(self, orders: Ints) -> Ints:
        """Return the action that leads to the next node of every agent's way; the first one where it does not move."""
        moving = self._moving()
        n, e = np.nonzero(moving)
        action = np.zeros((*moving.shape, 1), np.int64)
        following = orders[n, e, self._moves[n, e]]
        action[n, e, 0] = np.argmax(self.neighbours[self.position[n, e]] == following[:, None], axis=1)
        return action


def grid(side: int) -> nx.Graph:
    """Return a square grid of roads."""
    return nx.grid_2d_graph(side, side)


def plane(num_nodes: int, seed: int) -> nx.Graph:
    """Return a connected random geometric graph: its radius is the least of some for which a drawn one is connected."""
    for step in range(1, 200):
        graph = nx.random_geometric_graph(num_nodes, 0.1 + 0.02 * step, seed=seed)
        if nx.is_connected(graph):
            return graph
    raise AssertionError("a radius of four is connected")


@kernel
def plan_paths(
    neighbours: Ints, roads: Ints, num_roads: int, start: Ints, goal: Ints, departure: Ints, horizon: int, cost: float,
    congestion: float, bonus: float,
) -> Ints:  # fmt: skip
    """Return the nodes int64 [N, T] that agents move to one after another, -1 to fill up, see `Routing.plan`."""
    agents, nodes = len(start), len(neighbours)
    paths = np.full((agents, horizon), -1, np.int64)
    load = np.zeros((horizon, num_roads), np.int64)
    value = np.empty((horizon + 1, nodes))
    best = np.empty((horizon, nodes), np.int64)
    for turn in range(2):
        for i in range(agents):
            if turn == 1:
                at = start[i]
                for k in range(horizon):
                    if paths[i, k] < 0:
                        break
                    for a in range(neighbours.shape[1]):
                        if neighbours[at, a] == paths[i, k]:
                            load[departure[i] + k, roads[at, a]] -= 1
                    at = paths[i, k]
                paths[i] = -1
            for v in range(nodes):
                value[horizon, v] = 0.0 if v == goal[i] else bonus
            for t in range(horizon - 1, departure[i] - 1, -1):
                for v in range(nodes):
                    if v == goal[i]:
                        value[t, v] = 0.0
                        continue
                    value[t, v] = np.inf
                    for a in range(neighbours.shape[1]):
                        if neighbours[v, a] < 0:
                            break
                        n = load[t, roads[v, a]]
                        found = cost * (1 + 2 * congestion * n) + value[t + 1, neighbours[v, a]]
                        if found < value[t, v]:
                            value[t, v], best[t, v] = found, a
            at = start[i]
            for t in range(departure[i], horizon):
                if at == goal[i]:
                    break
                a = best[t, at]
                load[t, roads[at, a]] += 1
                at = neighbours[at, a]
                paths[i, t - departure[i]] = at
    return paths
