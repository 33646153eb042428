"""`Draws`: chance by step, so that a run is continued from the number of its step alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.rng import stream

BLOCK = 512
"""Steps that are drawn together."""


class Draws:
    """Numbers of every step and agent, uniform in [0, 1) or standard normal.

    Those of a step are the same whatever was asked for before, and those of an agent depend on its own seed alone: an
    agent's run is the same among others, and the same after it was interrupted.

    Parameters
    ----------
    seeds : one for each of G agents.
    name : what they are for; other names have other numbers.
    shape : of the numbers of one agent and step.
    normal : standard normal instead of uniform.

    Examples
    --------
    >>> draws = Draws([3, 4], "explore", (2,))
    >>> draws.at(1000).shape, np.array_equal(draws.at(1000)[1:], Draws([4], "explore", (2,)).at(1000))
    ((2, 2), True)
    """

    def __init__(self, seeds: Sequence[int], name: str, shape: tuple[int, ...] = (), *, normal: bool = False) -> None:
        self._seeds, self._name, self._shape, self._normal = tuple(seeds), name, shape, normal
        self._block, self._drawn = -1, np.empty(0)

    def at(self, step: int) -> NDArray[np.float64]:
        """Return the numbers [G, ...] of a step."""
        block, place = divmod(step, BLOCK)
        if block != self._block:
            own = [stream(seed, self._name, block) for seed in self._seeds]
            shape = (BLOCK, *self._shape)
            self._drawn = np.stack([r.standard_normal(shape) if self._normal else r.random(shape) for r in own], axis=1)
            self._block = block
        found: NDArray[np.float64] = self._drawn[place]
        return found
