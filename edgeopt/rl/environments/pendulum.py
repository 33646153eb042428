"""`Pendulum`: swing a pendulum up and hold it. The laws are those of Gymnasium's ``Pendulum-v1``."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeopt.rl.environments.control import Control
from edgeopt.rl.environments.environment import Bools, Continuous, Floats

_SECONDS = 0.05
_FASTEST = 8.0  # rad/s


class Pendulum(Control):
    """A pendulum with a motor too weak to lift it at once; 0 is upright, and costs are angle, speed and torque, squared.

    States are angle and angular speed, observations cos, sin and speed. The action is the share of the most torque. A
    partial change holds where the pendulum is right of upright. The other reward is for holding it level: the cost of
    the angle is that of the distance from pi / 2.
    """

    name = "pendulum"
    observation_size = 3
    actions = Continuous(1)
    constants = {"gravity": 10.0, "mass": 1.0, "length": 1.0, "torque": 2.0}  # noqa: RUF012
    usual_horizon = 200
    _state_size = 3  # the last one is the torque that has brought it there

    def _draw(self, rng: np.random.Generator) -> Floats:
        return np.append(rng.uniform([-np.pi, -1.0], [np.pi, 1.0]), 0.0)

    def _move(
        self, state: Floats, action: NDArray[np.generic], constants: Mapping[str, Floats]
    ) -> tuple[Floats, Floats, Bools]:
        angle, speed, _ = state.T
        torque = np.clip(np.asarray(action, np.float64)[:, 0], -1.0, 1.0) * constants["torque"]
        reward = -(_wrapped(angle) ** 2 + 0.1 * speed**2 + 0.001 * torque**2)
        length = constants["length"]
        turned = 3 * constants["gravity"] / (2 * length) * np.sin(angle) + 3 * torque / (constants["mass"] * length**2)
        faster = np.clip(speed + turned * _SECONDS, -_FASTEST, _FASTEST)
        moved = np.stack([angle + faster * _SECONDS, faster, torque], axis=1)
        return moved, reward, np.zeros(len(moved), bool)

    def _observe(self, state: Floats) -> Floats:
        return np.stack([np.cos(state[:, 0]), np.sin(state[:, 0]), state[:, 1]], axis=1)

    def _region(self, state: Floats) -> Bools:
        return np.sin(state[:, 0]) > 0

    def _other_reward(self, state: Floats) -> Floats:
        return -(_wrapped(state[:, 0] - np.pi / 2) ** 2 + 0.1 * state[:, 1] ** 2 + 0.001 * state[:, 2] ** 2)


def _wrapped(angle: Floats) -> Floats:
    return (angle + np.pi) % (2 * np.pi) - np.pi
