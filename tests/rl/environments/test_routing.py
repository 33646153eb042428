"""Routing: steps and costs by a plain version, the planner against shortest paths in expanded time, what is refused."""

import networkx as nx
import numpy as np
import pytest

from edgeopt.errors import EdgeOptError
from edgeopt.rl import ScriptedPlanner, carried_out, play
from edgeopt.rl.environments import Routing, grid, plane
from edgeopt.rl.environments.routing import plan_paths


def wander(team: Routing, seed: int):
    rng = np.random.default_rng(seed)

    def act(seen, step):
        return np.argmax(np.where(seen.allowed, rng.random(seen.allowed.shape), -1), axis=-1)[..., None]

    return act


def test_steps_are_those_of_a_plain_version():
    """Positions, rewards and loads, agent by agent with dictionaries."""
    team = Routing(plane(12, seed=3), 6, seed=1, congestion=0.7)
    seeds = [5, 6, 7]
    team.reset(seeds)
    where = [{n: int(team.position[n, e]) for n in range(6)} for e in range(3)]
    departs = team.departure.copy()
    played = play(team, seeds, wander(team, 0))
    for e in range(3):
        done = {n: where[e][n] == team.goal[n] for n in range(6)}
        for t in range(team.horizon):
            moves = {n for n in range(6) if departs[n, e] <= t and not done[n]}
            nodes = len(team.neighbours)
            for n in range(6):
                assert np.flatnonzero(played.observation[n, t, e, :nodes]).tolist() == [where[e][n]]
                assert played.allowed[n, t, e].sum() == ((team.neighbours[where[e][n]] >= 0).sum() if n in moves else 1)
            to = {n: int(team.neighbours[where[e][n], played.action[n, t, e, 0]]) for n in moves}
            roads = {n: frozenset((where[e][n], to[n])) for n in moves}
            for n in range(6):
                expected = 0.0
                if n in moves:
                    crowd = sum(road == roads[n] for road in roads.values())
                    expected = -0.05 * (1 + 0.7 * (crowd - 1)) + 2.0 * (to[n] == team.goal[n])
                    where[e][n] = to[n]
                    done[n] = to[n] == team.goal[n]
                assert played.reward[n, t, e] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_one_agent_is_planned_by_shortest_paths_in_expanded_time(seed: int):
    """Among given loads: those of agents that are planned before it, who do not move on for it."""
    team = Routing(plane(10, seed=seed), 1, starts=1, latest=0, seed=seed)
    rng = np.random.default_rng(seed)
    start, goal, horizon = int(team.position[0, 0]), int(team.goal[0]), team.horizon
    # agents that stand still around it would not load roads: so load them by many with one short way each
    others = rng.integers(len(team.neighbours), size=8)
    goals = np.array([int(rng.choice(team.neighbours[v][team.neighbours[v] >= 0])) for v in others])
    late = rng.integers(0, 4, size=8)
    paths = plan_paths(
        team.neighbours, team._road, len(team.roads), np.append(others, start), np.append(goals, goal),
        np.append(late, 0), horizon, 0.05, 1.0, 2.0,
    )  # fmt: skip
    load: dict[tuple[int, frozenset[int]], int] = {}
    for n in range(8):
        at = int(others[n])
        for k, node in enumerate(paths[n][paths[n] >= 0].tolist()):
            key = (int(late[n]) + k, frozenset((at, node)))
            load[key] = load.get(key, 0) + 1
            at = node
    expanded = nx.DiGraph()
    for t in range(horizon):
        for a, b in team.roads.tolist():
            cost = 0.05 * (1 + 2 * load.get((t, frozenset((a, b))), 0))
            for one, other in ((a, b), (b, a)):
                if one != goal:
                    expanded.add_edge((one, t), (other, t + 1), weight=cost)
    for t in range(horizon + 1):
        expanded.add_edge((goal, t), "end", weight=0.0)
    best = nx.shortest_path_length(expanded, (start, 0), "end", weight="weight")
    own, at, found = paths[8][paths[8] >= 0].tolist(), start, 0.0
    for t, node in enumerate(own):
        found += 0.05 * (1 + 2 * load.get((t, frozenset((at, node))), 0))
        at = node
    assert at == goal
    assert found == pytest.approx(best)


@pytest.mark.parametrize(("graph", "agents"), [(grid(4), 4), (grid(5), 24), (plane(20, seed=1), 12)])
def test_instructions_bring_every_agent_home(graph: nx.Graph, agents: int):
    """What is written, parsed and obeyed is what was planned: all arrive, and it is far better than chance."""
    team = Routing(graph, agents, seed=4)
    found, rejected = carried_out(team, ScriptedPlanner(), [1, 2, 3])
    assert rejected == []
    assert team.arrived.all()
    by_chance = play(team, [1, 2, 3], wander(team, 1))
    assert found.returns.mean() > by_chance.returns.mean() + 1


def test_same_seed_same_episode():
    team = Routing(grid(4), 3, seed=1)
    one = play(team, [3, 9], wander(team, 5))
    other = play(Routing(grid(4), 3, seed=1), [3, 9], wander(team, 5))
    alone = play(team, [9], lambda seen, step: one.action[:, step, 1:])
    for part, same in zip(one, other, strict=True):
        np.testing.assert_array_equal(part, same)
    np.testing.assert_array_equal(alone.reward[..., 0], one.reward[..., 1])


@pytest.mark.parametrize(
    "graph", [nx.empty_graph(3), nx.DiGraph([(0, 1)]), nx.Graph([(0, 1), (1, 1)]), nx.empty_graph(1)]
)
def test_other_graphs_are_refused(graph: nx.Graph):
    with pytest.raises(EdgeOptError, match="graph"):
        Routing(graph, 2)


def test_wrong_actions_and_numbers_are_refused():
    team = Routing(nx.path_graph(2), 2, latest=0, starts=1, seed=1)  # one neighbour each: there is no second action
    team.neighbours = np.pad(team.neighbours, ((0, 0), (0, 1)), constant_values=-1)
    team.reset([1])
    with pytest.raises(EdgeOptError, match="allowed"):
        team.step(np.ones((2, 1, 1), np.int64))
    with pytest.raises(EdgeOptError, match="congestion"):
        Routing(grid(2), 1, congestion=-1)
