"""Dynamic time warping: how far apart two trajectories are, whatever their pace."""

import numpy as np
from numpy.typing import NDArray

from edgeopt.jit import kernel

Floats = NDArray[np.float32]


@kernel
def warped_distances(first: Floats, second: Floats) -> NDArray[np.float64]:
    """Return float64 [G, B, C], the distance by dynamic time warping of B and C trajectories [G, B, T, D] and [G, C, U, D].

    The least sum of Euclidean distances along an alignment of both that starts with both first points, ends with both
    last ones, and moves on by one point in one or both of them.
    """
    groups, count, steps, size = first.shape
    others, length = second.shape[1:3]
    found = np.empty((groups, count, others))
    row = np.empty(length)
    for g in range(groups):
        for b in range(count):
            for c in range(others):
                for t in range(steps):
                    corner = 0.0
                    for u in range(length):
                        apart = 0.0
                        for d in range(size):
                            gap = first[g, b, t, d] - second[g, c, u, d]
                            apart += gap * gap
                        above = row[u] if t > 0 else np.inf
                        before = row[u - 1] if u > 0 else np.inf
                        least = min(above, before, corner if t > 0 and u > 0 else np.inf)
                        corner = above
                        row[u] = np.sqrt(apart) + (0.0 if t == 0 and u == 0 else least)
                found[g, b, c] = row[length - 1]
    return found
