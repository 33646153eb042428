"""Client selection beside a neighbour: outcomes by its rules, changes at their steps, runs that go on."""

import numpy as np
import pytest

from edgeopt.errors import EdgeOptError
from edgeopt.rl.environments import SelectionChange, ServerBesideNeighbour


def blocks(step: int, count: int, taken: int, other: bool) -> set[int]:
    first = (count // 2 - step) % count if other else step % count
    return {(first + k) % count for k in range(taken)}


@pytest.mark.parametrize("habit", [False, True])
def test_conflicts_are_the_neighbours_picks_and_busy_clients(habit: bool):
    """A pick of the neighbour's always fails; others fail as often as the client is busy; a failure costs the time-out."""
    at = [100, 10**6]
    world, rng = (
        ServerBesideNeighbour([1, 2], change=SelectionChange(at=at, habit=habit, busy=not habit)),
        np.random.default_rng(0),
    )
    outcomes: dict[tuple[bool, int], list[bool]] = {}
    for step in range(1200):
        action = rng.integers(8, size=2)
        moment = world.step(action)
        for g in range(2):
            changed = step >= at[g]
            failed = moment.following[g, 8:].reshape(8, 2)[action[g], 1] == 1.0
            if int(action[g]) in blocks(step, 8, 3, habit and changed):
                assert failed
            else:
                outcomes.setdefault((changed and not habit, int(action[g]) % 2), []).append(failed)
            assert (moment.reward[g] <= -1.9) == failed  # the whole time-out and a conflict; no fairness
        assert moment.truncated.tolist() == [step % 40 == 39] * 2
    for (changed, odd), own in outcomes.items():
        assert np.mean(own) == pytest.approx(0.1 if odd != changed else 0.7, abs=0.12)


def test_an_agent_is_the_same_alone_and_goes_on_where_it_stopped():
    """Whatever the other copies do, and after what `arrays` gave."""
    change = SelectionChange(at=55, busy=True)
    both, alone = ServerBesideNeighbour([3, 9], change=change), ServerBesideNeighbour([9], change=change)
    later, rng = ServerBesideNeighbour([3, 9], change=change), np.random.default_rng(1)
    for step in range(100):
        action = rng.integers(8, size=2)
        moment, single = both.step(action), alone.step(action[1:])
        np.testing.assert_array_equal(moment.observation[1:], single.observation)
        np.testing.assert_array_equal(moment.reward[1:], single.reward)
        if step == 50:
            later.restore(both.arrays())
        elif step > 50:
            for a, b in zip(moment, later.step(action), strict=True):
                np.testing.assert_array_equal(a, b)


def test_bad_input():
    with pytest.raises(EdgeOptError, match="taken = 8: expected fewer than clients = 8"):
        ServerBesideNeighbour([0], taken=8)
