"""Sum trees against lists: sums, and draws from ranges of a ring buffer in proportion to priorities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.rl.sum_tree import before, draw, empty_trees, mass, write


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_sums_and_draws_are_those_of_a_list(capacity: int, seed: int):
    """Sums below a slot and over ranges of entries, and which entry a point of a range belongs to."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 3 * capacity))
    trees, priority = empty_trees(2, capacity), np.zeros((2, capacity))
    for n in range(count):  # as a replay buffer writes them: the newest over the oldest
        new = rng.uniform(0.1, 2.0, (2, 1))
        write(trees, np.full((2, 1), n % capacity), new)
        priority[:, n % capacity] = new[:, 0]
    for slot in range(capacity + 1):
        assert before(trees[0], slot) == pytest.approx(priority[0, :slot].sum(), abs=1e-9)
    oldest = max(0, count - capacity)
    first = rng.integers(oldest, count, 2)
    end = np.array([rng.integers(f, count) + 1 for f in first])
    uniform, found = rng.random((2, 7)), np.full((2, 7), -1)
    draw(trees, capacity, first, end, np.zeros(2, np.int64), np.full(2, 7), uniform, found)
    for g in range(2):
        entries = np.arange(first[g], end[g])
        own = priority[g, entries % capacity]
        assert mass(trees[g], capacity, first[g], end[g]) == pytest.approx(own.sum())
        points = (np.arange(7) + uniform[g]) / 7 * own.sum()
        np.testing.assert_array_equal(found[g], entries[np.searchsorted(np.cumsum(own), points, side="right")])


def test_a_million():
    """Draws from a full ring of a million follow the priorities: the largest thousand have half of them."""
    size = 1_000_000
    trees = empty_trees(1, size)
    priority = np.ones((1, size))
    priority[0, :1000] = size / 1000 - 1
    write(trees, np.arange(size)[None], priority)
    found = np.empty((1, 10_000), np.int64)
    whole = (np.array([size]), np.array([2 * size]), np.array([0]), np.array([10_000]))
    draw(trees, size, *whole, np.random.default_rng(0).random((1, 10_000)), found)
    assert np.mean(found - size < 1000) == pytest.approx(0.5, abs=0.01)
    assert trees.shape == (1, 2 << 20)
