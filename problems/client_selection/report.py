"""`SelectionReport`: what a plan brings, round by round and in all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelectionReport:
    """What a plan brings on the draw of the problem's seed. Rates are shares of all picks.

    Parameters
    ----------
    mean_reward : mean reward per server and round: the objective.
    conflict_rate : picks of clients that were taken: by another server, or busy.
    collision_rate, busy_rate : the two apart; a pick may be both.
    delivery_rate : picks whose update arrived in time.
    mean_round_s, tail_round_s : seconds of a server's round, mean and 95th percentile over servers and rounds.
    total_s : float64 [S], seconds of each server over all rounds.
    jain_index : Jain's fairness index of ``deliveries``, from 1/C (one client has it all) to 1; 0 without any delivery.
    mean_staleness, max_staleness : rounds since a client's last delivery to any server (since the start if there was
        none), looked at after every round; over clients and rounds.
    bytes_sent, bytes_wasted : bytes of all updates that were sent, and of those that did not arrive in time.
    deliveries : int64 [C], updates of each client that arrived.
    reward, round_s : float64 [T, S].
    conflicts : int32 [T, S], picks that conflicted.
    """

    mean_reward: float
    conflict_rate: float
    collision_rate: float
    busy_rate: float
    delivery_rate: float
    mean_round_s: float
    tail_round_s: float
    total_s: NDArray[np.float64]
    jain_index: float
    mean_staleness: float
    max_staleness: int
    bytes_sent: float
    bytes_wasted: float
    deliveries: NDArray[np.int64]
    reward: NDArray[np.float64]
    round_s: NDArray[np.float64]
    conflicts: NDArray[np.int32]

    __repr__ = one_line
