"""`Acrobot`: swing the end of a double pendulum up. The laws are those of Gymnasium's ``Acrobot-v1``."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeopt.rl.environments.control import Control
from edgeopt.rl.environments.environment import Bools, Discrete, Floats

_SECONDS = 0.2
_FASTEST = np.array([4 * np.pi, 9 * np.pi])
_INERTIA, _GRAVITY = 1.0, 9.8


class Acrobot(Control):
    """Two links of which only the joint between them has a motor; every step costs 1 until the end is one metre up.

    States are both angles and their speeds, observations cos and sin of the angles, and the speeds. A partial change holds
    where the first link is right of hanging. The other reward is the height of the end, in units of two metres.
    """

    name = "acrobot"
    observation_size = 6
    actions = Discrete(3)
    constants = {"length": 1.0, "mass": 1.0, "torque": 1.0}  # noqa: RUF012
    usual_horizon = 500
    _state_size = 4

    def _draw(self, rng: np.random.Generator) -> Floats:
        return rng.uniform(-0.1, 0.1, 4)

    def _move(
        self, state: Floats, action: NDArray[np.generic], constants: Mapping[str, Floats]
    ) -> tuple[Floats, Floats, Bools]:
        torque = (np.asarray(action, np.float64) - 1) * constants["torque"]
        half = _SECONDS / 2  # one step of Runge and Kutta's method of fourth order
        k1 = _slope(state, torque, constants)
        k2 = _slope(state + half * k1, torque, constants)
        k3 = _slope(state + half * k2, torque, constants)
        k4 = _slope(state + _SECONDS * k3, torque, constants)
        moved = state + _SECONDS / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        moved[:, :2] = (moved[:, :2] + np.pi) % (2 * np.pi) - np.pi
        moved[:, 2:] = np.clip(moved[:, 2:], -_FASTEST, _FASTEST)
        up = _height(moved) > 1.0
        return moved, np.where(up, 0.0, -1.0), up

    def _observe(self, state: Floats) -> Floats:
        one, two = state[:, 0], state[:, 1]
        return np.stack([np.cos(one), np.sin(one), np.cos(two), np.sin(two), state[:, 2], state[:, 3]], axis=1)

    def _region(self, state: Floats) -> Bools:
        return state[:, 0] > 0

    def _other_reward(self, state: Floats) -> Floats:
        return _height(state) / 2


def _height(state: Floats) -> Floats:
    return -np.cos(state[:, 0]) - np.cos(state[:, 0] + state[:, 1])


def _slope(state: Floats, torque: Floats, constants: Mapping[str, Floats]) -> Floats:
    """Return time derivatives [G, 4], by the equations of Sutton and Barto's book; both links are alike."""
    one, two, speed, other = state.T
    mass, length = constants["mass"], constants["length"]
    centre = length / 2
    cos = np.cos(two)
    d1 = mass * (centre**2 + length**2 + centre**2 + 2 * length * centre * cos) + 2 * _INERTIA
    d2 = mass * (centre**2 + length * centre * cos) + _INERTIA
    phi2 = mass * centre * _GRAVITY * np.cos(one + two - np.pi / 2)
    turning = mass * length * centre * np.sin(two)
    phi1 = (
        -turning * other**2
        - 2 * turning * other * speed
        + (mass * centre + mass * length) * _GRAVITY * np.cos(one - np.pi / 2)
        + phi2
    )
    second = (torque + d2 / d1 * phi1 - turning * speed**2 - phi2) / (mass * centre**2 + _INERTIA - d2**2 / d1)
    return np.stack([speed, other, -(d2 * second + phi1) / d1, second], axis=1)
