"""`CartPole`: hold a pole upright on a cart. The laws are those of Gymnasium's ``CartPole-v1``."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeopt.rl.environments.control import Control
from edgeopt.rl.environments.environment import Bools, Discrete, Floats

_SECONDS = 0.02  # of a step
_FARTHEST, _STEEPEST = 2.4, 12 * 2 * np.pi / 360


class CartPole(Control):
    """A pole on a cart that is pushed left or right; every step is worth 1 until the pole falls or the cart is too far out.

    States and observations are position, speed, angle, angular speed. A partial change holds where the cart is right of
    the middle. The other reward is for being one metre right of it: 1 - |x - 1|, at least 0.

    Examples
    --------
    >>> poles = CartPole([1, 2])
    >>> poles.step(np.array([0, 1])).reward.tolist()
    [1.0, 1.0]
    """

    name = "cart-pole"
    observation_size = 4
    actions = Discrete(2)
    constants = {"gravity": 9.8, "cart_mass": 1.0, "pole_mass": 0.1, "half_length": 0.5, "force": 10.0}  # noqa: RUF012
    usual_horizon = 500
    _state_size = 4

    def _draw(self, rng: np.random.Generator) -> Floats:
        return rng.uniform(-0.05, 0.05, 4)

    def _move(
        self, state: Floats, action: NDArray[np.generic], constants: Mapping[str, Floats]
    ) -> tuple[Floats, Floats, Bools]:
        x, speed, angle, turning = state.T
        length, pole = constants["half_length"], constants["pole_mass"]
        mass = constants["cart_mass"] + pole
        force = np.where(action == 1, constants["force"], -constants["force"])
        cos, sin = np.cos(angle), np.sin(angle)
        pushed = (force + pole * length * turning**2 * sin) / mass
        swing = (constants["gravity"] * sin - cos * pushed) / (length * (4 / 3 - pole * cos**2 / mass))
        moved = np.stack(
            [
                x + _SECONDS * speed,
                speed + _SECONDS * (pushed - pole * length * swing * cos / mass),
                angle + _SECONDS * turning,
                turning + _SECONDS * swing,
            ],
            axis=1,
        )
        fallen = (np.abs(moved[:, 0]) > _FARTHEST) | (np.abs(moved[:, 2]) > _STEEPEST)
        return moved, np.ones(len(moved)), fallen

    def _observe(self, state: Floats) -> Floats:
        return state

    def _region(self, state: Floats) -> Bools:
        return np.asarray(state[:, 0] > 0)

    def _other_reward(self, state: Floats) -> Floats:
        return np.asarray(np.maximum(0.0, 1 - np.abs(state[:, 0] - 1)))
