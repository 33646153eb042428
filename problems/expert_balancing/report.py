"""`BalanceReport`: what a placement of replicas means for the devices."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.display import one_line


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BalanceReport:
    """Loads of devices, and what it takes to get there.

    Parameters
    ----------
    device_load : float64 [L, D], load of each device in each layer.
    replicas : int64 [L, E], replicas of each expert.
    largest : float64 [L], the load that each layer waits for.
    balancedness : mean over the layers of mean load / largest load: 1 is perfect.
    moves : replicas that a device has to fetch, as it does not have them at present; 0 where there is no present.
    """

    device_load: NDArray[np.float64]
    replicas: NDArray[np.int64]
    largest: NDArray[np.float64]
    balancedness: float
    moves: int

    __repr__ = one_line
