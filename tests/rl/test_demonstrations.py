"""Demonstrations: what is kept, what is drawn, what each agent sees, and that nonsense does no harm."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from edgeopt.errors import EdgeOptError, InvalidFileError
from edgeopt.rl import Demonstrations, Play, Request, ScriptedPlanner, carried_out, play
from edgeopt.rl.environments import Routing, grid


@dataclass
class Says:
    """A source that always says the same, and remembers what it was asked."""

    text: str
    asked: list[str] = field(default_factory=list)

    def instructions(self, request: Request) -> str:
        self.asked.append(request.prompt)
        return self.text


def team() -> Routing:
    return Routing(grid(3), 3, seed=1)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[MoveTo, Intersection_99, Agent_0]", "[MoveTo, Intersection_0, Agent_7]"]
)
def test_nonsense_sends_agents_by_the_shortest_way(text: str):
    """Nothing usable was said: every agent goes straight home, and the lines are told of."""
    own = team()
    found, rejected = carried_out(own, Says(text), [1, 2])
    assert own.arrived.all()
    assert len(rejected) >= 2
    moved = (found.allowed.sum(axis=-1) > 1) | (found.reward != 0)
    own.reset([1, 2])
    ways = own.distance[own.position, own.goal[:, None]]
    np.testing.assert_array_equal(moved.sum(axis=1), ways)


def test_sets_are_kept_by_their_return():
    """The newest few that are at least the median of those kept."""
    shown = Demonstrations(Says(""), keep=3)

    def gather(value: float) -> bool:
        before = shown.sets
        made = Play(np.zeros((1, 1, 1, 1), np.float32), np.ones((1, 1, 1, 2), bool), np.zeros((1, 1, 1, 1), np.int64),
                    np.full((1, 1, 1), value, np.float32))  # fmt: skip
        original = pytest.MonkeyPatch()
        original.setattr("edgeopt.rl.demonstrations.carried_out", lambda *_: (made, []))
        found = shown.gather(team(), [1])
        original.undo()
        assert found.kept == (shown.sets is not before)
        return found.kept

    assert [gather(value) for value in (1.0, 0.0, 1.0, 2.0, 1.0, 0.5, 3.0)] == [
        True,
        False,
        True,
        True,
        True,
        False,
        True,
    ]
    assert [float(own.returns.mean()) for own in shown.sets] == [2.0, 1.0, 3.0]


def test_what_is_drawn_is_what_was_played():
    shown = Demonstrations(ScriptedPlanner())
    shown.gather(team(), [1, 2])
    shown.gather(team(), [1, 2])  # equal, and so kept
    assert len(shown.sets) == 2
    drawn = shown.draw(3, np.random.default_rng(0))
    assert drawn.reward.shape == (3, team().horizon, 3)
    every = np.concatenate([own.action for own in shown.sets], axis=2)
    for e in range(3):
        assert any((drawn.action[:, :, e] == every[:, :, k]).all() for k in range(4))
    assert shown.draw(9, np.random.default_rng(0)).reward.shape[2] == 4
    again = play(team(), [1, 2], lambda seen, step: shown.sets[0].action[:, step])
    np.testing.assert_array_equal(again.observation, shown.sets[0].observation)
    np.testing.assert_array_equal(again.reward, shown.sets[0].reward)


def test_feedback_reaches_the_prompt():
    source = Says("")
    Demonstrations(source).gather(team(), [1], "The busiest roads were 1-2.")
    assert "The busiest roads were 1-2." in source.asked[0]


def test_files_and_what_is_refused():
    shown, other = Demonstrations(ScriptedPlanner()), Demonstrations(ScriptedPlanner())
    with pytest.raises(EdgeOptError, match="no demonstrations"):
        shown.draw(1, np.random.default_rng(0))
    shown.gather(team(), [1])
    other.restore(shown.arrays(), team())
    np.testing.assert_array_equal(other.sets[0].reward, shown.sets[0].reward)
    with pytest.raises(InvalidFileError, match="demonstrations"):
        other.restore({"0/reward": shown.sets[0].reward}, team())
    with pytest.raises(InvalidFileError, match="shown/0/observation"):
        other.restore(shown.arrays(), Routing(grid(4), 3, seed=1))
    with pytest.raises(InvalidFileError, match="shown/0/action"):
        other.restore({**shown.arrays(), "0/action": shown.sets[0].action + 9}, team())
