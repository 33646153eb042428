"""Dynamic time warping against its recursion, written down."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.rl import warped_distances


def plain(first: np.ndarray, second: np.ndarray) -> float:
    """Return the cost of the best alignment of two trajectories [T, D] and [U, D]."""

    @cache
    def best(t: int, u: int) -> float:
        apart = float(np.linalg.norm(first[t].astype(float) - second[u].astype(float)))
        if t == u == 0:
            return apart
        steps = [(t - 1, u), (t, u - 1), (t - 1, u - 1)]
        return apart + min(best(a, b) for a, b in steps if a >= 0 and b >= 0)

    return best(len(first) - 1, len(second) - 1)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(0, 10_000))
def test_equals_the_recursion(steps: int, length: int, size: int, seed: int):
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((2, 2, steps, size)).astype(np.float32)
    second = rng.standard_normal((2, 3, length, size)).astype(np.float32)
    found = warped_distances(first, second)
    for g in range(2):
        for b in range(2):
            for c in range(3):
                assert found[g, b, c] == pytest.approx(plain(first[g, b], second[g, c]), rel=1e-5)


def test_pace_does_not_count():
    """A trajectory that stays for a while is at distance 0 from one that does not."""
    path = np.array([0.0, 1.0, 3.0, 2.0], np.float32)
    slow = np.repeat(path, [3, 1, 2, 4])
    assert warped_distances(path[None, None, :, None], slow[None, None, :, None])[0, 0, 0] == 0.0
