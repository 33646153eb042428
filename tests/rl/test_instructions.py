"""Instructions: what is read, what is rejected, and that nothing else comes out whatever is written."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import EdgeOptError
from edgeopt.rl import Grammar, NoisyPlanner, Request, ScriptedPlanner, parse
from edgeopt.rl.environments import Routing, grid
from edgeopt.rl.grammar import MOST_LINES, padded

GRAMMAR = Grammar("MoveTo", "Intersection", "Agent", 9, 3)


@pytest.mark.parametrize(
    "line",
    [
        "MoveTo, Intersection_5, Agent_1",
        "[MoveTo Intersection_5 Agent_1]",
        "[MoveTo, Intersection_5]",
        "[MoveTo, Intersection_5, Agent_1, Agent_2]",
        "[Stop, Intersection_5, Agent_1]",
        "[MoveTo, Landmark_5, Agent_1]",
        "[MoveTo, Intersection_5, Bus_1]",
        "[MoveTo, Intersection_9, Agent_1]",
        "[MoveTo, Intersection_5, Agent_3]",
        "[MoveTo, Intersection_-1, Agent_1]",
        "[MoveTo, Intersection_1.0, Agent_1]",
        "[MoveTo, Intersection_٣, Agent_1]",
        "[MoveTo, Intersection_99999999999999999999, Agent_1]",
        "1. [MoveTo, Intersection_5, Agent_1]",
        "[MoveTo, Intersection_5, Agent_1] [MoveTo, Intersection_5, Agent_1]",
        "[moveto, Intersection_5, Agent_1]",
        "Sure, here are the instructions:",
        "[" * 1000,
        "[MoveTo," + " " * 500 + "Intersection_5, Agent_1]",
    ],
)
def test_what_is_no_instruction_is_rejected_alone(line: str):
    """The lines around it are read, and one sentence says what was wrong."""
    found = parse(f"[MoveTo, Intersection_4, Agent_1]\n{line}\n\n  [ MoveTo ,Intersection_0, Agent_2 ]  ", GRAMMAR)
    assert found.orders == [[], [4], [0]]
    assert len(found.rejected) == 1
    assert found.rejected[0].startswith("line 2: ")
    assert len(found.rejected[0]) < 250


@pytest.mark.parametrize("text", ["", "\n \n", "I cannot help with that."])
def test_an_answer_without_instructions_says_so(text: str):
    found = parse(text, GRAMMAR)
    assert found.orders == [[], [], []]
    assert found.rejected[-1] == "no instruction at all"


def test_long_answers_are_read_up_to_a_limit():
    line = GRAMMAR.line(1, 1)
    found = parse("\n".join([line] * (MOST_LINES + 5)), GRAMMAR)
    assert len(found.orders[1]) == MOST_LINES
    assert len(found.rejected) == 1
    assert parse(line + "x" * (1 << 21), GRAMMAR).orders[1] == []


@given(st.lists(st.lists(st.integers(0, 8), max_size=6), min_size=3, max_size=3))
def test_what_is_written_is_read(orders: list[list[int]]):
    found = parse(GRAMMAR.text(orders), GRAMMAR)
    assert found.orders == orders


@given(st.text(alphabet="[]MoveTo, IntersectionAgent_0123456789\n\r\x00é", max_size=200))
def test_whatever_is_written_only_valid_orders_come_out(text: str):
    found = parse(text, GRAMMAR)
    assert len(found.orders) == 3
    assert all(0 <= place < 9 for own in found.orders for place in own)
    assert any(found.orders) or found.rejected


TEAM = Routing(grid(3), 4, seed=2)


@given(st.lists(st.lists(st.integers(0, 8), max_size=8), min_size=4, max_size=4), st.integers(0, 5))
def test_repaired_ways_are_walks_to_the_goal(orders: list[list[int]], seed: int):
    """Every hop is a road; the way ends where the agent first reaches its goal; a valid way stays what it is."""
    TEAM.reset([seed])
    graph = nx.Graph(TEAM.roads.tolist())
    for agent, places in enumerate(orders):
        way = TEAM.repaired(agent, 0, places)
        goal, at = int(TEAM.goal[agent]), int(TEAM.position[agent, 0])
        for node in way:
            assert graph.has_edge(at, node)
            assert at != goal
            at = node
        assert at == goal
        assert TEAM.repaired(agent, 0, way) == way


def test_noise_changes_the_share_that_it_says():
    """None at 0; at 0.4 about so many places of long orders; the same for the same seed."""
    team = Routing(nx.path_graph(60), 40, starts=1, latest=0, seed=3)
    team.reset([1])
    exact = ScriptedPlanner().instructions(Request(team, 0, 1))
    assert NoisyPlanner(0.0).instructions(Request(team, 0, 1)) == exact
    noisy = NoisyPlanner(0.4).instructions(Request(team, 0, 1))
    assert noisy == NoisyPlanner(0.4).instructions(Request(team, 0, 1))
    assert noisy != NoisyPlanner(0.4).instructions(Request(team, 0, 2))
    orders, spoilt = parse(exact, team.grammar).orders, parse(noisy, team.grammar).orders
    assert [len(own) for own in orders] == [len(own) for own in spoilt]
    # a wrong place is a neighbour of the one before, and so by chance the right one half of the time
    changed = np.mean(
        [a != b for own, other in zip(orders, spoilt, strict=True) for a, b in zip(own, other, strict=True)]
    )
    assert 0.15 < changed < 0.4


def test_a_prompt_has_the_graph_the_trips_and_the_form():
    TEAM.reset([4])
    prompt = Request(TEAM, 0, 4, "The busiest roads were 0-1.").prompt
    assert "[MoveTo, Intersection_0, Agent_0]" in prompt
    assert "0-1" in prompt
    for agent in range(4):
        assert (
            f"Agent_{agent}: from Intersection_{TEAM.position[agent, 0]} to Intersection_{TEAM.goal[agent]}, " in prompt
        )
    assert prompt.index("busiest") > prompt.index("departs")


@pytest.mark.parametrize("noise", [-0.1, 1.5, float("nan")])
def test_noise_is_a_share(noise: float):
    with pytest.raises(EdgeOptError, match="noise"):
        NoisyPlanner(noise)


def test_padded_orders():
    assert padded([[[1, 2], []], [[3], [4]]]).tolist() == [[[1, 2], [3, -1]], [[-1, -1], [4, -1]]]
