"""What a learner sees of each client besides its local features where it keeps the beliefs of `reservation`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.problems.client_selection.instance import SelectionInstance
from edgeopt.rng import stream
from edgeopt.solvers.client_selection.features import FEATURES
from edgeopt.solvers.client_selection.reservation import Beliefs

RESERVED_FEATURES = (*FEATURES, "busy", "taken in this phase", "held in this phase", "a number of its own", "worth")
"""The first is the chance of a conflict by both causes, the last two are noise kept for the episode and what
`reservation` would think of the pick."""
SHARPNESS = 20.0
"""Of the worth in the score: a network that says nothing picks nearly as `reservation` does."""
LEAST = 1e-3  # of a chance whose logarithm is taken


def own_numbers(seed: int, server: int, count: int) -> NDArray[np.float32]:
    """Return float32 [n] from 0 to 1: by these a server tells clients, and itself, from others in one episode."""
    return stream(seed, "own-numbers", server).random(count, np.float32)


def reserved_features(beliefs: Beliefs, local: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 [E, S, N, F] before the coming round, in the order of `RESERVED_FEATURES`.

    Parameters
    ----------
    beliefs : of all servers in all episodes.
    local : float32 [E, S, N, 5], `covered_features`.
    own : float32 [E, S, N], `own_numbers`.
    """
    features = np.zeros((*local.shape[:3], len(RESERVED_FEATURES)), np.float32)
    features[..., : len(FEATURES)] = local
    taken, held = beliefs.in_this_phase()
    free = (1.0 - beliefs.busy) * (1.0 - taken)
    arrives = np.where(local[..., 2] >= 1.0, 0.0, 1.0 - beliefs.busy if beliefs.shares else free)
    latency_weight, conflict_weight, fairness_weight = beliefs.weight
    worth = fairness_weight * local[..., 3] ** beliefs.settings.patience * arrives - conflict_weight * (1.0 - free)
    worth += min(beliefs.settings.hold, 1.0) * held * free
    worth += latency_weight * (np.log(np.maximum(LEAST, arrives)) - local[..., 2])
    for column, values in enumerate((1.0 - free, beliefs.busy, taken, held, own, worth)):
        features[..., column + len(FEATURES) - 1 if column else 0] = values
    features[np.broadcast_to(~beliefs.filled, features.shape[:3])] = 0.0
    return features


def time_credit(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [..., M]: by how much each pick made the round longer, from the times [..., M] of the picks.

    The one that took longest answers for what it took beyond the next; all others, and equals, for nothing. [ours]

    Examples
    --------
    >>> time_credit(np.array([[0.5, 1.0, 0.25], [1.0, 1.0, 0.0]])).tolist()
    [[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    longest = seconds.max(axis=-1, keepdims=True)
    if seconds.shape[-1] == 1:
        return np.asarray(longest)
    ranked = np.sort(seconds, axis=-1)
    return np.asarray(np.where(seconds >= longest, longest - ranked[..., -2:-1], 0.0))


def one_server(terms: dict[str, Any], num_clients: int, num_picks: int) -> SelectionInstance:
    """Return a problem of one server with these weights and mode, for beliefs from views alone."""
    return SelectionInstance(
        coverage=np.ones((1, num_clients), bool), picks=np.array([num_picks]), compute_s=np.zeros(num_clients),
        payload_bits=1.0, rate_bps=np.ones((1, num_clients)), timeout_s=1.0, **terms,
    )  # fmt: skip
